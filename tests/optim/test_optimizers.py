"""Schedules, weight decay, clipping, and properties of each optimizer.

test_reference.py compares whole updates with PyTorch.
"""

import functools
import itertools

import jax
import numpy as np
import pytest

from stability.optim import apply, optimizers
from stability.optim import schedules as schedules_lib

RATES = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]

SCHEDULES = {
    'paper': (1e-2, 1e-5, 5_000, 100_000),
    'cpu': (1e-2, 1e-5, 25, 500),
    'no warm-up': (0.3, 1e-5, 0, 300),
    'all warm-up': (0.1, 1e-5, 40, 40),
    'to zero': (0.1, 0.0, 3, 200),
    'one update': (0.1, 1e-3, 0, 1),
    'constant': (1e-3, 1e-3, 0, 50),
}


def hyper_of(rate, lowest, warmup, steps, decay_steps=0, **others):
  hparams = {
      'optimizer.learning_rate': np.float32(rate),
      'schedule.min_learning_rate': np.float32(lowest),
      'schedule.warmup_steps': np.int32(warmup),
      'schedule.steps': np.int32(steps),
      'schedule.decay_steps': np.int32(decay_steps),
  }
  return hparams | {f'optimizer.{name}': np.float32(value) for name, value in others.items()}


@pytest.fixture(scope='module')
def schedules(tiny):
  """Functions that return the learning rates of updates 1, 2 ... steps, by schedule shape."""

  def of_shape(shape):
    static = tiny({'schedule.shape': shape, 'schedule.decay_steps': 0}).static
    rate = functools.partial(schedules_lib.learning_rate, static=static)
    compiled = jax.jit(jax.vmap(rate, (None, 0)))

    def rates(hparams):
      steps = np.arange(1, hparams['schedule.steps'] + 1, dtype=np.int32)
      return np.asarray(compiled(hparams, steps))

    return rates

  return {shape: of_shape(shape) for shape in ('cosine', 'linear', 'wsd', 'rsqrt')}


@pytest.fixture(scope='module')
def schedule(schedules):
  """The function of the default shape."""
  return schedules['cosine']


@pytest.mark.parametrize('case', SCHEDULES)
def test_schedule_formula(schedule, case):
  rate, lowest, warmup, steps = SCHEDULES[case]
  step = np.arange(1, steps + 1)
  progress = (step - warmup) / max(steps - warmup, 1)
  cosine = lowest + (rate - lowest) * (1 + np.cos(np.pi * progress)) / 2
  expected = np.where(step < warmup, rate * step / max(warmup, 1), cosine)
  got = schedule(hyper_of(*SCHEDULES[case]))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7 * rate)


@pytest.mark.parametrize('case', SCHEDULES)
def test_schedule_rises_then_falls(schedule, case):
  rate, _, warmup, _ = SCHEDULES[case]
  got = schedule(hyper_of(*SCHEDULES[case]))
  assert (np.diff(got[:warmup]) > 0).all()
  assert (np.diff(got[max(warmup - 1, 0) :]) <= 1e-7 * rate).all()  # the rounding of a cosine


def test_schedule_ends_are_exact(schedule):
  """The highest rate at the end of the warm-up, the lowest at the last update, for any values."""
  rng = np.random.default_rng(0)
  for rate in 10 ** rng.uniform(-4, 0, 300):
    hparams = hyper_of(rate, rate * rng.uniform(0, 1), 7, 50)
    got = schedule(hparams)
    assert got[6] == hparams['optimizer.learning_rate'] == got.max()
    assert got[-1] == hparams['schedule.min_learning_rate']
    assert got[0] == pytest.approx(rate / 7, rel=1e-6)
  assert schedule(hyper_of(0.1, 0.0, 7, 50))[-1] == 0


def test_schedule_with_only_a_warmup(schedule):
  assert schedule(hyper_of(0.1, 1e-5, 40, 40))[-1] == np.float32(0.1)


