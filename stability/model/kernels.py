"""Kernels of linear layers: initialisation, reparametrisations and products."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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

# The initial std of all parameters under WeSaR (arXiv 2410.05052).
WESAR_STD = 4e-5**0.5


class Kernel(NamedTuple):
  """A parametrisation of kernels."""

  # (module, name, parameter) -> the kernel that the layer multiplies by.
  make: Callable[[nn.Module, str, jax.Array], jax.Array]
  init: nn.initializers.Initializer = fan_in_init  # of the parameter
  of_head: bool = False  # whether the head has this form, too


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
    u_I = self.variable(CARRIED, 'u', _left_singular_vector, kernel_IxO)
    fixed_IxO = jax.lax.stop_gradient(kernel_IxO)
    v_O = unit(fixed_IxO.T @ u_I.value)
    new_u_I = unit(fixed_IxO @ v_O)
    if self.is_mutable_collection(CARRIED) and not self.is_initializing():
      u_I.value = new_u_I
    sigma = new_u_I @ kernel_IxO @ v_O
    return gain / sigma * kernel_IxO


def _left_singular_vector(kernel_IxO: jax.Array) -> jax.Array:
  """The left singular vector of the largest singular value.

  It comes from the smaller of the symmetric matrices W W' and W' W. A full
  decomposition of W takes over ten times as long where its sides differ by a factor of 4.
  """
  if kernel_IxO.shape[0] <= kernel_IxO.shape[1]:
    return jnp.linalg.eigh(kernel_IxO @ kernel_IxO.T)[1][:, -1]
  return unit(kernel_IxO @ jnp.linalg.eigh(kernel_IxO.T @ kernel_IxO)[1][:, -1])


def unit(vector: jax.Array) -> jax.Array:
  """The vector divided by its norm."""
  return vector / jnp.maximum(jnp.linalg.norm(vector), SMALLEST_NORM)


def _sigma_reparam(module: nn.Module, name: str, kernel: jax.Array) -> jax.Array:
  """Applies SigmaReparam, a submodule so that parameters drawn after it keep their values."""
  del module
  return SigmaReparam(name=f'{name}_reparam')(kernel)


class Multipliers(nn.Module):
  """The kernel r_i W_ij c_j, with a learned multiplier for each row and each column, at first 1."""

  @nn.compact
  def __call__(self, kernel_IxO: jax.Array) -> jax.Array:
    row_I = self.param('row', nn.initializers.ones, kernel_IxO.shape[:1])
    column_O = self.param('column', nn.initializers.ones, kernel_IxO.shape[1:])
    return _multiplied(kernel_IxO, row_I, column_O)


def _multiplied(kernel_IxO: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
  return row[:, None] * kernel_IxO * column


def _multipliers(module: nn.Module, name: str, kernel: jax.Array) -> jax.Array:
  del module
  return Multipliers(name=f'{name}_reparam')(kernel)


class WeSaR(nn.Module):
  """The matrix gain * W, where W starts with WESAR_STD and the matrix with 1 / sqrt(fan in).

  An update of a given size thus changes all parameters by the same fraction. Gradients with respect
  to W are multiplied by the gain, which Adam undoes.
  """

  fan_in: int

  @nn.compact
  def __call__(self, matrix: jax.Array) -> jax.Array:
    start = self.fan_in**-0.5 / WESAR_STD
    return self.param('gain', nn.initializers.constant(start), ()) * matrix


def _wesar(module: nn.Module, name: str, kernel: jax.Array) -> jax.Array:
  del module
  return WeSaR(kernel.shape[0], name=f'{name}_reparam')(kernel)


def _wesar_init(key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> jax.Array:
  """Draws the same kernel as fan_in_init, with the std WESAR_STD."""
  return fan_in_init(key, shape, dtype) * (WESAR_STD * shape[0] ** 0.5)


KERNELS = Choices(
    'model.kernel',
    {
        'plain': Variant(Kernel(_plain), 'the parameter itself'),
        'sigma_reparam': Variant(Kernel(_sigma_reparam), 'arXiv 2303.06296, section 3'),
        'multipliers': Variant(Kernel(_multipliers), 'arXiv 2601.04890'),
        'wesar': Variant(Kernel(_wesar, _wesar_init, of_head=True), 'arXiv 2410.05052'),
    },
)


def kernel_of_head(module: nn.Module, shape: tuple[int, int]) -> jax.Array:
  """The kernel of the head, [width, vocabulary]."""
  if KERNELS[module.c.kernel].make.of_head:
    return kernel(module, 'head', shape)
  return module.param('head', fan_in_init, shape)


def embedding(module: nn.Module, shape: tuple[int, int]) -> jax.Array:
  """The embedding, [vocabulary, width]. Of the forms, WeSaR alone is applied to it."""
  width = shape[1]
  if module.c.kernel != 'wesar':
    return module.param('embedding', nn.initializers.normal(width**-0.5), shape)
  embedding_VxD = module.param('embedding', nn.initializers.normal(WESAR_STD), shape)
  return WeSaR(width, name='embedding_reparam')(embedding_VxD)


def embedding_of(params: Mapping[str, Any]) -> jax.Array:
  """What `embedding` returns, from the parameters of the model."""
  return _with_gain(params, 'embedding')


def head_of(params: Mapping[str, Any]) -> jax.Array:
  """What `kernel_of_head` returns, from the parameters of the model."""
  return _with_gain(params, 'head')


def _with_gain(params: Mapping[str, Any], name: str) -> jax.Array:
  reparam = params.get(f'{name}_reparam')
  return params[name] if reparam is None else reparam['gain'] * params[name]


def with_multipliers(params: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters under model.kernel=multipliers, with kernels as `kernel` returns them."""
  found = {}
  for name, value in params.items():
    if isinstance(value, Mapping):
      found[name] = with_multipliers(value)
    else:
      reparam = params.get(f'{name}_reparam')
      found[name] = value if reparam is None else _multiplied(value, **reparam)
  return found


def kernel(module: nn.Module, name: str, shape: tuple[int, int]) -> jax.Array:
  """The kernel of a linear layer, [fan in, fan out], in the form that model.kernel selects.

  Its parameter is stored in the module under `name`.
  """
  form = KERNELS[module.c.kernel].make
  return form.make(module, name, module.param(name, form.init, shape))


def dot(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
  """The product x @ kernel of two-dimensional arrays, for which XLA's CPU kernels are fastest.

  The result has type `dtype`; None: that of the arguments.
  """
  return jnp.dot(x, kernel, preferred_element_type=dtype)
