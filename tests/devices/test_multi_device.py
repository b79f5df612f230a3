"""Batches in parts: microbatches, and one run over all devices, compared with one device.

Sums in another order round differently: states after four steps agree within 2e-6 of each tensor's
norm, metrics within 2e-5 (seen: 3e-7, 3e-6).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.data import batches
from stability.data.host_batcher import HostBatcher
from stability.devices import hlo, multi_device
from stability.devices.multi_device import DataParallelLayout, ShardedLayout
from stability.devices.single_device import SingleDeviceLayout
from stability.devices.vmapped import VmappedLayout
from stability.model.measure import Measured
from stability.step import gradients, train_step

pytestmark = pytest.mark.slow

SMALL = {
    'data.batch_size': 16,
    'data.sequence_length': 8,
    'model.width': 16,
    'model.head_dim': 8,
    'model.depth': 1,
    'optimizer.learning_rate': 1e-3,
    'optimizer.clip_norm': 0.1,  # so that the gradient's norm, and not its direction alone, counts
}


@pytest.fixture(scope='module')
def run(tiny):
  return tiny(SMALL)


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  return {
      'text': (64 * rng.random(2_001) ** 2).astype(np.uint8),
      'validation': (64 * rng.random((2, 16, 9)) ** 2).astype(np.uint8),
  }


def four_steps(layout, run):
  """State, metrics of a quiet and of a probed step, and the validation loss after four steps."""
  state = layout.insert(layout.empty(), 0, layout.init(run.hparams))
  state, quiet = layout.step(state, 'quiet', 2)
  state, probed = layout.step(state, 'probed')
  state, _ = layout.step(state, 'quiet')
  return layout.extract(state)[0], quiet.read()[0], probed.read()[0], layout.evaluate(state)[0]


@pytest.fixture(scope='module')
def whole(run, data):
  """The results of one device with whole batches."""
  programs = train_step.programs(run.static, 64)
  return four_steps(SingleDeviceLayout(programs, data, run.hparams), run)


def made(kind, run, data, **options):
  programs = train_step.programs(run.static, 64, **options)
  if kind == 'population':
    return VmappedLayout(programs, data, run.hparams, jax.devices()[:1], members=2)
  one = {
      'data_parallel': DataParallelLayout,
      'sharded': ShardedLayout,
  }[kind]
  return one(programs, data, run.hparams, jax.devices())


@pytest.fixture(
    scope='module',
    params=[
        pytest.param(('population', {'microbatches': 2}), marks=pytest.mark.slow),
        pytest.param(('data_parallel', {'microbatches': 2}), marks=pytest.mark.slow),
        ('sharded', {'microbatches': 2, 'remat': True}),
    ],
    ids=lambda param: param[0],
)
def layout(request, run, data):
  kind, options = request.param
  return made(kind, run, data, **options)


def test_whole_batch(layout, run, whole):
  state, quiet, probed, loss = four_steps(layout, run)
  pairs = zip(jax.tree.leaves_with_path(state), jax.tree.leaves_with_path(whole[0]), strict=True)
  for (path, ours), (_, theirs) in pairs:
    error = np.linalg.norm(np.float64(ours) - theirs)
    assert error <= 2e-6 * np.linalg.norm(np.float64(theirs)), path
  for ours, theirs in ((quiet, whole[1]), (probed, whole[2])):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      assert ours[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
  assert loss == pytest.approx(whole[3], rel=2e-6)


def test_extract_and_insert(layout, run):
  straight = four_steps(layout, run)
  state, _ = layout.step(layout.insert(layout.empty(), 0, layout.init(run.hparams)), 'quiet', 2)
  state = layout.insert(layout.empty(), 0, layout.extract(state)[0])
  state, _ = layout.step(state, 'probed')
  state, _ = layout.step(state, 'quiet')
  pairs = zip(jax.tree.leaves(layout.extract(state)[0]), jax.tree.leaves(straight[0]), strict=True)
  assert all(np.array_equal(a, b) for a, b in pairs)
  assert layout.evaluate(state)[0] == straight[3]


def test_shardings(layout, run):
  """A parameter is split over the eight devices or replicated, before and after a step."""
  if not isinstance(layout, DataParallelLayout | ShardedLayout):
    pytest.skip('a layout of one device')
  state = layout.insert(None, 0, layout.init(run.hparams))
  for steps in (0, 1):
    if steps:
      state, _ = layout.step(state, 'quiet', steps)
    for path, array in jax.tree.leaves_with_path(state['params']):
      parts = [shard.data.size for shard in array.addressable_shards]
      splits = isinstance(layout, ShardedLayout)
      assert parts == [array.size // (8 if splits else 1)] * 8, path


def test_sharded_layout_moves_weights(tiny):
  """Each weight some times, and no activation, which are much larger here.

  The devices do not divide the vocabulary, so embedding and head are split by features.
  """
  changes = {'data.batch_size': 256, 'model.width': 64, 'probe.every_steps': 0}
  run = tiny(SMALL | changes | {'data.sequence_length': 64})
  programs = train_step.programs(run.static, 1_001)
  spread = multi_device.Split(jax.devices())
  state = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=spread.sharding(a)),
      jax.eval_shape(programs.init, run.hparams),
  )
  rows = jax.ShapeDtypeStruct((8, 32, 65), np.int32, sharding=spread.split)
  lowered = spread.lower(spread.pack(programs.steps), programs.evaluate, rows, state)
  found = hlo.profile(lowered['quiet'].compile().as_text())
  weights = sum(p.size * 4 for p in jax.tree.leaves(state['params']))
  moved = sum(each.bytes for each in found.collectives.values())
  assert weights < moved < 4 * weights
  assert 256 * 64 * run.static.model.width * 4 > 4 * weights


@pytest.mark.parametrize('microbatches', [1, 2, 8])
@pytest.mark.parametrize('devices', [1, 4])
def test_parts_of_a_batch(microbatches, devices):
  """Gradients and means are means over the parts, maxima maxima, and RMS quadratic means."""
  rng = np.random.default_rng(0)
  rows = rng.integers(100, size=(32, 3))
  params = {'w': jnp.ones(3)}

  def part(rows):
    x = rows.astype(jnp.float32)
    square = jnp.sqrt(jnp.mean(jnp.square(x)))
    measured = {
        'loss': Measured(x.mean()),
        'highest': Measured(x.max(), 'max'),
        'square': Measured(square, 'rms'),
    }
    return {'w': x.mean(0)}, measured, {'carried': x.mean()}

  axis = 'data' if devices > 1 else None
  mapped = jax.vmap(
      lambda rows: gradients.over_parts(part, rows, params, microbatches, axis), axis_name='data'
  )
  found, measured, carried = mapped(rows.reshape(devices, -1, 3))
  for n in range(devices):
    np.testing.assert_allclose(found['w'][n], rows.mean(0), rtol=1e-6)
    assert measured['loss'].value[n] == pytest.approx(rows.mean(), rel=1e-6)
    assert carried['carried'][n] == pytest.approx(rows.mean(), rel=1e-6)
    assert measured['highest'].value[n] == rows.max()
    square = np.sqrt(np.mean(np.square(rows)))
    assert measured['square'].value[n] == pytest.approx(square, rel=1e-6)


def test_host_batcher():
  text = np.random.default_rng(0).integers(200, size=500).astype(np.uint8)
  batcher = HostBatcher(text, batch_size=4, sequence_length=10, slots=3)

  def state(seed, step, steps, skipped=0):
    hparams = {'data.seed': seed, 'schedule.steps': steps}
    return {'hparams': hparams, 'step': np.int32(step), 'skipped': np.int32(skipped)}

  batcher.enter(0, state(0, 0, 100))
  batcher.enter(1, state(3, 2, 6, skipped=10))
  batcher.enter(2, state(7, 5, 9))
  drawn = np.stack([batcher.draw() for _ in range(5)], axis=1)
  assert drawn.shape == (3, 5, 4, 11) and drawn.dtype == np.int32
  # Of nine steps the last is the eighth, and of six with ten skipped the fifteenth.
  steps_of_data = (0, range(5)), (3, (12, 13, 14, 15, 15)), (7, (5, 6, 7, 8, 8))
  for slot, (seed, wanted) in enumerate(steps_of_data):
    for i, step in enumerate(wanted):
      starts = batches.window_starts(
          jnp, seed, np.int32(step), batch_size=4, sequence_length=10, tokens=500
      )
      assert np.array_equal(drawn[slot, i], batches.gather(jnp.asarray(text), starts, 10))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['single', 'population'])
def test_host_drawn_batches(kind, tiny, data):
  """Runs that join at different steps see the same batches; another program rounds differently."""
  runs = [
      tiny(SMALL | {'model.depth': 0, 'probe.every_steps': 2, 'data.seed': seed, 'seed': seed})
      for seed in range(2)
  ]
  programs = train_step.programs(runs[0].static, 64)

  def outcome(host_drawn):
    if kind == 'single':
      layout = SingleDeviceLayout(programs, data, runs[0].hparams, host_drawn)
    else:
      devices = jax.devices()[:2]
      layout = VmappedLayout(programs, data, runs[0].hparams, devices, 1, host_drawn)
    state = layout.insert(layout.empty(), 0, layout.init(runs[0].hparams))
    state, first = layout.step(state, 'quiet', 3)
    if kind == 'population':
      state = layout.insert(state, 1, layout.init(runs[1].hparams))
    state, second = layout.step(state, 'quiet', 2)
    state, third = layout.step(state, 'probed')
    rows = [fetch.read() for fetch in (first, second, third)]
    return layout.extract(state), rows, layout.evaluate(state)

  ours, theirs = (jax.tree.leaves(outcome(host_drawn)) for host_drawn in (True, False))
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('remat', [False, True])
def test_remat(remat, tiny, text):
  run = tiny(SMALL | {'model.depth': 3, 'data.batch_size': 4, 'data.sequence_length': 16})
  programs = train_step.programs(run.static, 64, remat=remat)
  state = jax.eval_shape(programs.init, run.hparams)
  for step in programs.steps.values():
    printed = str(jax.make_jaxpr(step)(text, state))
    assert printed.count('= remat2[') + printed.count('= checkpoint[') == (3 if remat else 0)
