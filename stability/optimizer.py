"""AdamW and its schedule, built from traced hyperparameters (paper sections 2.1 and 3.2.2).

Optax's chain gives the direction; learning rate, schedule and weight decay are applied here, so
that a probe can look at the direction alone (the paper's unscaled update). Hyperparameters come
under their dotted config names.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

Hyperparameters = dict[str, jax.Array]
Params = dict[str, Any]


def direction(hyper: Hyperparameters) -> optax.GradientTransformation:
  """Clips the gradient's global norm, then Adam: its output has neither learning rate nor decay."""
  clip_norm = hyper['optimizer.clip_norm']
  return optax.chain(
      optax.clip_by_global_norm(jnp.where(clip_norm > 0, clip_norm, jnp.inf)),
      optax.scale_by_adam(
          hyper['optimizer.beta1'], hyper['optimizer.beta2'], hyper['optimizer.eps']
      ),
  )


def learning_rate(hyper: Hyperparameters, step: jax.Array) -> jax.Array:
  """Of update number `step` (from 1): linear warm-up, then cosine to min_learning_rate.

  Update warmup_steps is made at the full rate exactly, and update `steps` at min_learning_rate
  unless the warm-up takes all of them.
  """
  highest, lowest = hyper['optimizer.learning_rate'], hyper['schedule.min_learning_rate']
  return _scheduled(hyper, step, highest, lowest)


def apply_updates(
    params: Params,
    updates: Params,
    hyper: Hyperparameters,
    step: jax.Array,
    weight_decay_kind: str,
) -> Params:
  """Update number `step` (from 1) of all parameters, every one of which decays.

  With s = rate / learning_rate, the schedule: independent decay takes s * weight_decay of the
  parameter and does not depend on the learning rate; the coupled one, PyTorch's and Optax's,
  takes rate * weight_decay.
  """
  rate = learning_rate(hyper, step)
  if weight_decay_kind == 'independent':
    # The schedule itself: rate / learning_rate would round differently for each learning rate.
    lowest = hyper['schedule.min_learning_rate'] / hyper['optimizer.learning_rate']
    decay = _scheduled(hyper, step, jnp.float32(1), lowest) * hyper['optimizer.weight_decay']
  else:
    decay = rate * hyper['optimizer.weight_decay']
  return jax.tree.map(lambda p, u: p - (rate * u + decay * p), params, updates)


def _scheduled(
    hyper: Hyperparameters, step: jax.Array, highest: jax.Array, lowest: jax.Array
) -> jax.Array:
  """From 0 up to `highest`, then down to `lowest`; both are met exactly, in float32 too."""
  warmup = hyper['schedule.warmup_steps'].astype(jnp.float32)
  total = hyper['schedule.steps'].astype(jnp.float32)
  step = step.astype(jnp.float32)
  progress = (step - warmup) / jnp.maximum(total - warmup, 1)
  # (1 + cos(pi p)) / 2 as a square, which keeps its digits near the end.
  height = jnp.square(jnp.cos(0.5 * jnp.pi * progress))
  return jnp.select(
      [step < warmup, step == warmup, step >= total],
      [highest * step / jnp.maximum(warmup, 1), highest, lowest],
      lowest + (highest - lowest) * height,
  )
