"""What befalls the loop over a population stays where it belongs; layouts here compute nothing."""

import itertools
import logging
import types

import jax
import numpy as np
import pytest
from helpers import made_up
from helpers.stub_layout import StubLayout

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.control import actions
from stability.devices.layout import never
from stability.storage import checkpoints, files, run_files, sweeps
from stability.trainer import chunk_size as chunk_size_lib
from stability.trainer import trainer

FIELDS = {
    'schedule.steps': 20,
    'schedule.warmup_steps': 2,
    'log.every_steps': 4,
    'probe.every_steps': 8,
    'checkpoint.every_steps': 10,  # off the logged steps
}
WALL_CLOCK = {'seconds', 'tokens_per_second'}
RATES = hyper.sweep('optimizer.learning_rate', [1e-3, 1e25, 1e-2, 1e-1, 1.0])


def _save(folder, arrays):
  folder.mkdir(parents=True)
  np.savez(folder / 'arrays.npz', **arrays)


def _load(folder):
  with np.load(folder / 'arrays.npz') as arrays:
    return dict(arrays)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """A function that writes a sweep's files -> workdir, run names; layouts are stubs of 4."""
  # Orbax takes a fifth of a second for a checkpoint, and here are hundreds.
  monkeypatch.setattr(checkpoints, 'ocp', types.SimpleNamespace(save=_save, load=_load))

  def make(workdir, sweep, static, values, most=None, chosen=lambda members: None):
    chosen(members := min(4, most or 4))
    return StubLayout(members)

  monkeypatch.setattr(trainer, 'make_layout', make)

  def write(name, points=RATES, **fields):
    flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS | fields
    runs = hyper.expand(config_lib.unflatten(flat), points)
    made_up.write_runs(tmp_path / name, runs)
    return tmp_path / name, list(runs.configs)

  return write


def train(workdir, names, watch=trainer.NO_HOOKS):
  """What is not over; False if it was interrupted."""
  left = [name for name in names if result(workdir, name) is None]
  waiting = iter(left)
  sweep = sweeps.read_sweep(workdir)
  first = next(waiting, None)
  return first is None or trainer.train_runs(
      workdir, sweep, first, lambda: next(waiting, None), None, watch
  )


def result(workdir, name):
  return run_files.read_result(run_files.run_dir(workdir, name))


def outcomes(workdir, names):
  """All of the runs that must not depend on how they were trained."""
  found = {}
  for name in names:
    lines = run_files.read_metrics(run_files.run_dir(workdir, name))
    lines = [*lines, result(workdir, name).to_json()]
    found[name] = [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]
  return found


def times(workdir, names):
  """When each line was logged: the same only for a line that was not made again."""
  return {
      (name, line['step']): line['seconds']
      for name in names
      for line in run_files.read_metrics(run_files.run_dir(workdir, name))
  }


def test_interrupted_wherever_it_asks_it_ends_as_if_it_never_was(sweep):
  """Between chunks, in the first evaluation, in the last one; and nothing is made twice."""
  undisturbed, names = sweep('undisturbed')
  assert train(undisturbed, names)
  expected = outcomes(undisturbed, names)
  assert [result(undisturbed, name).status for name in names].count('diverged') == 1
  saved = checkpoints.good_steps(run_files.run_dir(undisturbed, names[0]))
  assert saved == [10]  # and none at its end
  interruptions, saved_off_schedule = 0, set()
  for call in range(1, 100):
    workdir, _ = sweep(f'call-{call}')
    asked = []

    def interrupted(call=call, asked=asked):
      asked.append(True)
      return len(asked) >= call

    if train(workdir, names, trainer.TrainerHooks(interrupted)):
      break
    interruptions += 1
    before = times(workdir, names)
    saved = {
        name: max(checkpoints.good_steps(run_files.run_dir(workdir, name)), default=0)
        for name in names
    }
    saved_off_schedule |= {step for step in saved.values() if step % 10}
    assert train(workdir, names)
    assert outcomes(workdir, names) == expected, call
    after = times(workdir, names)
    again = {name for (name, step), at in before.items() if after[name, step] != at}
    assert all('1e+25' in name for name in again), (call, again)  # saved before it was known of
  assert interruptions > 15 and saved_off_schedule > {1, 4, 8}


