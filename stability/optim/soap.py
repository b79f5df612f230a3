"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321, algorithm 3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stability.types import Tree


class SoapState(NamedTuple):
  """SOAP's state: trees with an entry for every matrix of gradients, G [m, n]."""

  count: jax.Array  # updates so far
  mu: Tree  # moving average of G, [m, n]
  nu: Tree  # moving average of G^2 in the eigenbasis, [m, n]
  left: Tree  # moving average of G G', [m, m]
  right: Tree  # moving average of G' G, [n, n]
  left_basis: Tree  # eigenvectors of left, in columns
  right_basis: Tree  # eigenvectors of right, in columns


def scale_by_soap(
    beta1: jax.Array, beta2: jax.Array, eps: jax.Array, every: jax.Array
) -> optax.GradientTransformation:
  """Directions of matrices. The first one is 0, since that update only sets the eigenbasis.

  Args:
    beta1: decay of the mean gradient.
    beta2: decay of the mean square and of both preconditioners.
    eps: added to the root of the mean square.
    every: updates between refinements of the eigenbasis, each of which is one step of power
      iteration. Under vmap, all branches of the refinement are computed in every update.
  """

  def init(params):
    def side(axis):
      return lambda make: jax.tree.map(lambda p: make(p.shape[axis]), params)

    left, right = side(0), side(1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    zero_square = lambda n: jnp.zeros((n, n))  # noqa: E731
    return SoapState(
        count=jnp.int32(0),
        mu=zeros,
        nu=zeros,
        left=left(zero_square),
        right=right(zero_square),
        left_basis=left(jnp.eye),
        right_basis=right(jnp.eye),
    )

  def update(gradients, state, params=None):
    del params
    count, is_first = state.count, state.count == 0
    refine = ~is_first & (count % every == 0)

    def update_matrix(g, mu, nu, left, right, left_basis, right_basis):
      left = beta2 * left + (1 - beta2) * g @ g.T
      right = beta2 * right + (1 - beta2) * g.T @ g
      rotated = left_basis.T @ g @ right_basis
      mu = jnp.where(is_first, mu, beta1 * mu + (1 - beta1) * g)
      nu = jnp.where(is_first, nu, beta2 * nu + (1 - beta2) * jnp.square(rotated))
      # Bias-corrected moments; the first update does not use them.
      steps = jnp.maximum(count, 1).astype(jnp.float32)
      first = (left_basis.T @ mu @ right_basis) / (1 - beta1**steps)
      second = nu / (1 - beta2**steps)
      rotated_update = first / (jnp.sqrt(second) + eps)
      direction = jnp.where(is_first, 0.0, left_basis @ rotated_update @ right_basis.T)
      left_basis, order_m = _basis(left, left_basis, is_first, refine)
      right_basis, order_n = _basis(right, right_basis, is_first, refine)
      nu = nu[order_m][:, order_n]
      return direction, (mu, nu, left, right, left_basis, right_basis)

    kept = state[1:]
    leaves, structure = jax.tree.flatten(gradients)
    rows = zip(leaves, *(structure.flatten_up_to(tree) for tree in kept), strict=True)
    updated = [update_matrix(*row) for row in rows]  # empty at depth 0
    directions = structure.unflatten([direction for direction, _ in updated])
    columns = ([new[i] for _, new in updated] for i in range(len(kept)))
    return directions, SoapState(count + 1, *map(structure.unflatten, columns))

  return optax.GradientTransformation(init, update)


def _basis(
    matrix: jax.Array, basis: jax.Array, is_first: jax.Array, refine: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The new eigenbasis of a symmetric matrix, and where its columns come from.

  Returns the basis, [n, n], and for each column the index of the old eigenvector that it continues,
  [n]. The first update computes the basis exactly; later ones refine it or keep it.
  """
  unchanged = jnp.arange(matrix.shape[0])

  def exact(basis):
    del basis
    return jnp.linalg.eigh(matrix)[1][:, ::-1], unchanged

  def power_step(basis):
    order = jnp.argsort(-jnp.diag(basis.T @ matrix @ basis))
    return jnp.linalg.qr(matrix @ basis[:, order])[0], order

  def keep(basis):
    return basis, unchanged

  which = jnp.where(is_first, 0, jnp.where(refine, 1, 2))
  return jax.lax.switch(which, (exact, power_step, keep), basis)
