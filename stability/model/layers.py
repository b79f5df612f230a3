"""What the parts of the model share: products, norms, soft caps, and where measurements go."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Collections that a probed apply makes mutable; elsewhere sow does nothing and costs nothing.
PROBES = 'probes'
ACTIVATIONS = 'activation_rms'
NORM_EPS = 1e-6

fan_in_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


def norm(kind: str, dtype: str, name: str) -> nn.LayerNorm | nn.RMSNorm:
  """A layernorm or rmsnorm over the last axis: a scale, no bias; statistics in float32."""
  common = dict(epsilon=NORM_EPS, use_fast_variance=False, dtype=dtype, name=name)
  return nn.RMSNorm(**common) if kind == 'rmsnorm' else nn.LayerNorm(use_bias=False, **common)


def unit_rms(x: jax.Array) -> jax.Array:
  """Divides by the root of the mean square over the last axis, in float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + NORM_EPS)


def soft_cap(x: jax.Array, cap: jax.Array) -> jax.Array:
  """Keeps x within +-cap, by cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118)."""
  return cap * jnp.tanh(x / cap)


def rms(x: jax.Array) -> jax.Array:
  """Root of the mean square over all elements, in float32."""
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def dot(x: jax.Array, kernel: jax.Array, dtype=None) -> jax.Array:
  """Product of two-dimensional arrays, in which XLA's CPU kernels are fastest."""
  return jnp.dot(x, kernel, preferred_element_type=dtype)