@pytest.mark.parametrize('decay_steps', [0, 1, 13, 45])
def test_wsd_is_constant_then_linear(schedules, decay_steps):
  """After the warm-up exactly the highest rate, then a straight line to exactly the lowest."""
  rate, lowest, warmup, steps = 0.1, 1e-3, 5, 50
  got = schedules['wsd'](hyper_of(rate, lowest, warmup, steps, decay_steps))
  start = steps - decay_steps  # the last update at the highest
  np.testing.assert_allclose(got[:warmup], rate * np.arange(1, warmup + 1) / warmup, rtol=1e-6)
  np.testing.assert_array_equal(got[warmup - 1 : start], np.float32(rate))
  line = np.linspace(rate, lowest, decay_steps + 1)
  np.testing.assert_allclose(got[start - 1 :], line, rtol=1e-5)
  assert got[-1] == np.float32(lowest if decay_steps else rate)


@pytest.mark.parametrize('case', SCHEDULES)
def test_linear_formula(schedules, case):
  """A line from the highest rate, at the end of the warm-up, to exactly the lowest."""
  rate, lowest, warmup, steps = SCHEDULES[case]
  got = schedules['linear'](hyper_of(*SCHEDULES[case]))
  np.testing.assert_allclose(got[:warmup], rate * np.arange(1, warmup + 1) / warmup, rtol=1e-6)
  line = np.linspace(rate, lowest, steps - warmup + 1)[1:]
  np.testing.assert_allclose(got[warmup:], line, rtol=1e-5, atol=1e-7 * rate)
  assert got[-1] == np.float32(lowest if steps > warmup else rate)


@pytest.mark.parametrize('warmup', [0, 1, 5])
def test_rsqrt_formula(schedules, warmup):
  """Four times as many updates halve the rate; min_learning_rate is a floor."""
  got = schedules['rsqrt'](hyper_of(0.1, 0.02, warmup, 200))
  top = max(warmup, 1)
  assert got[top - 1] == got.max() == np.float32(0.1)
  for step in (top, top + 1, 2 * top):
    assert got[4 * step - 1] == pytest.approx(max(got[step - 1] / 2, 0.02), rel=1e-6)
  assert got[-1] == got.min(initial=1, where=np.arange(200) >= top) == np.float32(0.02)
  assert schedules['rsqrt'](hyper_of(0.1, 0, warmup, 200))[-1] > 0


@pytest.mark.parametrize('shape', ['linear', 'wsd', 'rsqrt'])
def test_ends_of_other_schedules_are_exact(schedules, shape):
  """No update in between is above the highest rate or below the lowest, for any values."""
  rng = np.random.default_rng(0)
  for rate in 10 ** rng.uniform(-4, 0, 100):
    hparams = hyper_of(rate, rate * rng.uniform(0, 0.3), 7, 50, 20)
    got = schedules[shape](hparams)
    assert got[6] == hparams['optimizer.learning_rate'] == got.max()
    assert got[7:].min() >= hparams['schedule.min_learning_rate']
    assert (np.diff(got[6:]) <= 0).all()
    if shape != 'rsqrt':
      assert got[-1] == hparams['schedule.min_learning_rate']


@pytest.fixture(scope='module')
def apply_updates(tiny):
  """Parameters after update number `step`, by kind of weight decay or shape of the schedule."""

  def with_static(overrides):
    static = tiny({'schedule.decay_steps': 0} | overrides).static

    def update(params, updates, hparams, step):
      moves = apply.scale_updates(params, updates, hparams, step, static)
      return apply.apply_updates(params, moves, hparams, step, static)

    return jax.jit(update)

  kinds = {kind: {'optimizer.weight_decay_kind': kind} for kind in apply.DECAY_KINDS}
  shapes = {shape: {'schedule.shape': shape} for shape in ('wsd', 'rsqrt')}
  by_rms = {'parameter_rms': {'optimizer.learning_rate_scale': 'parameter_rms'}}
  return {name: with_static(overrides) for name, overrides in (kinds | shapes | by_rms).items()}


PARAMS = {
    'matrix': np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32),
    'norm': {'scale': np.ones(4, np.float32)},
}
ZERO_UPDATES = jax.tree.map(np.zeros_like, PARAMS)


