"""The training loop on compiled layouts: results, resumes, failures."""

import json
import resource
from pathlib import Path

import jax
import pytest
from helpers.training import (
    POPULATION,
    Killed,
    Training,
    TwoProcesses,
    WatchedLayout,
    cached_layout,
    kill,
    numbers,
)

from stability import hyper
from stability.data import tokens
from stability.devices.make_layout import make_layout
from stability.storage import run_files

LAYOUTS = {'single': {}, 'population': POPULATION}
RATES = [1e-3, 1e-2, 1e-1]


def probed_steps(run):
  return [row['step'] for row in numbers(run)[:-1] if 'block_0/attention_logit_max' in row]


def statuses(runs):
  return [run_files.read_result(run).status for run in runs]


@pytest.mark.slow
def test_runs(sweep, train):
  runs = sweep(RATES)
  train(*runs)
  for run in runs:
    rows, result = numbers(run)[:-1], run_files.read_result(run)
    assert [row['step'] for row in rows] == list(range(2, 25, 2))
    assert [row['tokens'] for row in rows] == [row['step'] * 64 for row in rows]
    assert probed_steps(run) == [4, 8, 12, 16, 20, 24]
    assert result.status == 'done' and result.error is None
    assert (result.steps, result.tokens) == (24, 1536)
    assert result.parameters == 12 * 16**2
    assert rows[-1]['learning_rate'] == pytest.approx(1e-5)
  results = [run_files.read_result(run) for run in runs]
  assert len({result.initial_loss for result in results}) == 1
  assert len({result.final_loss for result in results}) == 3


@pytest.mark.slow
def test_sharpness(sweep, train):
  """Measured at its own interval; it changes no results."""
  (run,) = sweep(**{'probe.sharpness_every_steps': 8})
  (without,) = sweep()
  train(run)
  train(without)
  rows = numbers(run)[:-1]
  assert [row['step'] for row in rows if 'critical_sharpness' in row] == [8, 16, 24]
  assert probed_steps(run) == [4, 8, 12, 16, 20, 24]
  assert rows[-1]['loss'] == pytest.approx(numbers(without)[-2]['loss'], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'layout', ['single', pytest.param('population', marks=pytest.mark.slow)]
)
def test_resume_after_kill(sweep, train, layout):
  undisturbed, runs = sweep(RATES, **LAYOUTS[layout]), sweep(RATES, **LAYOUTS[layout])
  train(*undisturbed)
  train.at(runs[0], 10, kill)
  with pytest.raises(Killed):
    train(*runs)
  assert (runs[0] / 'checkpoints' / '6').is_dir() and run_files.read_result(runs[0]) is None
  train(*runs)
  assert [numbers(run) for run in runs] == [numbers(run) for run in undisturbed]


@pytest.mark.slow
def test_what_a_killed_trainer_has_left_is_removed(sweep, train):
  (run,) = sweep()
  for name in ('metrics.jsonl', 'parameters.safetensors', 'config.json'):
    (run / f'.{name}.0123abcd.tmp').touch()
  train(run)
  # A launcher may be writing this one now.
  assert [path.name for path in run.glob('.*')] == ['.config.json.0123abcd.tmp']


def test_diverged(sweep, train):
  runs = sweep([1e30, 1e-2])
  train(*runs)
  rows, result = numbers(runs[0])[:-1], run_files.read_result(runs[0])
  assert result.status == 'diverged' and result.final_loss is None
  assert rows[-1]['loss'] is None and all(row['loss'] is not None for row in rows[:-1])
  assert rows[-1]['step'] == result.steps + 1 < 24  # the update of the last row was not made
  assert result.tokens == rows[-1]['tokens'] == result.steps * 64
  assert statuses(runs) == ['diverged', 'done']
  json.loads((runs[0] / 'result.json').read_text())


def test_final_loss_above_initial(sweep, train):
  (run,) = sweep([50.0])
  train(run)
  result = run_files.read_result(run)
  assert result.final_loss > result.initial_loss and result.status == 'diverged'
  assert result.steps == 24


@pytest.mark.slow
@pytest.mark.parametrize('layout', LAYOUTS)
def test_failure_while_loading(sweep, train, layout):
  runs = sweep(RATES, **LAYOUTS[layout])
  (runs[1] / 'metrics.jsonl').mkdir()
  train(*runs, may_fail=True)
  assert statuses(runs) == ['done', 'failed', 'done']
  error = run_files.read_result(runs[1]).error
  assert 'Traceback' in error and 'Is a directory' in error


def test_processes_that_read_different_checkpoints(sweep, train):
  class OtherAtStep6(TwoProcesses):
    def min(self, value):
      return min(value, 6 if value > 0 else -6)

  (run,) = sweep()
  train.at(run, 14, kill)
  with pytest.raises(Killed):
    train(run)
  Training(processes=OtherAtStep6())(run, may_fail=True)
  error = run_files.read_result(run).error
  assert 'its processes do not resume from the same step, but from 6 to 12: a host' in error


@pytest.mark.parametrize('kind', [RuntimeError, jax.errors.JaxRuntimeError])
def test_failure_while_training(sweep, kind):
  runs, reads = sweep(RATES), []

  def fail():
    reads.append(True)
    if len(reads) == 3:
      raise kind('INTERNAL: no result')

  def watched(*arguments):
    return WatchedLayout(cached_layout(*arguments), fail)

  Training(make_layout=watched)(*runs, may_fail=True)
  assert statuses(runs) == ['failed', 'done', 'done']
  assert 'no result' in run_files.read_result(runs[0]).error


