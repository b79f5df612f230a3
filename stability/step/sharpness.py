"""How curved the loss is around a run, at steps of an interval of their own: it costs passes.

  critical_sharpness        2 / eta, eta the learning rate from which on a step along the update
                            raises the loss of its batch (arXiv 2601.16979); 8 passes forward
  preconditioned_sharpness  the largest eigenvalue of P^-1 H, H the Hessian of the batch's loss and
                            P = sqrt(v) + eps Adam's preconditioner (arXiv 2207.14484); 10 products
                            with H, at about two gradients each; of AdamW alone

Each with its ratio to the value at which training is on the edge of stability: 2 / LR, and
(2 + 2 beta1) / ((1 - beta1) LR), LR being the present learning rate. A layer with a learning rate
of its own counts with that. Clipping, which v has seen, is no part of P.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from stability.step.probes import Measurements

Tree = Any  # of arrays
Loss = Callable[[Tree], jax.Array]  # of parameters

OCTAVES = 12  # multiples of the present step from 2^-12 to 2^12 are told apart
PASSES = 7  # to 2^(24 / 2^8), 7 %
PRODUCTS = 10


def critical(
    loss: Loss, params: Tree, gradients: Tree, step: Tree, rate: jax.Array
) -> Measurements:
  """Critical sharpness, and its ratio to 2 / rate; NaN where the step leads uphill from the start.

  Args:
    loss: of the batch that the step was made for.
    params: before it.
    gradients: there; momentum may point against them.
    step: what is taken from them.
    rate: the learning rate with which the step was made.
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
  """The multiple of a step from which on it raises the loss; the limits where none or all do.

  Between the limits by bisection of their logarithms, for a loss that falls first and then rises.
  """

  def narrow(_, limits):
    low, high = limits
    middle = (low + high) / 2
    raised = ~(loss(jnp.exp2(middle)) <= here)  # not finite is raised
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
  """Preconditioned sharpness, and its ratio to where Adam is on the edge of stability.

  Args:
    gradient: of the batch's loss, as a function of the parameters.
    params: where it is taken.
    gradients: there.
    preconditioner: P, a positive number for each parameter, at which the update is momentum / P.
    rate: the present learning rate.
    beta1: of the momentum.
  """
  root = jax.tree.map(jnp.sqrt, preconditioner)

  def product(direction):
    """With P^-1/2 H P^-1/2, which is symmetric and has the eigenvalues of P^-1 H."""
    tangent = jax.tree.map(jnp.divide, direction, root)
    return jax.tree.map(jnp.divide, jax.jvp(gradient, (params,), (tangent,))[1], root)

  found = largest_eigenvalue(product, jax.tree.map(jnp.divide, gradients, root))
  return {
      'preconditioned_sharpness': found,
      'preconditioned_sharpness_ratio': found * rate * (1 - beta1) / (2 + 2 * beta1),
  }


def largest_eigenvalue(product: Callable[[Tree], Tree], start: Tree) -> jax.Array:
  """Of a symmetric matrix, from below, by Lanczos' iteration.

  Args:
    product: of the matrix with a vector.
    start: a vector that is not perpendicular to what is sought.
  """

  def iterate(i, carry):
    before, vector, off_diagonal, diagonals, off_diagonals = carry
    new = product(vector)
    diagonal = optax.tree.vdot(new, vector)
    new = jax.tree.map(lambda n, v, b: n - diagonal * v - off_diagonal * b, new, vector, before)
    off_diagonal = optax.tree.norm(new)
    return (
        vector,
        _over(new, off_diagonal),
        off_diagonal,
        diagonals.at[i].set(diagonal),
        off_diagonals.at[i].set(off_diagonal),
    )

  nothing = jax.tree.map(jnp.zeros_like, start)
  zeros = jnp.zeros(PRODUCTS)
  carry = nothing, _over(start, optax.tree.norm(start)), jnp.float32(0), zeros, zeros
  *_, diagonals, off_diagonals = jax.lax.fori_loop(0, PRODUCTS, iterate, carry)
  matrix = jnp.diag(diagonals) + jnp.diag(off_diagonals[:-1], 1) + jnp.diag(off_diagonals[:-1], -1)
  return jnp.linalg.eigvalsh(matrix)[-1]


def _over(tree: Tree, norm: jax.Array) -> Tree:
  """The tree divided by its norm; zeros where that is 0, and the matrix is exhausted."""
  return jax.tree.map(lambda x: jnp.where(norm > 0, x / norm, 0), tree)