@pytest.mark.parametrize('shape', ['independent', 'wsd', 'rsqrt'])
def test_independent_decay_ignores_the_learning_rate(apply_updates, shape):
  """Bit for bit, at every step of a schedule that ends at zero."""

  def decayed(rate, step):
    hparams = hyper_of(rate, 0.0, 5, 50, 17, weight_decay=0.1)
    new = apply_updates[shape](PARAMS, ZERO_UPDATES, hparams, np.int32(step))
    return np.concatenate([new['matrix'].ravel(), new['norm']['scale']])

  for step in range(1, 51):
    expected = decayed(RATES[0], step)
    for rate in RATES[1:]:
      np.testing.assert_array_equal(decayed(rate, step), expected)


@pytest.mark.parametrize('kind', ['independent', 'coupled'])
def test_weight_decay_follows_the_schedule(apply_updates, schedule, kind):
  """Every p loses s decay p, coupled s LR decay p, where s is the schedule in [0, 1]."""
  for rate in RATES:
    hparams = hyper_of(rate, 1e-5, 5, 20, weight_decay=0.1)
    for step, s in enumerate(schedule(hparams).astype(np.float64) / rate, start=1):
      new = apply_updates[kind](PARAMS, ZERO_UPDATES, hparams, np.int32(step))
      factor = 1 - 0.1 * s * (1 if kind == 'independent' else rate)
      np.testing.assert_allclose(new['matrix'], PARAMS['matrix'] * factor, rtol=5e-7)
      np.testing.assert_allclose(new['norm']['scale'], factor, rtol=5e-7)


def test_cautious_decay(apply_updates):
  """Only elements decay that the update moves towards 0, or not at all."""
  p = np.float32([1, -1, 1, -1, 1e-30, 0])
  u = np.float32([1, -1, -1, 1, -1e-30, 1])
  hparams = hyper_of(0.1, 0.0, 0, 50, weight_decay=0.2)
  new = apply_updates['cautious']({'p': p}, {'p': u}, hparams, np.int32(0))  # before any decrease
  decayed = np.array([0.8, -0.8, 1, -1, 1e-30, 0])
  np.testing.assert_allclose(new['p'], decayed - 0.1 * u, rtol=1e-6)
  still = apply_updates['cautious'](PARAMS, ZERO_UPDATES, hparams, np.int32(0))
  np.testing.assert_allclose(still['matrix'], 0.8 * PARAMS['matrix'], rtol=1e-6)


def test_adamc_decay(apply_updates, schedule):
  """s^2 decay p for matrices of blocks, s decay p for head, embedding and scales."""
  params = {'block_0': {'up': PARAMS['matrix'], 'scale': np.ones(3, np.float32)}}
  params |= {'embedding': PARAMS['matrix'], 'head': PARAMS['matrix']}
  hparams = hyper_of(0.1, 0.01, 5, 20, weight_decay=0.3)
  zeros = jax.tree.map(np.zeros_like, params)
  for step, s in enumerate(schedule(hparams).astype(np.float64) / 0.1, start=1):
    new = apply_updates['adamc'](params, zeros, hparams, np.int32(step))
    for path, p in jax.tree_util.tree_leaves_with_path(params):
      found = new
      for key in path:
        found = found[key.key]
      factor = s**2 if path[-1].key == 'up' else s
      np.testing.assert_allclose(found, p * (1 - 0.3 * factor), rtol=1e-6)


def test_coupled_decay_is_proportional_to_the_learning_rate(apply_updates):
  def shrinks_by(rate):
    hparams = hyper_of(rate, 0.0, 0, 50, weight_decay=0.5)
    new = apply_updates['coupled'](PARAMS, ZERO_UPDATES, hparams, np.int32(25))
    return 1 - float(new['norm']['scale'][0])

  for rate in RATES[2:]:
    assert shrinks_by(rate) / rate == pytest.approx(shrinks_by(1.0), rel=1e-3)


