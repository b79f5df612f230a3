"""The loop over a population, through a sweep's files: results, resumes, failures."""

import json
import resource
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import made_up

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.data import tokens
from stability.devices import layout as layout_lib
from stability.devices import make_layout as make_layout_lib
from stability.optim import optimizers
from stability.storage import checkpoints, results_csv, run_files, sweeps
from stability.trainer import run as run_lib
from stability.trainer import trainer

FIELDS = {
    'data.batch_size': 4,
    'data.sequence_length': 16,
    'data.validation_batches': 2,
    'data.source': 'synthetic',
    'model.width': 32,
    'model.depth': 1,
    'schedule.steps': 20,
    'schedule.warmup_steps': 2,
    'log.every_steps': 2,
    'probe.every_steps': 4,
    'checkpoint.every_steps': 8,
}
WALL_CLOCK = {'seconds', 'tokens_per_second'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of token files, shared by the sweeps."""
  directory = tmp_path_factory.mktemp('data')
  config = base.get_config().data
  config.source = 'synthetic'
  return tokens.prepare(config, directory, 16)


@pytest.fixture
def sweep(tmp_path, data):
  """A function that writes a sweep's files: points, fields -> workdir, run names."""

  def write(points, **fields):
    flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS | fields
    runs = hyper.expand(config_lib.unflatten(flat), points)
    workdir = tmp_path / f'sweep-{len(list(tmp_path.iterdir()))}'
    about = {'path': str(data), **tokens.open_tokens(data).meta}
    made_up.write_runs(workdir, runs, about)
    return workdir, list(runs.configs)

  return write


LAYOUTS = {}


@pytest.fixture(autouse=True)
def one_layout_for_all(monkeypatch):
  """Three devices, and the layout of a static config compiled once for all tests."""
  make, devices = trainer.make_layout, jax.local_devices()[:3]

  def cached(workdir, sweep, static, example, *more):
    if static not in LAYOUTS:
      LAYOUTS[static] = make(workdir, sweep, static, example, *more)
    return LAYOUTS[static]

  monkeypatch.setattr(trainer, 'make_layout', cached)
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)


def train(workdir, names):
  waiting = iter(names)
  sweep = sweeps.read_sweep(workdir)
  trainer.train_runs(workdir, sweep, next(waiting), lambda: next(waiting, None))


def result(workdir, name):
  return run_files.read_result(run_files.run_dir(workdir, name))


def metrics(workdir, name):
  """The lines of a run without wall-clock values."""
  lines = run_files.read_metrics(run_files.run_dir(workdir, name))
  return [{key: line[key] for key in line if key not in WALL_CLOCK} for line in lines]


def outcome(workdir, name):
  """All of a run that must not depend on how it was trained."""
  found = result(workdir, name)
  return metrics(workdir, name), {key: found[key] for key in found if key not in WALL_CLOCK}


LAYOUT = {
    'single': {},
    'population': {'parallel.layout': 'population', 'parallel.members': 1},
}
RATES = hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 1e-1])


def test_a_row_of_runs(sweep):
  workdir, names = sweep(RATES)
  train(workdir, names)
  for name in names:
    lines = metrics(workdir, name)
    assert [line['step'] for line in lines] == list(range(2, 21, 2))
    probed = [line['step'] for line in lines if 'block_0/attention_logit_max' in line]
    assert probed == [4, 8, 12, 16, 20]
    assert [line['tokens'] for line in lines] == [line['step'] * 64 for line in lines]
    found = result(workdir, name)
    assert found.status == 'done' and found.error is None
    assert (found.steps, found.tokens) == (20, 1280)
    assert found.parameters == 12 * 32**2
  rows = results_csv.read_results(workdir)
  assert len({row['initial_loss'] for row in rows}) == 1
  assert len({row['final_loss'] for row in rows}) == 3
  final_rates = [metrics(workdir, name)[-1]['learning_rate'] for name in names]
  assert final_rates == pytest.approx([1e-5] * 3)


def test_sharpness_falls_on_its_own_steps_and_changes_no_results(sweep):
  workdir, names = sweep(RATES, **{'probe.sharpness_every_steps': 8})
  train(workdir, names[:1])
  lines = metrics(workdir, names[0])
  assert [line['step'] for line in lines if 'critical_sharpness' in line] == [8, 16]
  probed = [line['step'] for line in lines if 'block_0/attention_logit_max' in line]
  assert probed == [4, 8, 12, 16, 20]
  without, _ = sweep(RATES)
  train(without, names[:1])
  assert lines[-1]['loss'] == pytest.approx(metrics(without, names[0])[-1]['loss'], rel=1e-5)


