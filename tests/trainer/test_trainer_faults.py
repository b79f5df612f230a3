"""Interruptions and failures of the training loop, on layouts that compute nothing."""

import logging
import os

import jax
import numpy as np
import pytest
from helpers import made_up
from helpers.stub_layout import StubLayout
from orbax.checkpoint import v1 as ocp

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.control import records, requests
from stability.control.actions import Action
from stability.devices.layout import never
from stability.storage import checkpoints, files, run_files, sweeps
from stability.trainer.hooks import TrainerHooks
from stability.trainer.paused import PausedRuns
from stability.trainer.trainer import train_runs

pytestmark = pytest.mark.slow

FIELDS = {
    'schedule.steps': 20,
    'schedule.warmup_steps': 2,
    'log.every_steps': 4,
    'probe.every_steps': 8,
    'checkpoint.every_steps': 10,  # not a multiple of the logged steps
}
WALL_CLOCK = {'seconds', 'tokens_per_second'}
RATES = hyper.sweep('optimizer.learning_rate', [1e-3, 1e25, 1e-2, 1e-1, 1.0])


def _save(folder, arrays):
  (folder / 'state').mkdir(parents=True)
  (folder / 'state' / 'manifest.ocdbt').touch()
  np.savez(folder / 'arrays.npz', **arrays)


def _load(folder):
  with np.load(folder / 'arrays.npz') as arrays:
    return dict(arrays)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """A function that writes a sweep -> workdir, run names."""
  # Orbax takes 0.2 s per checkpoint, and there are hundreds.
  monkeypatch.setattr(ocp, 'save', _save)
  monkeypatch.setattr(ocp, 'load', _load)

  def write(name, points=RATES, **fields):
    flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS | fields
    runs = hyper.expand(config_lib.unflatten(flat), points)
    made_up.write_runs(tmp_path / name, runs)
    return tmp_path / name, list(runs.configs)

  return write


def stub_layouts(kind=StubLayout):
  """A make_layout for stub layouts with four slots on one device."""

  def make(workdir, sweep, static, hparams, runs, max_members, on_members):
    on_members(members := min(4, max_members or 4))
    return kind(members)

  return make


def train(workdir, names, make_layout=None, paused=None, **hooks):
  """Trains the runs that have no result; False if interrupted."""
  waiting = iter([name for name in names if result(workdir, name) is None])
  sweep = sweeps.read_sweep(workdir)
  hooks = TrainerHooks(make_layout=make_layout or stub_layouts(), **hooks)
  first = next(waiting, None)
  return first is None or train_runs(
      workdir, sweep, first, lambda: next(waiting, None), paused, hooks
  )


def result(workdir, name):
  return run_files.read_result(run_files.run_dir(workdir, name))


def statuses(workdir, names):
  return [result(workdir, name).status for name in names]


def outcomes(workdir, names):
  """The rows and results of the runs without wall-clock values."""
  found = {}
  for name in names:
    lines = run_files.read_metrics(run_files.run_dir(workdir, name))
    lines = [*lines, result(workdir, name).to_json()]
    found[name] = [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]
  return found


def times(workdir, names):
  """The time in each row, which changes if the step is made again."""
  return {
      (name, row['step']): row['seconds']
      for name in names
      for row in run_files.read_metrics(run_files.run_dir(workdir, name))
  }


class Poll:
  """An `interrupted` hook that counts its calls and interrupts from the n-th on."""

  def __init__(self, interrupt=None, **calls):
    """calls: at_N=function, called at the N-th call."""
    self.count = 0
    self._interrupt = interrupt
    self._calls = {int(name.removeprefix('at_')): call for name, call in calls.items()}

  def __call__(self):
    self.count += 1
    if self.count in self._calls:
      self._calls[self.count]()
    return self._interrupt is not None and self.count >= self._interrupt


# Interruptions.


def test_interrupted_anywhere(sweep):
  """Between chunks and in evaluations: the outcome is the same, and no step is made twice."""
  undisturbed, names = sweep('undisturbed')
  assert train(undisturbed, names)
  expected = outcomes(undisturbed, names)
  assert statuses(undisturbed, names).count('diverged') == 1
  saved = checkpoints.good_steps(run_files.run_dir(undisturbed, names[0]))
  assert saved == [10]  # none at its end
  interruptions, saved_off_schedule = 0, set()
  for call in range(1, 100):
    workdir, _ = sweep(f'call-{call}')
    if train(workdir, names, interrupted=Poll(call)):
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
    # The host may not know yet that a run has diverged, and does not save it then.
    assert all('1e+25' in name for name in again), (call, again)
  assert interruptions > 15 and saved_off_schedule > {1, 4, 8}


