"""Prodigy and DoWG, compared with NumPy in float64 on a quadratic whose minimum is far away."""

import jax
import numpy as np
import pytest

from stability.optim.optimizers import OPTIMIZERS

RNG = np.random.default_rng(0)
CURVATURE = 10 ** RNG.uniform(-1, 1, 6)
MINIMUM = RNG.normal(size=6)
NOISE = 0.1 * RNG.normal(size=(40, 6))
# A warm-up, then a decrease to 0. Parameters start at 0, where float32 resolves small steps.
RATES = np.concatenate([np.linspace(0.2, 1, 5), np.linspace(1, 0, 35)])
BETA1, BETA2, EPS = 0.9, 0.99, 1e-8


def gradient(x, n, xp=np):
  return xp.asarray(CURVATURE) * (x - xp.asarray(MINIMUM)) + xp.asarray(NOISE)[n]


@pytest.fixture(scope='module')
def trajectories():
  """A function of an optimizer and the weight decay: the parameters after each update."""

  def trajectory(name, decay=0.0):
    hparams = {
        'optimizer.beta1': np.float32([BETA1]),
        'optimizer.beta2': np.float32([BETA2]),
        'optimizer.eps': np.float32([EPS]),
    }

    @jax.jit
    @jax.vmap
    def run(hparams):
      optimizer = OPTIMIZERS[name].make(hparams)

      def step(carried, n):
        x, state = carried
        rate = jax.numpy.float32(RATES)[n]
        g = gradient(x, n, jax.numpy).astype('float32')
        # Two tensors, since the estimate is global.
        g, p = {'a': g[:2], 'b': g[2:]}, {'a': x[:2], 'b': x[2:]}
        u, state = optimizer.update(g, state, p, learning_rate=rate)
        u = jax.numpy.concatenate([u['a'], u['b']])
        x = x - (rate * u + decay * x)  # as apply.py does
        return (x, state), x

      zeros = jax.numpy.zeros(6)
      state = optimizer.init({'a': zeros[:2], 'b': zeros[2:]})
      return jax.lax.scan(step, (zeros, state), jax.numpy.arange(len(RATES)))[1]

    return np.asarray(run(hparams)[0])

  return trajectory


@pytest.mark.parametrize('decay', [0.0, 0.01])
def test_prodigy(trajectories, decay):
  """The algorithm for Adam, with bias corrections and a safeguarded warm-up, without decay."""
  found = trajectories('prodigy', decay)
  x, d, mean, square, weights, numerator = np.zeros(6), 1e-6, 0.0, 0.0, 0.0, 0.0
  for n, rate in enumerate(RATES):
    g = gradient(x, n)
    step = rate * np.sqrt(1 - BETA2 ** (n + 1)) / (1 - BETA1 ** (n + 1))
    mean = BETA1 * mean + (1 - BETA1) * d * g
    square = BETA2 * square + (1 - BETA2) * (d * g) ** 2
    old = d
    numerator = np.sqrt(BETA2) * numerator + old**2 * step * np.sum(g * (0 - x))
    weights = np.sqrt(BETA2) * weights + old**2 * g  # without the rate of the step
    d = max(old, numerator / np.abs(weights).sum())
    x = x - old * step * mean / (np.sqrt(square) + d * EPS) - decay * x
    np.testing.assert_allclose(found[n], x, rtol=2e-3, atol=1e-8)
  assert d > 5e-6  # it grows from 1e-6


def test_dowg(trajectories):
  found = trajectories('dowg')
  x, largest, total = np.zeros(6), 1e-4, 0.0
  for n, rate in enumerate(RATES):
    g = gradient(x, n)
    largest = max(largest, np.sum(x**2))
    total += largest * np.sum(g**2)
    x = x - rate * largest / (np.sqrt(total) + 1e-4) * g
    np.testing.assert_allclose(found[n], x, rtol=1e-3, atol=1e-7)
  assert largest > 0.01


def test_prodigy_of_gradients_that_are_zero():
  """The estimate is 0 / 0 while all gradients are 0; later updates are not affected."""
  hparams = {'optimizer.beta1': BETA1, 'optimizer.beta2': BETA2, 'optimizer.eps': EPS}
  optimizer = OPTIMIZERS['prodigy'].make(hparams)
  update = jax.jit(lambda g, state: optimizer.update(g, state, g, learning_rate=np.float32(1)))
  state = optimizer.init({'p': np.zeros(3, np.float32)})
  for g, moves in ((0, False), (1, True), (0, True)):
    direction, state = update({'p': np.full(3, g, np.float32)}, state)
    assert np.isfinite(direction['p']).all() and direction['p'].any() == moves
