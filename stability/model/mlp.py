"""The MLP of a block and its variants. Shape suffixes: B batch, T positions, D width, F hidden."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from stability.model import adapters, ngpt
from stability.model.experts import MoE
from stability.model.kernels import kernel
from stability.model.measure import sow_activation
from stability.model.products import linear
from stability.types import HParams
from stability.variants import Choices, Variant


class MLP(nn.Module):
  """A linear layer to the hidden width F, an activation, a linear layer back to D.

  F is model.mlp_width. If that is 0, it is 4 D, or 8/3 D rounded to a multiple of 8 for a gated
  MLP, whose three matrices then have about as many weights as the two of the others.
  """

  c: ml_collections.FrozenConfigDict  # config.model
  activation: Callable[[jax.Array], jax.Array]
  gated: bool = False  # the activation is that of another linear layer, which multiplies the first
  # The input of the activation is multiplied by sqrt(D) and a learned scale of each feature, since
  # it is of order 1 / sqrt(D) if vectors have unit norm (nGPT).
  scaled: bool = False

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array, hparams: HParams) -> jax.Array:
    del hparams
    c = self.c
    B, T, D = x_BxTxD.shape
    F = c.mlp_width or (8 * round(D / 3) if self.gated else 4 * D)
    up_DxF = kernel(self, 'up', (D, F))
    down_FxD = kernel(self, 'down', (F, D))
    x = x_BxTxD.reshape(B * T, D)
    hidden = linear(self, x, up_DxF)
    if self.scaled:
      hidden *= (ngpt.scale(self, 'hidden_scale', F, stored=1.0) * D**0.5).astype(hidden.dtype)
    if self.gated:
      hidden = self.activation(linear(self, x, kernel(self, 'gate', (D, F)))) * hidden
    else:
      hidden = self.activation(hidden)
    hidden = adapters.adapt(self, 'hidden', hidden)
    out = linear(self, hidden, down_FxD).reshape(B, T, D)
    sow_activation(self, 'hidden', hidden)
    sow_activation(self, 'output', out)
    return out


def _squared_relu(x: jax.Array) -> jax.Array:
  return jnp.square(nn.relu(x))


# GELU in its tanh approximation.
_GELU = functools.partial(MLP, activation=nn.gelu)

# (config.model, name) -> a module that is called with x [B, T, D] and hparams.
MLPS = Choices(
    'model.mlp',
    {
        'gelu': Variant(_GELU, 'arXiv 1606.08415; section 2.1', reads=('model.mlp_width',)),
        'relu2': Variant(
            functools.partial(MLP, activation=_squared_relu),
            'arXiv 2109.08668',
            reads=('model.mlp_width',),
        ),
        'swiglu': Variant(
            functools.partial(MLP, activation=nn.silu, gated=True),
            'arXiv 2002.05202',
            reads=('model.mlp_width',),
        ),
        'ngpt': Variant(
            functools.partial(MLP, activation=nn.gelu, scaled=True),
            'arXiv 2410.01131',
            reads=('model.mlp_width',),
        ),
        'moe': Variant(
            functools.partial(MoE, expert=_GELU),
            'arXiv 1701.06538; weights: arXiv 2401.04088',
            reads=(
                'model.mlp_width',
                'model.experts',
                'model.experts_per_token',
                'model.router_bias_rate',
            ),
        ),
    },
)
