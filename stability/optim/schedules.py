"""Learning rate schedules: linear warm-up, then the shape of schedule.shape."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from stability.variants import Choices, Variant

HParams = dict[str, jax.Array]
# (hparams, step, highest, lowest) -> the value of update number `step` after the warm-up.
Shape = Callable[[HParams, jax.Array, jax.Array, jax.Array], jax.Array]


def _cosine(hparams, step, highest, lowest):
  """Down to `lowest` at the last update."""
  total = hparams['schedule.steps'].astype(jnp.float32)
  warmup = hparams['schedule.warmup_steps'].astype(jnp.float32)
  progress = (step - warmup) / jnp.maximum(total - warmup, 1)
  # (1 + cos(pi p)) / 2 as a square, which keeps its digits near the end.
  factor = jnp.square(jnp.cos(0.5 * jnp.pi * progress))
  return jnp.where(step >= total, lowest, lowest + (highest - lowest) * factor)


def _wsd(hparams, step, highest, lowest):
  """Constant, then linear over the last decay_steps to `lowest`; constant if there are none."""
  total = hparams['schedule.steps'].astype(jnp.float32)
  decay = hparams['schedule.decay_steps'].astype(jnp.float32)
  factor = (total - step) / jnp.maximum(decay, 1)
  falling = jnp.where(step >= total, lowest, lowest + (highest - lowest) * factor)
  return jnp.where(step <= total - decay, highest, falling)


def _rsqrt(hparams, step, highest, lowest):
  """The peak times sqrt(warmup_steps / step), at least `lowest`."""
  warmup = hparams['schedule.warmup_steps'].astype(jnp.float32)
  return jnp.maximum(highest * jnp.sqrt(jnp.maximum(warmup, 1) / step), lowest)


_STEPS = ('schedule.steps', 'schedule.warmup_steps')

SCHEDULES = Choices(
    'schedule.shape',
    {
        'cosine': Variant(_cosine, 'arXiv 1608.03983; section 2.1', reads=_STEPS),
        'wsd': Variant(_wsd, 'arXiv 2404.06395', reads=('schedule.steps', 'schedule.decay_steps')),
        'rsqrt': Variant(_rsqrt, 'arXiv 1706.03762', reads=('schedule.warmup_steps',)),
    },
)


def learning_rate(
    hparams: HParams, step: jax.Array, static: ml_collections.FrozenConfigDict
) -> jax.Array:
  """The learning rate of update number `step`, counted from 1.

  Update warmup_steps has the full rate exactly, and the last one of cosine and wsd has
  min_learning_rate exactly, unless the warm-up takes all updates, or wsd decays over none.
  """
  highest, lowest = hparams['optimizer.learning_rate'], hparams['schedule.min_learning_rate']
  return _scheduled(hparams, step, highest, lowest, static)


def schedule_factor(
    hparams: HParams, step: jax.Array, static: ml_collections.FrozenConfigDict
) -> jax.Array:
  """The schedule of update number `step` in [0, 1]: learning rate over its highest.

  Computed on its own, since a quotient would round differently for each learning rate.
  """
  lowest = hparams['schedule.min_learning_rate'] / hparams['optimizer.learning_rate']
  return _scheduled(hparams, step, jnp.float32(1), lowest, static)


def _scheduled(
    hparams: HParams,
    step: jax.Array,
    highest: jax.Array,
    lowest: jax.Array,
    static: ml_collections.FrozenConfigDict,
) -> jax.Array:
  """Linear from 0 up to `highest` at the end of the warm-up, then the shape."""
  warmup = hparams['schedule.warmup_steps'].astype(jnp.float32)
  step = step.astype(jnp.float32)
  rising = highest * step / jnp.maximum(warmup, 1)
  after = SCHEDULES[static.schedule.shape].make(hparams, step, highest, lowest)
  return jnp.select([step < warmup, step == warmup], [rising, highest], after)
