"""nGPT (arXiv 2410.01131): hidden states and the vectors of all matrices have unit norm.

The options model.norm_position, model.qk_norm, model.mlp and model.head have a value `ngpt` each,
which together make up nGPT. Definitions follow github.com/NVIDIA/ngpt, with three differences: the
MLP has a GELU instead of a gate, so that sizes stay comparable; queries and keys are scaled before
rotary positions, as by all qk-norms here; and weight decay and warm-up, which nGPT does without,
are options of their own. Shape suffixes: B batch, T positions, D width, V vocabulary.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from stability.model.kernels import SMALLEST_NORM
from stability.types import Params

RATE = 0.05  # initial rate at which a block moves the hidden state towards its layers' outputs


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
  """Divides by the L2 norm over an axis, which is computed in float32."""
  exact = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(exact), axis=axis, keepdims=True)
  # The bound is inside the root, whose derivative at 0 is infinite.
  return (exact / jnp.sqrt(jnp.maximum(square, SMALLEST_NORM**2))).astype(x.dtype)


def scale(
    module: nn.Module, name: str, size: int, start: float = 1.0, stored: float | None = None
) -> jax.Array:
  """A learned vector of scales that start at `start`, in float32.

  The parameter starts at `stored`; None: at 1 / sqrt(width), as the elements of the matrices do, so
  that one learning rate changes both by similar fractions.
  """
  stored = 1 / module.c.width**0.5 if stored is None else stored
  if module.has_variable('params', name):  # queries and keys share a scale
    p = module.get_variable('params', name)
  else:
    p = module.param(name, nn.initializers.constant(stored), (size,))
  return p * (start / stored)


def residual(block: nn.Module) -> Callable:
  """Returns unit(x + |rate| (unit(layer(x)) - x)) for unit vectors x, with a rate per feature."""

  def apply(name, x_BxTxD, layer):
    rate_D = jnp.abs(scale(block, f'{name}_rate', block.c.width, RATE)).astype(x_BxTxD.dtype)
    x_BxTxD = unit(x_BxTxD)
    return unit(x_BxTxD + rate_D * (unit(layer(x_BxTxD)) - x_BxTxD))

  return apply


def normalise(params: Params) -> Params:
  """Scales the vectors of length D of all matrices to unit norm.

  Those are the rows of the embedding and of matrices that write to the residual stream, and the
  columns of the head and of matrices that read from it.
  """

  def to_unit(path, p):
    if p.ndim < 2:
      return p
    return unit(p, axis=1 if path[-1].key in ('embedding', 'output', 'down') else 0)

  return jax.tree_util.tree_map_with_path(to_unit, params)