def test_a_stop_that_is_interrupted_stays_one(sweep):
  """Told to end while it evaluates a run that a person has stopped, in whatever moment."""

  def stopping(workdir, names, call):
    asked = []

    def interrupted():
      asked.append(True)
      if len(asked) == 8:
        actions.request(run_files.run_dir(workdir, names[0]), {'action': 'stop'}, 'ann', '')
      return len(asked) >= call

    return trainer.TrainerHooks(interrupted)

  undisturbed, names = sweep('undisturbed', RATES[:1])
  assert train(undisturbed, names, stopping(undisturbed, names, 1000))
  expected = outcomes(undisturbed, names)
  assert expected[names[0]][-1]['status'] == 'stopped' and expected[names[0]][-1]['steps'] < 20
  taken = 0
  for call in range(8, 100):
    workdir, _ = sweep(f'call-{call}', RATES[:1])
    if train(workdir, names, stopping(workdir, names, call)):
      break
    taken += bool(actions.done(actions.read(run_files.run_dir(workdir, names[0]))))
    assert train(workdir, names)
    if taken:
      assert outcomes(workdir, names) == expected, call
  assert taken >= 3  # the evaluation asks as often


def test_a_paused_run_with_a_damaged_record_fails_alone(sweep):
  workdir, names = sweep('damaged', RATES[::2])
  run = run_files.run_dir(workdir, names[0])
  actions.request(run, {'action': 'pause'}, 'ann', '')
  asked = []

  def interrupted():
    asked.append(True)
    if len(asked) == 6:
      (run / 'actions.jsonl').write_bytes(b'junk\n')
      actions.request(run, {'action': 'continue'}, 'ann', '')
    return False

  assert train(workdir, names, trainer.TrainerHooks(interrupted))
  assert [result(workdir, name).status for name in names] == ['failed', 'done', 'done']
  assert 'actions.jsonl, line 1: damaged' in result(workdir, names[0]).error


def test_no_record_of_a_fork_removes_another_run(sweep):
  workdir, names = sweep('damaged', RATES[::2])
  run, other = (run_files.run_dir(workdir, name) for name in names[:2])
  assert train(workdir, names[1:2])
  record = {'action': 'fork', 'step': 4, 'name': other.name, 'changes': {}, 'by': 'x', 'why': ''}
  files.write_lines(run / 'actions.jsonl', [record])
  assert train(workdir, names)
  assert [result(workdir, name).status for name in names] == ['failed', 'done', 'done']
  assert 'is no name of its fork' in result(workdir, names[0]).error


def test_requests_in_a_folder_that_may_not_be_read_hurt_nobody(sweep, monkeypatch):
  workdir, names = sweep('private', RATES[::2])
  listdir = actions.os.listdir

  def refused(path):
    if path == run_files.run_dir(workdir, names[0]) / 'requests':
      raise PermissionError(13, 'Permission denied', str(path))
    return listdir(path)

  monkeypatch.setattr(actions.os, 'listdir', refused)
  assert train(workdir, names)
  assert [result(workdir, name).status for name in names] == ['done'] * 3


class Small(StubLayout):
  """Runs out of memory with more than `fits` members, at the call named `where`."""

  fits, where, made = 1, 'step', None

  def __init__(self, members):
    super().__init__(members)
    type(self).made.append(members)
    self._check('init')

  def _check(self, where):
    if where == self.where and self.members > self.fits:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.')

  def insert(self, state, slot, member):
    self._check('insert')
    return super().insert(state, slot, member)

  def step(self, state, kind, steps=1):
    if any(run is not None and run['step'] >= 11 for run in state):
      self._check('step')
    return super().step(state, kind, steps)

  def evaluate(self, state, interrupted=never):
    self._check('evaluate')
    return super().evaluate(state, interrupted)


@pytest.fixture
def small(monkeypatch):
  """A function of where memory runs out, and with more than how many members."""

  def small(where, fits):
    made = []
    kind = type('Small', (Small,), {'where': where, 'fits': fits, 'made': made})

    def make(workdir, sweep, static, values, most=None, chosen=lambda members: None):
      chosen(members := min(4, most or 4))
      return kind(members)

    monkeypatch.setattr(trainer, 'make_layout', make)
    return made

  return small


@pytest.mark.parametrize('where', ['insert', 'step', 'evaluate'])
@pytest.mark.parametrize('fits', [2, 1])
def test_out_of_memory_fewer_runs_share_a_device(sweep, small, caplog, where, fits):
  undisturbed, names = sweep('undisturbed')
  assert train(undisturbed, names)
  made = small(where, fits)
  workdir, _ = sweep('small')
  chosen = []
  with caplog.at_level(logging.WARNING):
    assert train(workdir, names, trainer.TrainerHooks(members_chosen=chosen.append))
  assert made == chosen == [4, 2, 1][: 4 - fits]
  assert outcomes(workdir, names) == outcomes(undisturbed, names)
  assert 'out of memory with 4 runs on a device: tried again with 2' in caplog.text
  assert f'from checkpoints: {names[0]}' in caplog.text  # in the order in which they came