def test_runs_keep_in_step_with_each_others_sharpness(sweep):
  workdir, names = sweep(RATES, **{'probe.sharpness_every_steps': 8})
  # The layout is that of the test before; nothing is trained.
  one = trainer.Trainer(workdir, sweeps.read_sweep(workdir), names[0], {})
  one.load_run(names[0])
  assert one.fill_slot()
  other, _ = one._load(run_files.run_dir(workdir, names[1]), False)
  phases = []
  for other.step in (0, 4, 8, 12, 16):
    phases.append(one.is_in_phase(other))
  assert phases == [True, False, True, False, True]


@pytest.mark.parametrize('name', ['adamw', 'stable_adamw', 'lion', 'muon', 'adafactor'])
def test_the_state_of_every_optimizer_survives_a_checkpoint(tmp_path, tiny, name):
  """Bit for bit, and in its own structure: of Optax's tuples, some of them without leaves."""
  run = tiny({'optimizer.name': name})
  rng = np.random.default_rng(0)
  params = {
      'embedding': rng.normal(size=(6, 4)),
      'block_0': {'mlp': {'up': rng.normal(size=(128, 129))}},  # as Adafactor factors
      'final_norm': {'scale': np.ones(4)},
  }
  params = jax.tree.map(np.float32, params)
  transformation = optimizers.make_optimizer(run.hparams, run.static)
  _, state = transformation.update(params, transformation.init(params), params)
  state = jax.device_get({'params': params, 'optimizer': state, 'step': np.int32(3)})
  arrays = run_lib.named(state)
  assert len(arrays) == len(jax.tree.leaves(state))
  checkpoints.save(tmp_path, 3, arrays, {}, keep=1)
  _, restored, _ = checkpoints.restore(tmp_path)
  empty = jax.tree.map(np.zeros_like, state)
  again = run_lib.unnamed(empty, restored)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


@pytest.mark.parametrize('layout', ['single', 'population'])
def test_a_run_resumed_ends_as_one_never_stopped(sweep, layout, monkeypatch):
  fields = LAYOUT[layout]
  undisturbed, names = sweep(RATES, **fields)
  train(undisturbed, names)
  stopped, _ = sweep(RATES, **fields)

  class Stop(BaseException):
    """As a kill would: nothing in the loop handles it."""

  read, reads = layout_lib.PendingMetrics.read, []

  def read_until(self):
    reads.append(self)
    if len(reads) == 6:  # step 12 is on its way; the last checkpoint is of step 8
      raise Stop
    return read(self)

  monkeypatch.setattr(layout_lib.PendingMetrics, 'read', read_until)
  with pytest.raises(Stop):
    train(stopped, names)
  monkeypatch.undo()
  assert (run_files.run_dir(stopped, names[0]) / 'checkpoints' / '8').is_dir()
  assert result(stopped, names[0]) is None
  train(stopped, names)
  for name in names:
    assert outcome(stopped, name) == outcome(undisturbed, name)


def test_a_run_that_diverges_is_a_result_and_the_others_go_on(sweep):
  workdir, names = sweep(hyper.sweep('optimizer.learning_rate', [1e30, 1e-2]))
  train(workdir, names)
  found = result(workdir, names[0])
  assert found.status == 'diverged' and found.final_loss is None
  lines = metrics(workdir, names[0])
  assert lines[-1]['loss'] is None and all(line['loss'] is not None for line in lines[:-1])
  assert lines[-1]['step'] == found.steps < 20
  assert found.tokens == found.steps * 64
  assert result(workdir, names[1]).status == 'done'
  json.loads((run_files.run_dir(workdir, names[0]) / 'result.json').read_text())


def test_a_run_that_ends_above_its_initial_loss_has_diverged(sweep):
  workdir, names = sweep(hyper.sweep('optimizer.learning_rate', [50.0]))
  train(workdir, names)
  found = result(workdir, names[0])
  assert found.final_loss > found.initial_loss and found.status == 'diverged'
  assert found.steps == 20


@pytest.mark.parametrize('layout', ['single', 'population'])
def test_a_run_whose_set_up_fails_is_recorded_and_the_others_go_on(sweep, layout, monkeypatch):
  workdir, names = sweep(RATES, **LAYOUT[layout])
  writer = run_lib.MetricsWriter

  def broken(folder, *arguments):
    if folder.name == names[1]:
      raise OSError('no room here')
    return writer(folder, *arguments)

  monkeypatch.setattr(run_lib, 'MetricsWriter', broken)
  train(workdir, names)
  found = result(workdir, names[1])
  assert found.status == 'failed'
  assert 'Traceback' in found.error and 'no room here' in found.error
  assert [result(workdir, names[n]).status for n in (0, 2)] == ['done', 'done']