def test_what_is_to_be_saved_is_reported(sweep):
  """Launchers give the time that it takes."""
  workdir, names = sweep('interrupted')
  reported = []
  assert not train(workdir, names, interrupted=Poll(8), on_save=reported.append)
  saved = [checkpoints.restore(run_files.run_dir(workdir, name)) for name in names[:4]]
  arrays = [arrays for _, arrays, _ in filter(None, saved)]
  assert reported == [[sum(a.nbytes for a in each.values()) for each in arrays]] and arrays


def test_interrupted_after_stop(sweep):
  """A run stopped by an action stays so, wherever its final evaluation is interrupted."""

  def poll(workdir, names, interrupt):
    run = run_files.run_dir(workdir, names[0])
    return Poll(interrupt, at_8=lambda: requests.write_request(run, Action('stop'), 'ann', ''))

  undisturbed, names = sweep('undisturbed', RATES[:1])
  assert train(undisturbed, names, interrupted=poll(undisturbed, names, None))
  expected = outcomes(undisturbed, names)
  assert expected[names[0]][-1]['status'] == 'stopped' and expected[names[0]][-1]['steps'] < 20
  taken = 0
  for call in range(8, 100):
    workdir, _ = sweep(f'call-{call}', RATES[:1])
    if train(workdir, names, interrupted=poll(workdir, names, call)):
      break
    taken += bool(records.read_taken(run_files.run_dir(workdir, names[0])))
    assert train(workdir, names)
    if taken:
      assert outcomes(workdir, names) == expected, call
  assert taken >= 3  # the evaluation polls as often


# Damaged files.


def test_damaged_record_of_paused_run(sweep):
  workdir, names = sweep('damaged', RATES[::2])
  run = run_files.run_dir(workdir, names[0])
  requests.write_request(run, Action('pause'), 'ann', '')

  def damage():
    (run / 'actions.jsonl').write_bytes(b'junk\n')
    requests.write_request(run, Action('continue'), 'ann', '')

  assert train(workdir, names, interrupted=Poll(at_6=damage))
  assert statuses(workdir, names) == ['failed', 'done', 'done']
  assert 'actions.jsonl, line 1: damaged' in result(workdir, names[0]).error


def test_damaged_name_of_fork(sweep):
  """It cannot delete another run."""
  workdir, names = sweep('damaged', RATES[::2])
  run, other = (run_files.run_dir(workdir, name) for name in names[:2])
  assert train(workdir, names[1:2])
  record = {'action': 'fork', 'step': 4, 'name': other.name, 'changes': {}, 'by': 'x', 'why': ''}
  files.write_lines(run / 'actions.jsonl', [record])
  assert train(workdir, names)
  assert statuses(workdir, names) == ['failed', 'done', 'done']
  assert 'is not a name of its fork' in result(workdir, names[0]).error


def test_unreadable_requests(sweep, monkeypatch):
  workdir, names = sweep('private', RATES[::2])
  listdir = os.listdir

  def refused(path='.'):
    if path == run_files.run_dir(workdir, names[0]) / 'requests':
      raise PermissionError(13, 'Permission denied', str(path))
    return listdir(path)

  monkeypatch.setattr(os, 'listdir', refused)
  assert train(workdir, names)
  assert statuses(workdir, names) == ['done'] * 3


# Actions that fail.


def test_pause_that_cannot_be_saved(sweep, monkeypatch):
  """The run fails alone."""
  workdir, names = sweep('unsaved', RATES[::2])
  run = run_files.run_dir(workdir, names[0])
  pause = Poll(at_6=lambda: requests.write_request(run, Action('pause'), 'ann', ''))

  def save(folder, arrays):
    if run in folder.parents:
      raise RuntimeError('cannot be saved')
    _save(folder, arrays)

  monkeypatch.setattr(ocp, 'save', save)
  assert train(workdir, names, interrupted=pause)
  assert statuses(workdir, names) == ['failed', 'done', 'done']
  assert 'cannot be saved' in result(workdir, names[0]).error


# Out of memory.


def out_of_memory():
  raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.')


def small_layouts(where, fits):
  """A make_layout whose layouts run out of memory above `fits` members, and their members."""
  made = []

  class Small(StubLayout):
    def __init__(self, members):
      super().__init__(members)
      made.append(members)
      self._check('init')

    def _check(self, call):
      if call == where and self.members > fits:
        out_of_memory()

    def insert(self, state, slot, run):
      self._check('insert')
      return super().insert(state, slot, run)

    def step(self, state, kind, steps=1):
      if any(run is not None and run['step'] >= 11 for run in state):
        self._check('step')
      return super().step(state, kind, steps)

    def evaluate(self, state, interrupted=never):
      self._check('evaluate')
      return super().evaluate(state, interrupted)

  return stub_layouts(Small), made


