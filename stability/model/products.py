"""Products of a block's linear layers, in the type of activations or in simulated FP8.

The kernels of queries, keys and values are one tensor here, and so have one scale in FP8.

Shape suffixes: N rows, I fan in, O fan out.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from stability.model.kernels import dot
from stability.model.rounding import E4M3, E5M2, Format, to_fp8
from stability.variants import Choices, Variant

# Lower bound of the largest element of a tensor that is scaled to the range of FP8.
SMALLEST_LARGEST = 1e-12


def linear(module: nn.Module, x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
  """The product of a linear layer of a block, in the form that model.linear_precision selects."""
  c = module.c
  return PRODUCTS[c.linear_precision].make(x_NxI, kernel_IxO.astype(c.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _scaled(x: jax.Array, form: Format) -> tuple[jax.Array, jax.Array]:
  """The scale that maps the largest element of x to that of the format, and scale * x in FP8."""
  largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
  scale = form.largest / jnp.maximum(largest, SMALLEST_LARGEST)
  return scale, to_fp8(x.astype(jnp.float32) * scale, form).astype(x.dtype)


@_scaled.defjvp
def _(form, primals, tangents):
  """Straight-through: rounding and the choice of the scale have no derivative."""
  scale, rounded = _scaled(*primals, form)
  tangent = (tangents[0].astype(jnp.float32) * scale).astype(rounded.dtype)
  return (scale, rounded), (jnp.zeros_like(scale), tangent)


@jax.custom_vjp
def fp8_dot(x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
  """The product of x and kernel in e4m3, whose gradient is computed from its own in e5m2.

  Each of the three tensors has one scale: that of the rows in a microbatch, on a device or, in the
  layout `sharded`, on all of them.
  """
  return _forward(x_NxI, kernel_IxO)[0]


def _forward(x_NxI, kernel_IxO):
  x, kernel = _scaled(x_NxI, E4M3), _scaled(kernel_IxO, E4M3)
  return _descaled_dot(x, kernel, x_NxI.dtype), (x, kernel)


def _backward(saved, gradient_NxO):
  (x_scale, x_NxI), (kernel_scale, kernel_IxO) = saved
  gradient = _scaled(gradient_NxO, E5M2)
  dtype = gradient_NxO.dtype
  return (
      _descaled_dot(gradient, (kernel_scale, kernel_IxO.T), dtype),
      _descaled_dot((x_scale, x_NxI.T), gradient, dtype),
  )


def _descaled_dot(left, right, dtype):
  (left_scale, a), (right_scale, b) = left, right
  return (dot(a, b, jnp.float32) / left_scale / right_scale).astype(dtype)


fp8_dot.defvjp(_forward, _backward)

# (x [N, I], kernel [I, O]) -> their product [N, O].
PRODUCTS = Choices(
    'model.linear_precision',
    {
        'dtype': Variant(dot, 'section 2.1'),
        'fp8': Variant(fp8_dot, 'arXiv 2209.05433; github.com/karpathy/nanochat'),
    },
)