@pytest.mark.parametrize('kind', ['independent', 'coupled'])
def test_update_is_multiplied_by_the_learning_rate(apply_updates, kind):
  hparams = hyper_of(0.1, 0.0, 4, 50, weight_decay=0)
  new = apply_updates[kind](PARAMS, jax.tree.map(np.ones_like, PARAMS), hparams, np.int32(1))
  np.testing.assert_allclose(new['matrix'], PARAMS['matrix'] - 0.1 / 4, rtol=1e-6, atol=1e-7)


def test_parameter_rms_scales_the_update_but_not_the_decay(apply_updates):
  """The factor is the RMS of each tensor, but at least 1e-3, so that zeros can change."""
  tiny_matrix = np.float32([[1e-5, -1e-5]])
  params = PARAMS | {'tiny': tiny_matrix, 'zero': np.zeros(3, np.float32)}
  ones = jax.tree.map(np.ones_like, params)
  hparams = hyper_of(0.1, 0.0, 0, 50, weight_decay=0.2)
  new = apply_updates['parameter_rms'](params, ones, hparams, np.int32(0))  # before any decrease
  rms = np.sqrt(np.mean(np.square(PARAMS['matrix'])))
  np.testing.assert_allclose(new['matrix'], 0.8 * params['matrix'] - 0.1 * rms, rtol=1e-5)
  np.testing.assert_allclose(new['norm']['scale'], 0.8 - 0.1, rtol=1e-6)
  np.testing.assert_allclose(new['tiny'], 0.8 * tiny_matrix - 0.1 * 1e-3, rtol=1e-6)
  np.testing.assert_allclose(new['zero'], -0.1 * 1e-3, rtol=1e-6)


@pytest.fixture(scope='module')
def directions(tiny):
  """Functions that yield the directions of successive updates of ones, by optimizer."""

  def of(name):
    static = tiny({'optimizer.name': name}).static

    @jax.jit
    def update(hparams, gradients, state):
      optimizer = optimizers.make_optimizer(hparams, static)
      params = jax.tree.map(jax.numpy.ones_like, gradients)
      return optimizer.update(gradients, state, params, learning_rate=np.float32(1))

    def directions(hparams, *gradients):
      params = jax.tree.map(np.ones_like, gradients[0])
      state = optimizers.make_optimizer(hparams, static).init(params)
      for g in gradients:
        direction, state = update(hparams, g, state)
        yield direction

    return directions

  names = tuple(optimizers.OPTIMIZERS)
  return {name: of(name) for name in names}


@pytest.fixture(scope='module')
def first_direction(directions):
  """A function that returns the direction of AdamW's first update."""
  return lambda hparams, gradients: next(directions['adamw'](hparams, gradients))


def adam(eps, clip_norm):
  return {
      'optimizer.beta1': np.float32(0.9),
      'optimizer.beta2': np.float32(0.95),
      'optimizer.eps': np.float32(eps),
      'optimizer.clip_norm': np.float32(clip_norm),
  }


# Options that one optimizer alone reads.
OTHERS = {
    'optimizer.basis_every_steps': np.int32(1),
    'optimizer.beta3': np.float32(0.99),
    'optimizer.alpha': np.float32(2),
    'optimizer.restart_every_steps': np.int32(10),
    'optimizer.restart_warmup_steps': np.int32(3),
    'schedule.steps': np.int32(20),
}
# The directions of these two contain their estimate of the learning rate, which is tiny at first.
LEARNING_RATE_FREE = {'prodigy', 'dowg'}
NAMES = sorted({*optimizers.OPTIMIZERS} - LEARNING_RATE_FREE)


@pytest.mark.parametrize('eps', [1e-15, 1e-8, 1e-3])
def test_first_direction_is_the_sign_above_eps(first_direction, eps):
  gradients = np.float32([0, 1e-14, -1e-12, 1e-9, -1e-8, 1e-7, 1e-4, -1e-3, 1e-1])
  expected = gradients.astype(np.float64) / (np.abs(gradients.astype(np.float64)) + eps)
  got = first_direction(adam(eps, 0), gradients)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize('clip_norm', [0.0, 0.5, 3.0, 4.9, 5.1, 100.0])
