"""The kernels of a block's linear layers: their initialisation, products and reparametrisations."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stability.variants import Choices, Variant

# The collection of what a module carries from step to step beside its parameters. It is mutable in
# training steps and read as it stands in evaluation; the run's state and checkpoints hold it.
CARRIED = 'carried'

fan_in_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


def _plain(module: nn.Module, name: str, kernel: jax.Array) -> jax.Array:
  del module, name
  return kernel


# (module, name, the parameter) -> the kernel that the layer multiplies with.
KERNELS = Choices(
    'model.kernel',
    {
        'plain': Variant(_plain, 'the parameter itself'),
    },
)


def kernel(module: nn.Module, name: str, shape: tuple[int, int]) -> jax.Array:
  """A kernel of a linear layer, [fan in, fan out]: its parameter under `name`, as model.kernel."""
  return KERNELS[module.c.kernel].make(module, name, module.param(name, fan_in_init, shape))


def dot(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
  """Product of two-dimensional arrays, for which XLA's CPU kernels are fastest."""
  return jnp.dot(x, kernel, preferred_element_type=dtype)
