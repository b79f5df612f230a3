"""Transformations of the gradient before it enters the optimizer's moments."""

import jax
import jax.numpy as jnp
import optax

from stability.variants import Term, Terms

HParams = dict[str, jax.Array]


def _clip_by_norm(hparams: HParams) -> optax.GradientTransformation:
  """Scales the gradient down to a global norm of at most clip_norm; 0 turns clipping off."""
  clip_norm = hparams['optimizer.clip_norm']
  return optax.clip_by_global_norm(jnp.where(clip_norm > 0, clip_norm, jnp.inf))


# hparams -> an Optax transformation; applied in this order.
GRADIENT = Terms(
    'gradient',
    [
        Term('clip_norm', _clip_by_norm, 'arXiv 1211.5063', reads=('optimizer.clip_norm',)),
    ],
)