def test_clips_the_global_norm(first_direction, clip_norm):
  """The norm is over all tensors; 0 is off. Far below eps, directions are gradients / eps."""
  gradients = {'a': np.float32([3, 0]), 'b': {'c': np.float32([[0], [-4]])}}
  got = first_direction(adam(1e6, clip_norm), gradients)
  scale = min(1, clip_norm / 5) if clip_norm else 1
  np.testing.assert_allclose(1e6 * got['a'], [3 * scale, 0], rtol=1e-5)
  np.testing.assert_allclose(1e6 * got['b']['c'], [[0], [-4 * scale]], rtol=1e-5)


@pytest.mark.parametrize('size', [1e20, 1e30])
def test_gradient_whose_norm_overflows(first_direction, size):
  """Without clipping, it passes, and Adam's second moment is infinite; with clipping, it is 0."""
  gradients = {'large': np.float32([size, -size]), 'small': np.float32([1e-3, -1e-3])}
  passed = first_direction(adam(1e-8, 0), gradients)
  np.testing.assert_array_equal(passed['large'], 0)
  np.testing.assert_allclose(passed['small'], [1, -1], rtol=1e-4)
  clipped = first_direction(adam(1e-8, 1), gradients)
  np.testing.assert_array_equal([*clipped['large'], *clipped['small']], 0)


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_tiny_gradients_do_not_explode(tiny, name):
  """A norm of such gradients may be computed as 0."""
  static, params = tiny({'optimizer.name': name}).static, noise(np.random.default_rng(0))

  @jax.jit
  def update(hparams, gradients, state):
    optimizer = optimizers.make_optimizer(hparams, static)
    return optimizer.update(gradients, state, params, learning_rate=np.float32(1))

  for clip_norm, size in itertools.product((0.0, 1.0), (0, 1e-38, 1e-31, 1e-25, 1e-19, 1e-10)):
    hparams = adam(1e-8, clip_norm) | OTHERS
    rng, state = np.random.default_rng(0), optimizers.make_optimizer(hparams, static).init(params)
    for _ in range(3):
      direction, state = update(hparams, noise(rng, size), state)
      for leaf in jax.tree.leaves(direction):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() < 5


@pytest.mark.parametrize('name', NAMES)
def test_optimizers_recover_from_a_gradient_that_overflows(directions, name):
  """With clipping it counts as 0, so that later updates are of order one."""
  rng = np.random.default_rng(0)
  gradients = [noise(rng, size) for size in (1.0, 1e20, 1.0, 1.0)]
  hparams = adam(1e-8, 1.0) | OTHERS
  *_, last = directions[name](hparams, *gradients)
  for leaf in jax.tree.leaves(last):
    assert 0.05 < np.sqrt(np.mean(np.square(leaf))) < 2


def noise(rng, size=1.0):
  shapes = {'embedding': (6, 8), 'head': (8, 6), 'block_0': {'mlp': {'up': (8, 9)}}}
  return jax.tree.map(
      lambda shape: np.float32(size * rng.normal(size=shape)),
      shapes,
      is_leaf=lambda leaf: isinstance(leaf, tuple),
  )


@pytest.mark.parametrize('name', NAMES)
def test_every_optimizer_clips_first(directions, name):
  """Gradients that are equal after clipping change the state equally."""
  small = noise(np.random.default_rng(0), 1e-2)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(small)))
  large = jax.tree.map(lambda g: 100 * g, small)
  rng = np.random.default_rng(1)
  after = [noise(rng, 1e-2) for _ in range(2)]
  hparams = adam(1e-8, norm) | OTHERS
  *_, expected = directions[name](hparams, small, *after)
  *_, got = directions[name](hparams, large, *after)
  *_, unclipped = directions[name](adam(1e-8, 0) | OTHERS, large, *after)
  for a, b, c in zip(*map(jax.tree.leaves, (expected, got, unclipped)), strict=True):
    if name != 'lion':
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert np.mean(np.abs(a - b) > 0.05) < 0.02  # a sign may flip where the average is near 0
    assert np.mean(np.abs(a - c) > 0.05) > 0.2


