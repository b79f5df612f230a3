"""Changes to what any optimizer does: to its directions, or to whether there is an update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stability.optim.norms import global_norm
from stability.types import HParams
from stability.variants import Term, Terms

Optimizer = optax.GradientTransformationExtraArgs

SMALLEST_SHARE = 1e-3  # lower bound of the share of elements that a cautious update keeps

# Numbers in a window of the past, and the fewest that a limit is computed from. From
# github.com/allenai/OLMo-core (skip_step_optimizer.py) and
# github.com/marin-community/marin (levanter/optim/clip_update_norm.py and skipstep.py).
WINDOW = 128
WINDOW_FEWEST = 64
SMALLEST_SD = 1e-6


class Window(NamedTuple):
  """The last numbers of a series."""

  values: jax.Array  # [WINDOW]; number n of the series is at n % WINDOW
  length: jax.Array  # of the series


def empty_window() -> Window:
  """The window of a series that has not begun."""
  return Window(jnp.zeros(WINDOW), jnp.int32(0))


def appended(window: Window, value: jax.Array) -> Window:
  """The window after the next number; a number that is not finite is left out."""
  is_next = jnp.arange(WINDOW) == window.length % WINDOW
  new = Window(jnp.where(is_next, value, window.values), window.length + 1)
  return jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(value), a, b), new, window)


def limit(window: Window, deviations: jax.Array) -> jax.Array:
  """Mean + deviations * standard deviation of a window; infinity while it has too few numbers."""
  known = jnp.arange(WINDOW) < window.length
  count = jnp.maximum(jnp.sum(known), 1)
  mean = jnp.sum(jnp.where(known, window.values, 0)) / count
  variance = jnp.sum(jnp.where(known, jnp.square(window.values - mean), 0)) / count
  most = mean + deviations * jnp.maximum(jnp.sqrt(variance), SMALLEST_SD)
  return jnp.where(window.length >= WINDOW_FEWEST, most, jnp.inf)


def _cautious(hparams: HParams, optimizer: Optimizer) -> Optimizer:
  """Keeps the elements of a direction that have the sign of the gradient.

  Those of each tensor are divided by their share, so that the mean size of the direction stays.
  """
  del hparams

  def mask(u, g):
    kept = (u * jnp.sign(g) > 0).astype(u.dtype)
    return u * kept / jnp.maximum(jnp.mean(kept), SMALLEST_SHARE)

  def update(gradients, state, params=None, **others):
    updates, state = optimizer.update(gradients, state, params, **others)
    return jax.tree.map(mask, updates, gradients), state

  return Optimizer(optimizer.init, update)


def _clip_updates(hparams: HParams, optimizer: Optimizer) -> Optimizer:
  """Scales down a direction whose global norm is far above those of the last directions.

  The norms that are remembered are those before scaling down.
  """
  deviations = hparams['optimizer.update_clip']

  def clip(updates, window, params=None):
    del params
    norm = global_norm(updates)
    most = limit(window, deviations)
    factor = jnp.where(norm > most, most / norm, 1)
    return jax.tree.map(lambda u: factor * u, updates), appended(window, norm)

  clipping = optax.GradientTransformation(lambda params: empty_window(), clip)
  return optax.chain(optimizer, clipping)


class SkipStepState(NamedTuple):
  """The state of skip_step."""

  optimizer: optax.OptState  # of the optimizer inside
  losses: Window
  norms: Window  # of gradients
  skips: jax.Array  # bool, whether the last step made no update


def _skip_step(hparams: HParams, optimizer: Optimizer) -> Optimizer:
  """Makes no update in a step whose loss or gradient norm is far above those of the last steps.

  The optimizer's state stays as it was, and the after-update term of the same name keeps the
  parameters, whatever the direction.
  """
  deviations = hparams['optimizer.skip_step']

  def init(params):
    return SkipStepState(optimizer.init(params), empty_window(), empty_window(), jnp.bool_(False))

  def update(gradients, state, params=None, *, loss, **others):
    norm = global_norm(gradients)
    usual = (loss <= limit(state.losses, deviations)) & (norm <= limit(state.norms, deviations))
    updates, new = optimizer.update(gradients, state.optimizer, params, loss=loss, **others)
    new = jax.tree.map(lambda a, b: jnp.where(usual, a, b), new, state.optimizer)
    losses, norms = appended(state.losses, loss), appended(state.norms, norm)
    return updates, SkipStepState(new, losses, norms, ~usual)

  return Optimizer(init, update)


# (hparams, optimizer) -> optimizer; the first one is innermost.
WRAPPERS = Terms(
    'wrapper',
    [
        Term('cautious', _cautious, 'arXiv 2411.16085', when='optimizer.update_mask=cautious'),
        Term(
            'update_clip',
            _clip_updates,
            'github.com/marin-community/marin, levanter/optim/clip_update_norm.py',
            when='optimizer.update_clip',
            reads=('optimizer.update_clip',),
        ),
        Term(
            'skip_step',
            _skip_step,
            'arXiv 2501.00656; github.com/allenai/OLMo-core, skip_step_optimizer.py',
            when='optimizer.skip_step',
            reads=('optimizer.skip_step',),
        ),
    ],
)
