"""Kernels of a block's linear layers: initialisation, products and reparametrisations."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stability.variants import Choices, Variant

# The Flax collection of the variables that modules carry from step to step, besides parameters.
# Training steps update them, evaluation only reads them. They are part of a run's state and of its
# checkpoints.
CARRIED = 'carried'

# Lower bound of a norm that is divided by. Squares below 1e-38 underflow in float32, so that a
# smaller norm may be computed as 0, and a smaller bound would turn a short vector into a huge one.
SMALLEST_NORM = 1e-18

fan_in_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


def _plain(module: nn.Module, name: str, kernel: jax.Array) -> jax.Array:
  del module, name
  return kernel


class SigmaReparam(nn.Module):
  """The kernel gain / sigma * W, where sigma estimates the spectral norm of W.

  Each forward pass makes one step of power iteration. The gain is learned and starts at 1. The left
  vector u is carried from step to step and starts as the left singular vector of W. Gradients pass
  through the W in sigma, but not through the singular vectors.
  """

  @nn.compact
  def __call__(self, kernel_IxO: jax.Array) -> jax.Array:
    gain = self.param('gain', nn.initializers.ones, ())
    u_I = self.variable(CARRIED, 'u', lambda: jnp.linalg.svd(kernel_IxO)[0][:, 0])
    fixed_IxO = jax.lax.stop_gradient(kernel_IxO)
    v_O = _unit(fixed_IxO.T @ u_I.value)
    new_u_I = _unit(fixed_IxO @ v_O)
    if self.is_mutable_collection(CARRIED) and not self.is_initializing():
      u_I.value = new_u_I
    sigma = new_u_I @ kernel_IxO @ v_O
    return gain / sigma * kernel_IxO


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x), SMALLEST_NORM)


def _sigma_reparam(module: nn.Module, name: str, kernel: jax.Array) -> jax.Array:
  """Applies SigmaReparam, a submodule so that parameters drawn after it keep their values."""
  del module
  return SigmaReparam(name=f'{name}_reparam')(kernel)


# (module, name, parameter) -> the kernel that the layer multiplies by.
KERNELS = Choices(
    'model.kernel',
    {
        'plain': Variant(_plain, 'the parameter itself'),
        'sigma_reparam': Variant(_sigma_reparam, 'arXiv 2303.06296, section 3'),
    },
)


def kernel(module: nn.Module, name: str, shape: tuple[int, int]) -> jax.Array:
  """The kernel of a linear layer, [fan in, fan out], in the form that model.kernel selects.

  Its parameter is stored in the module under `name`.
  """
  return KERNELS[module.c.kernel].make(module, name, module.param(name, fan_in_init, shape))


def dot(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
  """The product x @ kernel of two-dimensional arrays, for which XLA's CPU kernels are fastest.

  The result has type `dtype`; None: that of the arguments.
  """
  return jnp.dot(x, kernel, preferred_element_type=dtype)
