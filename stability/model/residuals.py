"""The residual stream: how the layers of a block read from it and add to it.

Shape suffixes: B batch, T positions, D width. L is the depth of the model.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from stability.model import ngpt
from stability.model.norms import norm
from stability.variants import Choices, Variant

Layer = Callable[[jax.Array], jax.Array]
# (name of the layer, x [B, T, D], layer) -> x after the layer.
Apply = Callable[[str, jax.Array, Layer], jax.Array]

# The scalar on the residual stream learns this much more slowly than that on the embedding, as in
# github.com/karpathy/nanochat, where its learning rate is that fraction of the other's.
SLOW = 0.01


class Residual(NamedTuple):
  """A form of residual connections."""

  # block -> Apply. Both are called inside the block's compact method, so that the modules and
  # parameters that they create belong to the block.
  make: Callable[[nn.Module], Apply]
  final_norm: bool = True  # whether the stream is normalised before the head


def _pre_norm(block: nn.Module) -> Apply:
  """Pre-LN: x + layer(norm(x))."""
  return lambda name, x_BxTxD, layer: x_BxTxD + layer(_norm(block, f'{name}_norm')(x_BxTxD))


def _pre_norm_of_mlp(block: nn.Module) -> Apply:
  """Pre-LN of the MLP alone: x + layer(x) for attention, for use with norms of its q, k and v."""
  pre = _pre_norm(block)

  def apply(name, x_BxTxD, layer):
    return x_BxTxD + layer(x_BxTxD) if name == 'attention' else pre(name, x_BxTxD, layer)

  return apply


def _scaled_pre_norm(block: nn.Module) -> Apply:
  """LayerNorm scaling: x + layer(norm(x) / sqrt(i)) in block number i, counted from 1."""
  scale = (block.index + 1) ** -0.5

  def apply(name, x_BxTxD, layer):
    return x_BxTxD + layer(_norm(block, f'{name}_norm')(x_BxTxD) * scale)

  return apply


def _peri_norm(block: nn.Module) -> Apply:
  """Peri-LN: x + norm(layer(norm(x))), which normalises the output of the layer as well."""

  def apply(name, x_BxTxD, layer):
    out = layer(_norm(block, f'{name}_norm')(x_BxTxD))
    return x_BxTxD + _norm(block, f'{name}_output_norm')(out)

  return apply


def _post_norm(block: nn.Module) -> Apply:
  """Post-LN: norm(x + layer(x))."""
  return lambda name, x_BxTxD, layer: _norm(block, f'{name}_norm')(x_BxTxD + layer(x_BxTxD))


def _deep_norm(block: nn.Module) -> Apply:
  """DeepNorm: norm(alpha x + layer(x)), alpha = (2 L)^(1/4).

  Its initialisation is a term of its own (stability/model/initialisation.py).
  """
  alpha = (2 * block.c.depth) ** 0.25

  def apply(name, x_BxTxD, layer):
    return _norm(block, f'{name}_norm')(alpha * x_BxTxD + layer(x_BxTxD))

  return apply


def _rezero(block: nn.Module) -> Apply:
  """ReZero: x + gain layer(x), without norms; the layers of a block share the gain, at first 0."""
  gain = block.param('residual_gain', nn.initializers.zeros, ())
  return lambda name, x_BxTxD, layer: x_BxTxD + gain.astype(x_BxTxD.dtype) * layer(x_BxTxD)


def _norm(block: nn.Module, name: str) -> nn.Module:
  return norm(block.c.norm, block.c.dtype, name)


RESIDUALS = Choices(
    'model.norm_position',
    {
        'pre': Variant(Residual(_pre_norm), 'arXiv 2002.04745; section 2.1'),
        'pre_mlp': Variant(Residual(_pre_norm_of_mlp), 'arXiv 2410.16682'),
        'pre_scaled': Variant(Residual(_scaled_pre_norm), 'arXiv 2502.05795'),
        'peri': Variant(Residual(_peri_norm), 'arXiv 2502.02732'),
        'post': Variant(Residual(_post_norm, final_norm=False), 'arXiv 1706.03762'),
        'deepnorm': Variant(Residual(_deep_norm, final_norm=False), 'arXiv 2203.00555'),
        'rezero': Variant(Residual(_rezero), 'arXiv 2003.04887'),
        'ngpt': Variant(Residual(ngpt.residual, final_norm=False), 'arXiv 2410.01131'),
    },
)


def _learned_skip(block: nn.Module, x_BxTxD: jax.Array, start_BxTxD: jax.Array) -> jax.Array:
  """Returns a x + b start, with learned scalars a and b that start at 1 and 0.

  The parameters are (a - 1) / SLOW and b: with one learning rate, a changes more slowly than b, and
  weight decay draws a to 1.
  """
  zeros = nn.initializers.zeros
  slow, b = (block.param(name, zeros, ()) for name in ('skip_stream', 'skip_start'))
  # In float32: near 1, bfloat16 has steps of 0.004 to 0.008.
  mixed_BxTxD = (1 + SLOW * slow) * x_BxTxD + b * start_BxTxD
  return mixed_BxTxD.astype(x_BxTxD.dtype)


# (block, x [B, T, D], output of the embedding [B, T, D]) -> the input of the block; None: x.
SKIPS = Choices(
    'model.embedding_skip',
    {
        'none': Variant(None, 'the residual stream alone'),
        'learned': Variant(_learned_skip, 'github.com/karpathy/nanochat'),
    },
)
