"""Sharpness: the curvature of the loss around the parameters of a run.

It is measured at an interval of its own, since it needs additional passes through the model.

  critical_sharpness        2 / eta, where eta is the learning rate above which a step along the
                            update raises the loss of its batch (arXiv 2601.16979); 8 forward passes
  preconditioned_sharpness  the largest eigenvalue of P^-1 H, where H is the Hessian of the batch's
                            loss and P = sqrt(v) + eps is Adam's preconditioner (arXiv 2207.14484);
                            10 products with H, each about as costly as two gradients; AdamW only

Each is also given as a ratio to its value at the edge of stability: 2 / LR, and
(2 + 2 beta1) / ((1 - beta1) LR), where LR is the current learning rate. A layer with a learning
rate of its own is measured at that rate. Gradient clipping is not part of P, although v is computed
from clipped gradients.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from stability.step.probes import Measurements
from stability.types import Tree

Loss = Callable[[Tree], jax.Array]  # parameters -> loss

OCTAVES = 12  # the search covers multiples of the current step from 2^-12 to 2^12
PASSES = 7  # bisections, which find the multiple to a factor of 2^(24 / 2^8), 7 %
PRODUCTS = 10  # Hessian-vector products


def cost_in_gradients(optimizer: str) -> float:
  """The cost of a measurement, in gradients of a step: a forward pass is a third of one."""
  return (1 + PASSES) / 3 + (2 * PRODUCTS if optimizer == 'adamw' else 0)


def critical(
    loss: Loss, params: Tree, gradients: Tree, step: Tree, rate: jax.Array
) -> Measurements:
  """Critical sharpness, and its ratio to 2 / rate.

  Both are NaN if the loss rises from the start of the step, as momentum may cause.

  Args:
    loss: the loss of the step's batch as a function of the parameters.
    params: the parameters before the step.
    gradients: the gradient of the loss at `params`.
    step: what the step subtracts from `params`.
    rate: the learning rate of the step.
  """
  scale = critical_scale(
      lambda scale: loss(jax.tree.map(lambda p, s: p - scale * s, params, step)), loss(params)
  )
  scale = jnp.where(optax.tree.vdot(gradients, step) > 0, scale, jnp.nan)
  return {
      'critical_sharpness': 2 / (scale * rate),
      'critical_sharpness_ratio': 1 / scale,
  }


def critical_scale(loss: Callable[[jax.Array], jax.Array], here: jax.Array) -> jax.Array:
  """The multiple of a step above which the step raises the loss.

  It is found by bisection on a logarithmic scale, which assumes that the loss first falls and then
  rises. If no multiple or every multiple raises the loss, the result is at a limit of the search.

  Args:
    loss: the loss as a function of the multiple.
    here: the loss without the step.
  """

  def narrow(_, limits):
    low, high = limits
    middle = (low + high) / 2
    raised = ~(loss(jnp.exp2(middle)) <= here)  # also if it is not finite
    return jnp.where(raised, low, middle), jnp.where(raised, middle, high)

  limits = jnp.float32(-OCTAVES), jnp.float32(OCTAVES)
  low, high = jax.lax.fori_loop(0, PASSES, narrow, limits)
  return jnp.exp2((low + high) / 2)


def preconditioned(
    gradient: Callable[[Tree], Tree],
    params: Tree,
    gradients: Tree,
    preconditioner: Tree,
    rate: jax.Array,
    beta1: jax.Array,
) -> Measurements:
  """Preconditioned sharpness, and its ratio to the value at Adam's edge of stability.

  Args:
    gradient: the gradient of the batch's loss as a function of the parameters.
    params: the parameters at which to measure.
    gradients: the gradient at `params`.
    preconditioner: P, positive and of the shape of the parameters; the direction of the update is
      momentum / P.
    rate: the current learning rate.
    beta1: decay rate of the momentum.
  """
  root = jax.tree.map(jnp.sqrt, preconditioner)

  def product(direction):
    """Multiplies by P^-1/2 H P^-1/2, which is symmetric and has the eigenvalues of P^-1 H."""
    tangent = jax.tree.map(jnp.divide, direction, root)
    return jax.tree.map(jnp.divide, jax.jvp(gradient, (params,), (tangent,))[1], root)

  found = largest_eigenvalue(product, jax.tree.map(jnp.divide, gradients, root))
  return {
      'preconditioned_sharpness': found,
      'preconditioned_sharpness_ratio': found * rate * (1 - beta1) / (2 + 2 * beta1),
  }


def largest_eigenvalue(product: Callable[[Tree], Tree], start: Tree) -> jax.Array:
  """The largest eigenvalue of a symmetric matrix, estimated from below by Lanczos iteration.

  Args:
    product: multiplies the matrix by a vector.
    start: a vector that is not orthogonal to the eigenvector of the largest eigenvalue.
  """

  def iterate(i, carry):
    previous, vector, off_diagonal, diagonals, off_diagonals = carry
    new = product(vector)
    diagonal = optax.tree.vdot(new, vector)
    new = jax.tree.map(lambda n, v, p: n - diagonal * v - off_diagonal * p, new, vector, previous)
    off_diagonal = optax.tree.norm(new)
    return (
        vector,
        _divide(new, off_diagonal),
        off_diagonal,
        diagonals.at[i].set(diagonal),
        off_diagonals.at[i].set(off_diagonal),
    )

  zero_vector = jax.tree.map(jnp.zeros_like, start)
  zeros = jnp.zeros(PRODUCTS)
  first = _divide(start, optax.tree.norm(start))
  carry = zero_vector, first, jnp.float32(0), zeros, zeros
  *_, diagonals, off_diagonals = jax.lax.fori_loop(0, PRODUCTS, iterate, carry)
  matrix = jnp.diag(diagonals) + jnp.diag(off_diagonals[:-1], 1) + jnp.diag(off_diagonals[:-1], -1)
  return jnp.linalg.eigvalsh(matrix)[-1]


def _divide(tree: Tree, norm: jax.Array) -> Tree:
  """The tree divided by its norm; zeros if it is 0, when the Krylov space is exhausted."""
  return jax.tree.map(lambda x: jnp.where(norm > 0, x / norm, 0), tree)
