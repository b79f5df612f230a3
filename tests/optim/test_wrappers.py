"""Wrappers of optimizers: cautious updates, clipping of updates, skipped steps."""

import jax
import numpy as np
import optax
import pytest

from stability.optim import wrappers
from stability.step import train_step


def draw(rng, size=1.0, shape=(4, 3)):
  return {'a': np.float32(size * rng.normal(size=shape)), 'b': np.float32(size * np.ones(2))}


def norm(tree):
  return np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in jax.tree.leaves(tree)))


def run(name, inner, gradients, losses=None, **options):
  """Updates and states of successive steps."""
  (term,) = (term for term in wrappers.WRAPPERS if term.name == name)
  hparams = {f'optimizer.{option}': np.float32(value) for option, value in options.items()}
  wrapped = term.make(hparams, optax.with_extra_args_support(inner))
  update = jax.jit(lambda g, s, loss: wrapped.update(g, s, g, loss=loss, learning_rate=0.1))
  state = wrapped.init(gradients[0])
  found = []
  for g, loss in zip(gradients, losses or [1.0] * len(gradients), strict=True):
    updates, state = update(g, state, np.float32(loss))
    found.append((updates, state))
  return found


def test_cautious_mask(rng):
  """Elements against the gradient vanish; the others of a tensor are divided by their share."""
  gradients = [draw(rng, shape=(40, 30)) for _ in range(3)]
  (*_, (masked, _)) = run('cautious', optax.trace(0.9), gradients)
  (*_, (plain, _)) = run('cautious', optax.identity(), gradients)
  momentum = sum(0.9**n * np.float64(g['a']) for n, g in enumerate(gradients[::-1]))
  kept = momentum * gradients[-1]['a'] > 0
  assert 0.2 < kept.mean() < 0.95
  np.testing.assert_allclose(masked['a'], momentum * kept / kept.mean(), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(plain['a'], gradients[-1]['a'])


def test_cautious_mask_without_an_element(rng):
  opposite = optax.stateless(lambda g, params: jax.tree.map(lambda x: -x, g))
  ((updates, _),) = run('cautious', opposite, [draw(rng)])
  assert norm(updates) == 0


def test_cautious_mask_of_tiny_gradients(rng):
  """Their product with the direction underflows in float32."""
  ((updates, _),) = run('cautious', optax.identity(), [draw(rng, 1e-30)])
  assert norm(updates) > 0


def expected_limits(series, deviations):
  """Mean + deviations * sd of up to 128 numbers before each; infinity for the first 64."""
  limits = []
  for n in range(len(series)):
    past = np.float64(series[max(0, n - 128) : n])
    limits.append(past.mean() + deviations * past.std() if n >= 64 else np.inf)
  return limits


def test_clipped_updates(rng):
  """Clipping starts at 64 norms, remembers norms before clipping, and forgets after 128."""
  sizes = np.linspace(1, 3, 220) * (1 + 0.2 * rng.random(220))
  sizes[[20, 70, 71, 150, 219]] *= 4
  gradients = [draw(rng, size) for size in sizes]
  norms = [norm(g) for g in gradients]
  limits = expected_limits(norms, 2.0)
  found = run('update_clip', optax.identity(), gradients, update_clip=2.0)
  for (updates, _), g, size, limit in zip(found, gradients, norms, limits, strict=True):
    np.testing.assert_allclose(updates['a'], g['a'] * min(1, limit / size), rtol=1e-4)
  clipped = np.flatnonzero(np.array(norms) > limits)
  assert {70, 71, 150, 219} <= {*clipped} and 20 not in clipped


def test_skipped_steps(rng):
  """Steps whose loss or norm exceeds its limit enter the windows, but not the optimizer's state."""
  sizes, losses = 1 + 0.1 * rng.random(140), 2 + 0.1 * rng.random(140)
  sizes[[30, 80]] = 9
  losses[[100, 101]] = 5
  losses[110] = 0.1  # below, not above
  gradients = [draw(rng, size) for size in sizes]
  norms = [norm(g) for g in gradients]
  expected = (np.array(norms) > expected_limits(norms, 6.0)) | (
      losses > expected_limits(losses, 6.0)
  )
  assert {*np.flatnonzero(expected)} == {80, 100, 101}  # 30 is too early
  found = run('skip_step', optax.trace(0.9), gradients, [*losses], skip_step=6.0)
  momentum = 0
  for (updates, state), g, skips in zip(found, gradients, expected, strict=True):
    assert bool(state.skips) == skips
    new = 0.9 * momentum + np.float64(g['a'])
    np.testing.assert_allclose(updates['a'], new, rtol=1e-4, atol=1e-5)
    momentum = momentum if skips else new


def test_window_leaves_out_numbers_that_are_not_finite():
  window = wrappers.empty_window()
  append = jax.jit(wrappers.appended)
  for value in [*range(64), np.inf, np.nan]:
    window = append(window, np.float32(value))
  assert wrappers.limit(window, 2.0) == pytest.approx(31.5 + 2 * np.arange(64).std(), rel=1e-6)


@pytest.mark.slow
def test_skipped_step_undoes_all_changes(tiny, text, monkeypatch):
  """Weight decay included; step and data go on. The limit is in reach of a few steps here."""
  monkeypatch.setattr(wrappers, 'WINDOW_FEWEST', 1)
  options = {
      'model.depth': 0,
      'optimizer.skip_step': 0.01,
      'optimizer.learning_rate': 1e-5,  # so that losses differ by the batch
      'optimizer.weight_decay': 1e-3,
      'model.output_centering': 'mean',
  }
  run = tiny(options)
  programs = train_step.programs(run.static, 64)
  state = jax.jit(programs.init)(run.hparams)
  step = jax.jit(programs.steps['quiet'])
  seen = set()
  for n in range(1, 8):
    old = state
    state, _ = step({'text': text['text']}, old)
    skips = bool(state['optimizer'].skips)
    seen.add(skips)
    for part in (lambda s: s['params'], lambda s: s['optimizer'].optimizer):
      pairs = zip(jax.tree.leaves(part(old)), jax.tree.leaves(part(state)), strict=True)
      assert all(np.array_equal(a, b) for a, b in pairs) == skips
    assert state['step'] == n and state['optimizer'].losses.length == n
  assert seen == {True, False}


