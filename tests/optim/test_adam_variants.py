"""AdEMAMix, ADOPT and SPAM, compared with NumPy implementations in float64."""

import jax
import numpy as np

from stability.optim.optimizers import OPTIMIZERS

BETA1, BETA2, EPS = 0.9, 0.95, 1e-8
HPARAMS = {'optimizer.beta1': BETA1, 'optimizer.beta2': BETA2, 'optimizer.eps': EPS}


def directions(name, gradients, **options):
  """Directions of successive gradients, each [n], by an optimizer with traced options."""
  hparams = {key: np.float32([value]) for key, value in HPARAMS.items()}
  for option, value in options.items():
    kind = np.int32 if isinstance(value, int) else np.float32
    hparams[option.replace('__', '.')] = kind([value])

  @jax.jit
  @jax.vmap
  def run(hparams, gradients):
    optimizer = OPTIMIZERS[name].make(hparams)

    def step(state, g):
      direction, state = optimizer.update({'p': g}, state, {'p': g})
      return state, direction['p']

    return jax.lax.scan(step, optimizer.init({'p': gradients[0]}), gradients)[1]

  return np.asarray(run(hparams, np.float32(gradients)[None])[0])


def draw(rng, steps, sizes=1.0):
  return rng.normal(size=(steps, 5)) * np.reshape(sizes, (-1, 1))


def test_ademamix(rng):
  """The slow average has no bias correction; its half-life and weight rise over the run."""
  steps, beta3, alpha = 12, 0.99, 4.0
  gradients = draw(rng, 14)  # two updates after the last one: nothing rises any more
  found = directions(
      'ademamix',
      gradients,
      optimizer__beta3=beta3,
      optimizer__alpha=alpha,
      schedule__steps=steps,
  )
  fast = slow = square = np.zeros(5)
  half_life = lambda beta: np.log(0.5) / np.log(beta)  # noqa: E731  in updates
  for t, g in enumerate(gradients, start=1):
    share = min(t / steps, 1)
    h = (1 - share) * half_life(BETA1) + share * half_life(beta3)
    decay = 0.5 ** (1 / h)
    fast = BETA1 * fast + (1 - BETA1) * g
    slow = decay * slow + (1 - decay) * g
    square = BETA2 * square + (1 - BETA2) * g**2
    mean = fast / (1 - BETA1**t) + share * alpha * slow
    expected = mean / (np.sqrt(square / (1 - BETA2**t)) + EPS)
    np.testing.assert_allclose(found[t - 1], expected, rtol=1e-4, atol=1e-4)


def test_adopt(rng):
  """The second moment of the past divides, and a ratio above t^(1/4) is clipped."""
  sizes = np.ones(10)
  sizes[6] = 40
  gradients = draw(rng, 10, sizes)
  found = directions('adopt', gradients)
  np.testing.assert_array_equal(found[0], 0)
  square, mean, clipped = gradients[0] ** 2, np.zeros(5), 0
  for t, g in enumerate(gradients[1:], start=1):
    ratio = g / np.maximum(np.sqrt(square), EPS)
    clipped += np.sum(np.abs(ratio) > t**0.25)
    mean = BETA1 * mean + (1 - BETA1) * np.clip(ratio, -(t**0.25), t**0.25)
    np.testing.assert_allclose(found[t], mean, rtol=1e-4, atol=1e-6)
    square = BETA2 * square + (1 - BETA2) * g**2
  assert 5 <= clipped < 30


def test_spam(rng):
  """From the source code: restarts at steps 30 and 60, spikes clipped from 20 steps after them."""
  every, warmup = 30, 8
  sizes = np.ones(65)
  sizes[[9, 24, 35, 54]] = 1e2, 1e4, 1e2, 1e4  # steps 10, 25, 36 and 55
  gradients = draw(rng, 65, sizes)
  found = directions(
      'spam',
      gradients,
      optimizer__restart_every_steps=every,
      optimizer__restart_warmup_steps=warmup,
  )
  mean, square, clipped = np.zeros(5), np.zeros(5), []
  for t, gradient in enumerate(gradients, start=1):
    g, since = gradient, t % every
    if since == 0:
      mean, square = np.zeros(5), np.zeros(5)
    bound = np.sqrt(5_000 * square)
    if since >= 20:
      clipped += [t] if (np.abs(g) > bound).any() else []
      g = np.where(np.abs(g) > bound, np.sign(g) * bound, g)
    mean = BETA1 * mean + (1 - BETA1) * g
    square = BETA2 * square + (1 - BETA2) * g**2
    expected = mean / (1 - BETA1**t) / (np.sqrt(square / (1 - BETA2**t)) + EPS)
    if t >= every and since < warmup:
      expected *= 1 - 0.99 * (1 + np.cos(np.pi * since / (warmup + 1))) / 2
    np.testing.assert_allclose(found[t - 1], expected, rtol=1e-3, atol=1e-4)
  assert clipped == [25, 55]


def test_spam_starts_without_a_warmup(rng):
  found = directions(
      'spam', draw(rng, 1), optimizer__restart_every_steps=30, optimizer__restart_warmup_steps=8
  )
  np.testing.assert_allclose(np.abs(found), 1, rtol=1e-5)