def test_out_of_memory_what_was_saved_is_not_made_again(sweep, small):
  workdir, names = sweep('small')
  small('step', 2)
  seen = {}
  watch = trainer.TrainerHooks(members_chosen=lambda members: seen.update(times(workdir, names)))
  assert train(workdir, names, watch)
  after = times(workdir, names)
  kept = [key for key in seen if key[1] <= 10]
  assert kept and all(after[key] == seen[key] for key in kept if '1e+25' not in key[0])


def test_a_run_that_does_not_fit_alone_fails_with_what_may_help(sweep, small):
  workdir, names = sweep('small', RATES[:2])
  made = small('step', 0)
  assert train(workdir, names)
  found = result(workdir, names[0])
  assert made == [4, 2, 1] and found.status == 'failed'
  assert 'RESOURCE_EXHAUSTED' in found.error
  assert 'config.parallel.microbatches' in found.error.splitlines()[-1]
  assert result(workdir, names[1]).status == 'diverged'  # it never came that far


def test_out_of_memory_while_a_paused_run_is_brought_back(sweep, monkeypatch):
  """It is not forgotten: neither in a slot nor in anybody's list, it would never end."""
  undisturbed, names = sweep('undisturbed', RATES[::2])
  assert train(undisturbed, names)
  workdir, _ = sweep('paused', RATES[::2])
  run = run_files.run_dir(workdir, names[0])
  actions.request(run, {'action': 'pause'}, 'ann', '')
  asked, made = [], []

  class Late(StubLayout):
    def init(self, hyper):
      if len(asked) >= 6 and self.members > 2:
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.')
      return super().init(hyper)

  def make(workdir, sweep, static, values, most=None, chosen=lambda members: None):
    made.append(min(4, most or 4))
    return Late(made[-1])

  def interrupted():
    asked.append(True)
    if len(asked) == 6:
      actions.request(run, {'action': 'continue'}, 'ann', '')
    return False

  monkeypatch.setattr(trainer, 'make_layout', make)
  assert train(workdir, names, trainer.TrainerHooks(interrupted))
  assert made == [4, 2]
  assert outcomes(workdir, names) == outcomes(undisturbed, names)


def test_a_paused_run_whose_layout_cannot_be_made_fails_and_is_paused_no_more(sweep, small):
  workdir, names = sweep('small', RATES[:1])
  small('init', 0)
  paused = {names[0]: 0.0}
  sweep_json = sweeps.read_sweep(workdir)
  assert trainer.train_runs(workdir, sweep_json, names[0], lambda: None, paused)
  assert result(workdir, names[0]).status == 'failed' and paused == {}


def test_a_layout_that_cannot_be_made_fails_its_run(sweep, small):
  workdir, names = sweep('small', RATES[:2])
  small('init', 0)
  waiting = iter(names)
  assert trainer.train_runs(
      workdir, sweeps.read_sweep(workdir), next(waiting), lambda: next(waiting, None)
  )
  assert result(workdir, names[0]).status == 'failed'
  assert result(workdir, names[1]) is None  # for whoever asks for it


def test_no_more_members_than_are_said_to_fit(sweep, small):
  workdir, names = sweep('small')
  made = small('step', 2)
  assert train(workdir, names, trainer.TrainerHooks(most_members=2))
  assert made == [2]


def test_a_member_that_diverges_does_not_touch_the_others(sweep):
  workdir, names = sweep('together')
  assert train(workdir, names)
  alone, _ = sweep('alone')
  for name in names:
    assert train(alone, [name])
  assert outcomes(alone, names) == outcomes(workdir, names)


def test_steps_are_sent_off_as_many_as_can_be_waited_for(monkeypatch):
  """A chunk of CHUNK_SECONDS, whatever a step takes, reached from below."""
  for step_seconds, most in ((1e-4, 20_000), (0.5, 4), (30.0, 1)):
    now = [0.0]
    monkeypatch.setattr(chunk_size_lib.time, 'perf_counter', lambda now=now: now[0])
    pace, sent = chunk_size_lib.ChunkSizer(), []
    for _ in range(30):
      sent.append(pace.limit(1_000_000))
      now[0] += step_seconds * sent[-1]
    assert sent[0] == 1 and max(sent) == sent[-1] <= most * (1 + 1e-6)
    assert sent[-1] > 0.9 * most
    assert all(b <= 2 * a for a, b in itertools.pairwise(sent))
