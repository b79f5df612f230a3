"""The MLP of a block and its variants. Shape suffixes: B batch, T positions, D width, F hidden."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import ml_collections

from stability.model import ngpt
from stability.model.kernels import kernel
from stability.model.measure import sow_activation
from stability.model.products import linear
from stability.variants import Choices, Variant


class GeluMLP(nn.Module):
  """A linear layer to width 4 D, GELU in its tanh approximation, a linear layer back to D.

  With `scaled`, the GELU's input is multiplied by sqrt(D) and a scale that is learned for each
  feature, since it is of order 1 / sqrt(D) if vectors have unit norm (nGPT).
  """

  c: ml_collections.FrozenConfigDict  # config.model
  scaled: bool = False

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array, hparams: Mapping[str, jax.Array]) -> jax.Array:
    del hparams
    B, T, D = x_BxTxD.shape
    up_DxF = kernel(self, 'up', (D, 4 * D))
    down_FxD = kernel(self, 'down', (4 * D, D))
    hidden = linear(self, x_BxTxD.reshape(B * T, D), up_DxF)
    if self.scaled:
      hidden *= (ngpt.scale(self, 'scale', 4 * D) * D**0.5).astype(hidden.dtype)
    hidden = nn.gelu(hidden)
    out = linear(self, hidden, down_FxD).reshape(B, T, D)
    sow_activation(self, 'hidden', hidden)
    sow_activation(self, 'output', out)
    return out


# (config.model, name) -> a module that is called with x [B, T, D] and hparams.
MLPS = Choices(
    'model.mlp',
    {
        'gelu': Variant(GeluMLP, 'arXiv 1606.08415; section 2.1'),
        'ngpt': Variant(functools.partial(GeluMLP, scaled=True), 'arXiv 2410.01131'),
    },
)