@pytest.mark.parametrize('where', ['insert', 'step', 'evaluate'])
@pytest.mark.parametrize('fits', [2, 1])
def test_fewer_members(sweep, caplog, where, fits):
  undisturbed, names = sweep('undisturbed')
  assert train(undisturbed, names)
  make, made = small_layouts(where, fits)
  workdir, _ = sweep('small')
  tried = []
  with caplog.at_level(logging.WARNING):
    assert train(workdir, names, make, on_members=tried.append)
  assert made == tried == [4, 2, 1][: 4 - fits]
  assert outcomes(workdir, names) == outcomes(undisturbed, names)
  assert 'out of memory with 4 runs per device: trying 2' in caplog.text
  assert f'from checkpoints: {names[0]}' in caplog.text  # in their original order


def test_fewer_members_from_checkpoints(sweep):
  """Steps up to the checkpoint are not made again."""
  workdir, names = sweep('small')
  make, _ = small_layouts('step', 2)
  before = {}
  assert train(workdir, names, make, on_members=lambda _: before.update(times(workdir, names)))
  after = times(workdir, names)
  kept = [key for key in before if key[1] <= 10]
  assert kept and all(after[key] == before[key] for key in kept if '1e+25' not in key[0])


def test_too_large_for_a_device(sweep):
  workdir, names = sweep('small', RATES[:2])
  make, made = small_layouts('step', 0)
  assert train(workdir, names, make)
  found = result(workdir, names[0])
  assert made == [4, 2, 1] and found.status == 'failed'
  assert 'RESOURCE_EXHAUSTED' in found.error
  assert 'config.parallel.microbatches' in found.error.splitlines()[-1]
  assert result(workdir, names[1]).status == 'diverged'  # before it reaches that step


def test_out_of_memory_while_loading_paused(sweep):
  """The paused run stays in the list of paused runs, and so is trained in the end."""
  undisturbed, names = sweep('undisturbed', RATES[::2])
  assert train(undisturbed, names)
  workdir, _ = sweep('paused', RATES[::2])
  run = run_files.run_dir(workdir, names[0])
  requests.write_request(run, Action('pause'), 'ann', '')
  poll = Poll(at_6=lambda: requests.write_request(run, Action('continue'), 'ann', ''))
  made = []

  class Late(StubLayout):
    def __init__(self, members):
      super().__init__(members)
      made.append(members)

    def init(self, hparams):
      if poll.count >= 6 and self.members > 2:
        out_of_memory()
      return super().init(hparams)

  assert train(workdir, names, stub_layouts(Late), interrupted=poll)
  assert made == [4, 2]
  assert outcomes(workdir, names) == outcomes(undisturbed, names)


def test_no_layout(sweep):
  workdir, names = sweep('small', RATES[:2])
  make, _ = small_layouts('init', 0)
  assert train(workdir, names, make)
  assert result(workdir, names[0]).status == 'failed'
  assert result(workdir, names[1]) is None  # it was never asked for


def test_no_smaller_layout(sweep):
  """The first run, which ended in the larger one, keeps its result."""
  workdir, names = sweep('small', RATES[1::-1])

  class Small(StubLayout):
    def __init__(self, members):
      super().__init__(members)
      if members < 4:
        out_of_memory()

    def step(self, state, kind, steps=1):
      if any(run is not None and run['step'] >= 16 for run in state):
        out_of_memory()
      return super().step(state, kind, steps)

  assert train(workdir, names, stub_layouts(Small))
  assert statuses(workdir, names) == ['diverged', 'failed']


def test_no_layout_for_paused(sweep):
  workdir, names = sweep('small', RATES[:1])
  make, _ = small_layouts('init', 0)
  paused = PausedRuns(workdir, deadlines={names[0]: 0.0})
  assert train(workdir, names, make, paused)
  assert result(workdir, names[0]).status == 'failed' and paused.deadlines == {}


def test_max_members(sweep):
  workdir, names = sweep('small')
  make, made = small_layouts('step', 2)
  assert train(workdir, names, make, max_members=2)
  assert made == [2]


def test_diverged_neighbour(sweep):
  workdir, names = sweep('together')
  assert train(workdir, names)
  alone, _ = sweep('alone')
  for name in names:
    assert train(alone, [name])
  assert outcomes(alone, names) == outcomes(workdir, names)