def test_lost_device(sweep, monkeypatch):
  """The process ends and no run has failed: another process continues them."""
  runs, reads = sweep(RATES), []

  def refuse(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: illegal address')

  def lose_device():
    reads.append(True)
    if len(reads) == 3:
      monkeypatch.setattr(jax, 'device_put', refuse)
      refuse()

  def watched(*arguments):
    return WatchedLayout(cached_layout(*arguments), lose_device)

  with pytest.raises(jax.errors.JaxRuntimeError, match='illegal address'):
    Training(make_layout=watched)(*runs, may_fail=True)
  assert [run_files.read_result(run) for run in runs] == [None] * 3


@pytest.mark.slow
def test_more_runs_than_slots(sweep, train):
  rates = [10.0 ** (-n / 4) for n in range(4, 11)]  # seven, on three devices with a slot each
  runs, alone = sweep(rates, **POPULATION), sweep(rates, **POPULATION)
  train(*runs)
  assert statuses(runs) == ['done'] * 7
  train(alone[5])
  assert numbers(alone[5]) == numbers(runs[5])


@pytest.mark.slow
def test_out_of_phase(sweep, train):
  """A run waits for a probe of the runs in the other slots.

  The first run ends after 18 steps, between two probes of the others; the fourth takes its slot two
  steps later.
  """
  steps = hyper.sweep('schedule.steps', [18, 20, 22])
  points = hyper.product([hyper.sweep('seed', [0, 1, 2]), steps])
  runs, alone = sweep(points=points, **POPULATION), sweep(points=points, **POPULATION)
  train(*runs)
  assert statuses(runs) == ['done'] * 9
  train(alone[3])
  assert numbers(alone[3]) == numbers(runs[3])


@pytest.mark.slow
def test_entropy_rate(sweep, train, data):
  """Synthetic text is learned, and no loss is below its entropy rate."""
  fields = {
      'model.width': 32,
      'schedule.steps': 400,
      'schedule.warmup_steps': 20,
      'data.batch_size': 16,
      'data.validation_batches': 64,
      'log.every_steps': 100,
      'probe.every_steps': 0,
      'checkpoint.every_steps': 0,
  }
  (run,) = sweep(**fields)
  train(run)
  meta = tokens.open_tokens(data).meta
  final_loss = run_files.read_result(run).final_loss
  assert final_loss > meta['entropy_rate'] - 3 / (64 * 16 * 16) ** 0.5  # about 1 nat a token
  assert final_loss < meta['entropy_rate'] + 0.35 < meta['unigram_loss']


class Limited:
  """A layout whose steps run with a limit on the memory of the process."""

  def __init__(self, layout, room):
    self._layout, self._room = layout, room

  def __getattr__(self, name):
    return getattr(self._layout, name)

  def step(self, state, kind, steps=1):
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    limit = used + self._room[0] if self._room else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
      state, metrics = self._layout.step(state, kind, steps)
      metrics.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return state, metrics


@pytest.mark.slow
def test_resumed_run_has_a_population_as_wide_as_before(sweep, monkeypatch):
  """The last of three runs is resumed in a population for three: widths round differently."""
  fields = {'parallel.layout': 'population'}
  device = jax.devices()[:1]
  monkeypatch.setattr(jax, 'local_devices', lambda: device)
  made = {}

  def make(workdir, sweep, static, hparams, runs, *more):
    if runs not in made:
      made[runs] = make_layout(workdir, sweep, static, hparams, runs, *more)
    return made[runs]

  points = hyper.zipit([hyper.sweep('schedule.steps', [8, 8, 24]), hyper.sweep('seed', range(3))])
  undisturbed, runs = (sweep(points=points, **fields) for _ in range(2))
  Training(make_layout=make)(*undisturbed)
  train = Training(make_layout=make)
  train.at(runs[2], 12, kill)
  with pytest.raises(Killed):
    train(*runs)
  assert [run_files.read_result(run) is None for run in runs] == [False, False, True]
  Training(make_layout=make, runs=1)(runs[2])
  assert {runs: layout.width for runs, layout in made.items()} == {3: 3}
  assert [numbers(run) for run in runs] == [numbers(run) for run in undisturbed]


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='reads /proc')
def test_out_of_memory(sweep, monkeypatch, caplog):
  """JAX runs out of memory with four runs in two thirds of what they need; two fit."""
  fields = {
      'parallel.layout': 'population',
      'parallel.members': 4,
      'data.batch_size': 512,  # 200 MB per run
      'model.width': 32,
      'schedule.steps': 4,
      'probe.every_steps': 0,
  }
  made, room = {}, []
  device = jax.devices()[:1]
  monkeypatch.setattr(jax, 'local_devices', lambda: device)

  def limited(workdir, sweep, static, hparams, runs, max_members, on_members):
    if max_members not in made:
      arguments = workdir, sweep, static, hparams, runs, max_members, on_members
      made[max_members] = make_layout(*arguments)
    return Limited(made[max_members], room)

  train = Training(make_layout=limited)
  rates = [1e-3, 3e-3, 1e-2, 3e-2]
  undisturbed, runs = sweep(rates, **fields), sweep(rates, **fields)
  train(*undisturbed)
  room.append(int(made[None].memory() * 2 / 3))
  train(*runs)
  assert list(made) == [None, 2]
  assert 'out of memory with 4 runs per device: trying 2' in caplog.text
  for run, other in zip(runs, undisturbed, strict=True):  # another program rounds differently
    for line, expected in zip(numbers(run), numbers(other), strict=True):
      assert line.keys() == expected.keys()
      for name, value in expected.items():
        close = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
        assert line[name] == close, (run, name)