def test_what_fails_while_training_fails_those_runs_alone(sweep, monkeypatch):
  workdir, names = sweep(RATES)
  read, reads = layout_lib.PendingMetrics.read, []

  def read_once_broken(self):
    reads.append(self)
    if len(reads) == 3:
      raise RuntimeError('device lost')
    return read(self)

  monkeypatch.setattr(layout_lib.PendingMetrics, 'read', read_once_broken)
  train(workdir, names)
  statuses = [result(workdir, name).status for name in names]
  assert statuses == ['failed', 'done', 'done']
  assert 'device lost' in result(workdir, names[0]).error


def test_more_runs_than_slots(sweep):
  fields = LAYOUT['population']
  points = hyper.sweep('optimizer.learning_rate', [10.0 ** (-n / 4) for n in range(4, 11)])
  workdir, names = sweep(points, **fields)
  assert len(names) == 7  # on three devices of one member each
  train(workdir, names)
  assert [result(workdir, name).status for name in names] == ['done'] * 7
  alone, _ = sweep(points, **fields)
  train(alone, names[5:6])
  assert outcome(alone, names[5]) == outcome(workdir, names[5])


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='reads /proc')
def test_where_memory_runs_out_for_real_fewer_runs_share_it(sweep, monkeypatch, caplog):
  """Steps are given two thirds of what four runs take: jax's own error is known for what it is."""
  fields = {
      'parallel.layout': 'population',
      'parallel.members': 4,
      'data.batch_size': 512,  # 200 MB a run
      'schedule.steps': 4,
      'probe.every_steps': 0,
  }
  points = hyper.sweep('optimizer.learning_rate', [1e-3, 3e-3, 1e-2, 3e-2])
  make, made, room = make_layout_lib.make_layout, {}, [0]
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:1])

  def tight(*arguments):
    most = arguments[4]
    if most not in made:
      made[most] = make(*arguments)
    found, step = made[most], type(made[most]).step

    def limited(state, kind, steps):
      used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
      limit = used + room[0] if room[0] else resource.RLIM_INFINITY
      resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
      try:
        state, fetch = step(found, state, kind, steps)
        fetch.wait()
      finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
      return state, fetch

    found.step = limited
    return found

  monkeypatch.setattr(trainer, 'make_layout', tight)
  undisturbed, names = sweep(points, **fields)
  train(undisturbed, names)
  room[0] = int(made[None].memory() * 2 / 3)
  workdir, _ = sweep(points, **fields)
  train(workdir, names)
  assert list(made) == [None, 2]
  assert 'out of memory with 4 runs on a device: tried again with 2' in caplog.text
  for name in names:
    assert outcome(workdir, name) == outcome(undisturbed, name)


def test_a_run_out_of_phase_waits_until_it_can_join(sweep):
  # The first run leaves after 18 steps, where the others are between two probes; the fourth may
  # take its slot two steps later, at their next probe.
  fields = LAYOUT['population']
  steps = hyper.sweep('schedule.steps', [18, 20, 22])
  points = hyper.product([hyper.sweep('seed', [0, 1, 2]), steps])
  workdir, names = sweep(points, **fields)
  train(workdir, names)
  assert [result(workdir, name).status for name in names] == ['done'] * 9
  alone, _ = sweep(points, **fields)
  train(alone, names[3:4])
  assert outcome(alone, names[3]) == outcome(workdir, names[3])


def test_synthetic_text_is_learned_but_never_below_its_entropy_rate(sweep, data):
  meta = tokens.open_tokens(data).meta
  fields = {
      'schedule.steps': 400,
      'schedule.warmup_steps': 20,
      'data.batch_size': 16,
      'data.validation_batches': 64,
      'log.every_steps': 100,
      'probe.every_steps': 0,
      'checkpoint.every_steps': 0,
  }
  workdir, names = sweep(hyper.sweep('optimizer.learning_rate', [1e-2]), **fields)
  train(workdir, names)
  final_loss = result(workdir, names[0]).final_loss
  tokens_measured = 64 * 16 * 16
  assert final_loss > meta['entropy_rate'] - 3 / tokens_measured**0.5  # about 1 nat a token
  assert final_loss < meta['entropy_rate'] + 0.35 < meta['unigram_loss']