@pytest.mark.parametrize('name', NAMES)
def test_directions_are_of_order_one(directions, name):
  """For gradients of any size, so that one learning rate suits all optimizers."""
  rng = np.random.default_rng(0)
  for size in (1e-6, 1e-2, 1e2):
    gradients = [noise(rng, size) for _ in range(4)]
    found = list(directions[name](adam(1e-12, 0) | OTHERS, *gradients))
    for direction in found[name in ('adopt', 'soap') :]:  # whose first update moves nothing
      for leaf in jax.tree.leaves(direction):
        assert 0.05 < np.sqrt(np.mean(np.square(leaf))) < 1.5  # adopt starts below 0.1


def test_adam_atan2_is_scale_invariant(directions):
  """Gradients times 1e-12, where Adam's eps dominates, give the same directions; none exceeds 2."""
  rng = np.random.default_rng(0)
  gradients = [np.float32(rng.normal(size=100)) for _ in range(5)]
  scaled = [np.float32(1e-12) * g for g in gradients]
  plain = list(directions['adam_atan2'](adam(1e-8, 0), *gradients))
  for a, b in zip(plain, directions['adam_atan2'](adam(1e-3, 0), *scaled), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(plain[0], np.sign(gradients[0]), rtol=1e-6)
  assert max(np.abs(direction).max() for direction in plain) <= 2
  zero = next(directions['adam_atan2'](adam(1e-8, 0), np.zeros(3, np.float32)))
  np.testing.assert_array_equal(zero, 0)


def test_stable_adamw_shrinks_unexpected_updates(directions):
  """Only the update of a tensor whose gradient grows a hundredfold shrinks."""
  rng = np.random.default_rng(0)
  gradients = [{k: np.float32(rng.normal(size=50)) for k in 'ab'} for _ in range(6)]
  gradients[-1]['a'] *= 100
  *_, stable = directions['stable_adamw'](adam(1e-8, 0), *gradients)
  *_, plain = directions['adamw'](adam(1e-8, 0), *gradients)
  v = sum(
      0.05 * 0.95**i * np.square(g['a'], dtype=np.float64) for i, g in enumerate(gradients[::-1])
  ) / (1 - 0.95**6)
  surprise = np.sqrt(np.mean(np.square(gradients[-1]['a'], dtype=np.float64) / v))
  assert surprise > 1.5
  np.testing.assert_allclose(stable['a'], plain['a'] / surprise, rtol=1e-4)
  rms_b = [np.sqrt(np.mean(np.square(d['b']))) for d in (stable, plain)]
  assert rms_b[0] > 0.8 * rms_b[1]


def test_lion_updates_are_signs(directions):
  rng = np.random.default_rng(0)
  gradients = [np.float32(rng.normal(size=50)) for _ in range(3)]
  momentum = np.zeros(50)
  for g, direction in zip(gradients, directions['lion'](adam(1e-8, 0), *gradients), strict=True):
    np.testing.assert_array_equal(direction, np.sign(0.9 * momentum + 0.1 * g))
    momentum = 0.95 * momentum + 0.05 * g


def test_muon_orthogonalises_only_block_matrices(directions):
  """Singular values of blocks become similar; Adam updates embedding, head and scales."""
  rng = np.random.default_rng(0)
  shapes = {
      'query': (16, 16), 'key': (16, 16), 'value': (16, 16), 'output': (16, 16), 'gate': (16, 2)
  }  # fmt: skip
  tree = {
      'embedding': (20, 16),
      'head': (16, 20),
      'final_norm': {'scale': (16,)},
      'block_0': {
          'attention': shapes | {'qk_norm_query': {'scale': (8,)}},
          'mlp': {'up': (16, 64), 'down': (64, 16)},
          'mlp_norm': {'scale': (16,)},
      },
  }

  def draw(shape):
    return np.float32(rng.normal(size=shape))

  gradients = jax.tree.map(draw, tree, is_leaf=lambda leaf: isinstance(leaf, tuple))
  muon = next(directions['muon'](adam(1e-8, 0), gradients))
  plain = next(directions['adamw'](adam(1e-8, 0), gradients))
  for path, direction in jax.tree_util.tree_leaves_with_path(muon):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    expected = plain
    for key in path:
      expected = expected[key.key]
    orthogonal = name.split('/')[-1] in (*shapes, 'up', 'down')
    assert np.array_equal(direction, expected) != orthogonal, name
    if orthogonal:
      values = np.linalg.svd(direction, compute_uv=False) / (0.2 * max(direction.shape) ** 0.5)
      assert np.median(values) > 0.6 and values.max() < 1.3, name  # small ones converge slowly


SHAPES = {'up': (4, 10), 'down': (10, 4)}  # [fan in, fan out]


def three_updates(directions, name):
  """For each matrix of a block: its three gradients and directions, in float64."""
  rng = np.random.default_rng(0)

  def draw(m, n):  # with singular values that differ, as those of gradients do
    noise = rng.normal(size=(m, n))
    return np.float32(rng.normal(size=(m, 1)) @ rng.normal(size=(1, n)) + noise)

  gradients = [
      {'block_0': {matrix: draw(*shape) for matrix, shape in SHAPES.items()}} for _ in range(3)
  ]
  found = list(directions[name](adam(1e-8, 0), *gradients))
  for matrix in SHAPES:
    yield [[np.float64(tree['block_0'][matrix]) for tree in trees] for trees in (gradients, found)]


def test_muon_of_several_updates(directions):
  """Nesterov momentum, five iterations of the published polynomial, and an RMS of 0.2."""
  for gradients, found in three_updates(directions, 'muon'):
    momentum = 0
    for t, (g, direction) in enumerate(zip(gradients, found, strict=True), start=1):
      momentum = 0.9 * momentum + 0.1 * g
      # With the bias corrections of Nesterov momentum in optax.
      x = 0.9 * momentum / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
      x /= np.linalg.norm(x)
      for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
      np.testing.assert_allclose(direction, 0.2 * 10**0.5 * x, atol=1e-4)


def test_adafactor_of_a_matrix(directions):
  """The second moment is the product of means over rows and columns, over their mean."""
  for gradients, found in three_updates(directions, 'adafactor'):
    rows = columns = 0
    for t, (g, direction) in enumerate(zip(gradients, found, strict=True), start=1):
      decay = 1 - t**-0.8
      rows = decay * rows + (1 - decay) * np.mean(g**2, axis=1, keepdims=True)
      columns = decay * columns + (1 - decay) * np.mean(g**2, axis=0, keepdims=True)
      expected = g / np.sqrt(rows * columns / rows.mean())
      expected /= max(1, np.sqrt(np.mean(expected**2)))
      np.testing.assert_allclose(direction, expected, rtol=1e-5)


def test_adam_atan2_of_several_updates(directions):
  for gradients, found in three_updates(directions, 'adam_atan2'):
    mean = square = 0
    for t, (g, direction) in enumerate(zip(gradients, found, strict=True), start=1):
      mean, square = 0.9 * mean + 0.1 * g, 0.95 * square + 0.05 * g**2
      ratio = mean / (1 - 0.9**t) / np.sqrt(square / (1 - 0.95**t))
      np.testing.assert_allclose(direction, 4 / np.pi * np.arctan(ratio), rtol=1e-4, atol=1e-6)


def test_adafactor_rms_and_second_moment(directions):
  """After updates 1 and 2, the second moment is (1 - 2^-0.8) g1^2 + 2^-0.8 g2^2."""
  first, second = np.float32([1, 2, -3]), np.float32([30, -40, 2])
  one, two = directions['adafactor'](adam(1e-8, 0), first, second)
  np.testing.assert_allclose(one, np.sign(first), rtol=1e-6)
  expected = second / np.sqrt((1 - 2**-0.8) * first**2 + 2**-0.8 * second**2)
  expected /= max(1, np.sqrt(np.mean(expected**2)))
  np.testing.assert_allclose(two, expected, rtol=1e-5)
