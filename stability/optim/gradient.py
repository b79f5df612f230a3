"""Transformations of the gradient before it enters the optimizer's moments."""

import jax
import jax.numpy as jnp
import optax

from stability.model import parameterization
from stability.optim import clipping
from stability.optim.norms import global_norm
from stability.types import HParams
from stability.variants import Term, Terms


def _clip_by_norm(hparams: HParams) -> optax.GradientTransformation:
  """Scales the gradient down to a global norm of at most clip_norm; 0 turns clipping off.

  A gradient whose norm overflows float32 (elements near 2e19) is scaled down to 0, as the scale is
  clip_norm / infinity. If clipping is off, every gradient passes unchanged.
  """
  clip_norm = hparams['optimizer.clip_norm']

  def clip(gradients, params):
    del params
    norm = global_norm(gradients)
    passes = (clip_norm == 0) | (norm < clip_norm)
    return jax.tree.map(lambda g: jnp.where(passes, g, g / norm * clip_norm), gradients)

  return optax.stateless(clip)


def _adaptive_clip(hparams: HParams) -> optax.GradientTransformation:
  """AGC: clips the gradient of each unit to a fraction of the norm of the unit's weights.

  The unit of a matrix is a column, the weights of one output; that of a vector is the vector. The
  norm of the weights counts as 1e-3 at least, so that weights that start at zero can change. An
  untied head is not clipped (section 4.1).
  """
  agc = optax.adaptive_grad_clip(hparams['optimizer.adaptive_clip'])

  def clip(gradients, params):
    clipped, _ = agc.update(gradients, agc.init(params), params)
    kinds = parameterization.kinds(params)
    return jax.tree.map(
        lambda kind, g, c: g if kind == 'readout' else c, kinds, gradients, clipped
    )

  return optax.stateless(clip)


# hparams -> an Optax transformation; applied in this order.
GRADIENT = Terms(
    'gradient',
    [
        Term(
            'adaptive_clip',
            _adaptive_clip,
            'arXiv 2102.06171, equation 3',
            when='optimizer.adaptive_clip',
            reads=('optimizer.adaptive_clip',),
        ),
        Term(
            'zclip',
            lambda hparams: clipping.zclip(hparams['optimizer.zclip']),
            'arXiv 2504.02507',
            when='optimizer.zclip',
            reads=('optimizer.zclip',),
        ),
        Term(
            'adagc',
            lambda hparams: clipping.adagc(hparams['optimizer.adagc']),
            'arXiv 2502.11034, algorithm 1',
            when='optimizer.adagc',
            reads=('optimizer.adagc',),
        ),
        Term('clip_norm', _clip_by_norm, 'arXiv 1211.5063', reads=('optimizer.clip_norm',)),
    ],
)
