"""Learning rate schedules: a linear warm-up, then the shape that schedule.shape selects."""

import jax
import jax.numpy as jnp

from stability.types import HParams, Static
from stability.variants import Choices, Variant


def _cosine(hparams, step, highest, lowest):
  """Half a cosine from `highest` at the end of the warm-up to `lowest` at the last update."""
  total = hparams['schedule.steps'].astype(jnp.float32)
  warmup = hparams['schedule.warmup_steps'].astype(jnp.float32)
  progress = (step - warmup) / jnp.maximum(total - warmup, 1)
  # (1 + cos(pi p)) / 2 written as a square, which stays precise near the end.
  factor = jnp.square(jnp.cos(0.5 * jnp.pi * progress))
  return jnp.where(step >= total, lowest, lowest + (highest - lowest) * factor)


def _linear(hparams, step, highest, lowest):
  """A line from `highest` at the end of the warm-up to `lowest` at the last update."""
  total = hparams['schedule.steps'].astype(jnp.float32)
  warmup = hparams['schedule.warmup_steps'].astype(jnp.float32)
  return _falling(step, total, total - warmup, highest, lowest)


def _wsd(hparams, step, highest, lowest):
  """Constant, then linear to `lowest` over the last decay_steps updates, if there are any."""
  total = hparams['schedule.steps'].astype(jnp.float32)
  decay = hparams['schedule.decay_steps'].astype(jnp.float32)
  falling = _falling(step, total, decay, highest, lowest)
  return jnp.where(step <= total - decay, highest, falling)


def _falling(step, total, length, highest, lowest):
  """A line from `highest` down to `lowest`, over the `length` updates before update `total`."""
  factor = (total - step) / jnp.maximum(length, 1)
  return jnp.where(step >= total, lowest, lowest + (highest - lowest) * factor)


def _rsqrt(hparams, step, highest, lowest):
  """The peak times sqrt(warmup_steps / step), but at least `lowest`."""
  warmup = hparams['schedule.warmup_steps'].astype(jnp.float32)
  return jnp.maximum(highest * jnp.sqrt(jnp.maximum(warmup, 1) / step), lowest)


_STEPS = ('schedule.steps', 'schedule.warmup_steps')

# (hparams, step, highest, lowest) -> the value at update number `step`, after the warm-up.
SCHEDULES = Choices(
    'schedule.shape',
    {
        'cosine': Variant(_cosine, 'arXiv 1608.03983; section 2.1', reads=_STEPS),
        'linear': Variant(_linear, 'arXiv 2310.07831', reads=_STEPS),
        'wsd': Variant(_wsd, 'arXiv 2404.06395', reads=('schedule.steps', 'schedule.decay_steps')),
        'rsqrt': Variant(_rsqrt, 'arXiv 1706.03762', reads=('schedule.warmup_steps',)),
    },
)


def learning_rate(hparams: HParams, step: jax.Array, static: Static) -> jax.Array:
  """The learning rate of update number `step`, counted from 1.

  Update number warmup_steps has exactly the peak rate. With cosine, linear and wsd, the last update
  has exactly min_learning_rate, unless the warm-up takes all updates or the decay_steps of wsd are
  0.
  """
  highest, lowest = hparams['optimizer.learning_rate'], hparams['schedule.min_learning_rate']
  return _scheduled(hparams, step, highest, lowest, static)


def schedule_factor(hparams: HParams, step: jax.Array, static: Static) -> jax.Array:
  """The learning rate of update number `step` divided by the peak learning rate, in [0, 1].

  It is not computed as a quotient, which would round differently for each learning rate.
  """
  lowest = hparams['schedule.min_learning_rate'] / hparams['optimizer.learning_rate']
  return _scheduled(hparams, step, jnp.float32(1), lowest, static)


def _scheduled(
    hparams: HParams,
    step: jax.Array,
    highest: jax.Array,
    lowest: jax.Array,
    static: Static,
) -> jax.Array:
  """A linear rise from 0 to `highest` at the end of the warm-up, then schedule.shape."""
  warmup = hparams['schedule.warmup_steps'].astype(jnp.float32)
  step = step.astype(jnp.float32)
  rising = highest * step / jnp.maximum(warmup, 1)
  after = SCHEDULES[static.schedule.shape].make(hparams, step, highest, lowest)
  return jnp.select([step < warmup, step == warmup], [rising, highest], after)
