"""Normalisations over the last axis, with statistics in float32, and what replaces them."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from stability.variants import Choices, Variant

NORM_EPS = 1e-6
DYT_ALPHA = 0.5  # initial factor inside the tanh (arXiv 2503.10622, section 4)


def _layernorm(dtype: str, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(
      epsilon=NORM_EPS, use_fast_variance=False, dtype=dtype, name=name, use_bias=False
  )


def _rmsnorm(dtype: str, name: str) -> nn.RMSNorm:
  return nn.RMSNorm(epsilon=NORM_EPS, use_fast_variance=False, dtype=dtype, name=name)


class DyT(nn.Module):
  """Dynamic tanh: scale * tanh(alpha * x) + bias, with a learned alpha for the whole tensor.

  Unlike norms, it passes on how small x is. The paper's language models therefore also multiply the
  embedding by a learned scalar, at first sqrt(width), which is no part of this module.
  """

  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    alpha = self.param('alpha', nn.initializers.constant(DYT_ALPHA), ())
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    return (scale * jnp.tanh(alpha * x) + bias).astype(self.dtype)


# (dtype, name) -> a module that is called with x.
NORMS = Choices(
    'model.norm',
    {
        'layernorm': Variant(_layernorm, 'arXiv 1607.06450'),
        'rmsnorm': Variant(_rmsnorm, 'arXiv 1910.07467'),
        'dyt': Variant(lambda dtype, name: DyT(dtype, name=name), 'arXiv 2503.10622'),
    },
)


def norm(kind: str, dtype: str, name: str) -> nn.Module:
  """The normalisation module for a value of model.norm."""
  return NORMS[kind].make(dtype, name)


def unit_rms(x: jax.Array) -> jax.Array:
  """Divides x by its root mean square over the last axis; the result is float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPS)
