"""The schedule, weight decay and clipping; whole updates are in test_reference.py."""

import functools

import jax
import numpy as np
import pytest

from stability import optimizer

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


def hyper_of(rate, lowest, warmup, steps, **others):
  hyper = {
      'optimizer.learning_rate': np.float32(rate),
      'schedule.min_learning_rate': np.float32(lowest),
      'schedule.warmup_steps': np.int32(warmup),
      'schedule.steps': np.int32(steps),
  }
  return hyper | {f'optimizer.{name}': np.float32(value) for name, value in others.items()}


@pytest.fixture(scope='module')
def schedule():
  """The learning rates of updates 1, 2 ... steps."""
  compiled = jax.jit(jax.vmap(optimizer.learning_rate, (None, 0)))

  def rates(hyper):
    return np.asarray(compiled(hyper, np.arange(1, hyper['schedule.steps'] + 1, dtype=np.int32)))

  return rates


@pytest.mark.parametrize('case', SCHEDULES)
def test_schedule_follows_its_formula(schedule, case):
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


def test_schedule_meets_its_ends_exactly(schedule):
  """The highest at the end of the warm-up, the lowest at the last update, for any values."""
  rng = np.random.default_rng(0)
  for rate in 10 ** rng.uniform(-4, 0, 300):
    hyper = hyper_of(rate, rate * rng.uniform(0, 1), 7, 50)
    got = schedule(hyper)
    assert got[6] == hyper['optimizer.learning_rate'] == got.max()
    assert got[-1] == hyper['schedule.min_learning_rate']
    assert got[0] == pytest.approx(rate / 7, rel=1e-6)
  assert schedule(hyper_of(0.1, 0.0, 7, 50))[-1] == 0


def test_schedule_of_warm_up_alone_ends_at_the_top(schedule):
  assert schedule(hyper_of(0.1, 1e-5, 40, 40))[-1] == np.float32(0.1)


@pytest.fixture(scope='module')
def apply_updates():
  """Parameters after update number `step`, by kind of weight decay."""
  return {
      kind: jax.jit(functools.partial(optimizer.apply_updates, weight_decay_kind=kind))
      for kind in ('independent', 'coupled')
  }


PARAMS = {
    'matrix': np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32),
    'norm': {'scale': np.ones(4, np.float32)},
}
ZERO_UPDATES = jax.tree.map(np.zeros_like, PARAMS)


def test_independent_weight_decay_does_not_depend_on_the_learning_rate(apply_updates):
  """Bit for bit, at every step of the schedule, when it ends at zero."""

  def decayed(rate, step):
    hyper = hyper_of(rate, 0.0, 5, 50, weight_decay=0.1)
    new = apply_updates['independent'](PARAMS, ZERO_UPDATES, hyper, np.int32(step))
    return np.concatenate([new['matrix'].ravel(), new['norm']['scale']])

  for step in range(1, 51):
    expected = decayed(RATES[0], step)
    for rate in RATES[1:]:
      np.testing.assert_array_equal(decayed(rate, step), expected)


@pytest.mark.parametrize('kind', ['independent', 'coupled'])
def test_weight_decay_follows_the_schedule(apply_updates, schedule, kind):
  """Every parameter loses s decay of itself, coupled s LR decay; s is the schedule in [0, 1]."""
  for rate in RATES:
    hyper = hyper_of(rate, 1e-5, 5, 20, weight_decay=0.1)
    for step, s in enumerate(schedule(hyper).astype(np.float64) / rate, start=1):
      new = apply_updates[kind](PARAMS, ZERO_UPDATES, hyper, np.int32(step))
      factor = 1 - 0.1 * s * (1 if kind == 'independent' else rate)
      np.testing.assert_allclose(new['matrix'], PARAMS['matrix'] * factor, rtol=5e-7)
      np.testing.assert_allclose(new['norm']['scale'], factor, rtol=5e-7)


def test_coupled_weight_decay_is_proportional_to_the_learning_rate(apply_updates):
  def shrinks_by(rate):
    hyper = hyper_of(rate, 0.0, 0, 50, weight_decay=0.5)
    new = apply_updates['coupled'](PARAMS, ZERO_UPDATES, hyper, np.int32(25))
    return 1 - float(new['norm']['scale'][0])

  for rate in RATES[2:]:
    assert shrinks_by(rate) / rate == pytest.approx(shrinks_by(1.0), rel=1e-3)


@pytest.mark.parametrize('kind', ['independent', 'coupled'])
def test_an_update_is_taken_at_the_learning_rate(apply_updates, kind):
  hyper = hyper_of(0.1, 0.0, 4, 50, weight_decay=0)
  new = apply_updates[kind](PARAMS, jax.tree.map(np.ones_like, PARAMS), hyper, np.int32(1))
  np.testing.assert_allclose(new['matrix'], PARAMS['matrix'] - 0.1 / 4, rtol=1e-6, atol=1e-7)


@pytest.fixture(scope='module')
def first_direction():
  """The direction of a first update."""

  def direction(hyper, gradients):
    transformation = optimizer.direction(hyper)
    return transformation.update(gradients, transformation.init(gradients))[0]

  return jax.jit(direction)


def adam(eps, clip_norm):
  return {
      'optimizer.beta1': np.float32(0.9),
      'optimizer.beta2': np.float32(0.95),
      'optimizer.eps': np.float32(eps),
      'optimizer.clip_norm': np.float32(clip_norm),
  }


@pytest.mark.parametrize('eps', [1e-15, 1e-8, 1e-3])
def test_first_direction_is_the_sign_unless_below_eps(first_direction, eps):
  gradients = np.float32([0, 1e-14, -1e-12, 1e-9, -1e-8, 1e-7, 1e-4, -1e-3, 1e-1])
  expected = gradients.astype(np.float64) / (np.abs(gradients.astype(np.float64)) + eps)
  got = first_direction(adam(eps, 0), gradients)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize('clip_norm', [0.0, 0.5, 3.0, 4.9, 5.1, 100.0])
def test_clips_the_global_norm(first_direction, clip_norm):
  """Over all tensors together; 0 is off. Far below eps, directions are gradients / eps."""
  gradients = {'a': np.float32([3, 0]), 'b': {'c': np.float32([[0], [-4]])}}
  got = first_direction(adam(1e6, clip_norm), gradients)
  scale = min(1, clip_norm / 5) if clip_norm else 1
  np.testing.assert_allclose(1e6 * got['a'], [3 * scale, 0], rtol=1e-5)
  np.testing.assert_allclose(1e6 * got['b']['c'], [[0], [-4 * scale]], rtol=1e-5)
