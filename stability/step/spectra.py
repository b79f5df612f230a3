"""Spectra of matrices, by power iteration."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from stability.model.kernels import SMALLEST_NORM

STEPS = 20  # of power iteration; a spectral norm is then a few percent too low at most


def stable_ranks(matrices: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """||W||_F^2 / ||W||_2^2 of each matrix W, by name: 1 if its rank is 1, at most its rank.

  Matrices of equal shape are processed together.
  """
  by_shape: dict[tuple[int, ...], list[str]] = {}
  for name, matrix in matrices.items():
    by_shape.setdefault(matrix.shape, []).append(name)
  found = {}
  for names in by_shape.values():
    ranks = jax.vmap(_stable_rank)(jnp.stack([matrices[name] for name in names]))
    found |= dict(zip(names, ranks, strict=True))
  return {name: found[name] for name in matrices}


def _stable_rank(matrix_IxO: jax.Array) -> jax.Array:
  start_O = np.random.default_rng(0).normal(size=matrix_IxO.shape[1]).astype(np.float32)

  def step(_, vector_O):
    product_O = (matrix_IxO @ vector_O) @ matrix_IxO
    return product_O / jnp.maximum(jnp.linalg.norm(product_O), SMALLEST_NORM)

  # Scaled first, since squares of small elements would underflow.
  matrix_IxO = matrix_IxO / jnp.maximum(jnp.max(jnp.abs(matrix_IxO)), SMALLEST_NORM)
  vector_O = jax.lax.fori_loop(0, STEPS, step, jnp.asarray(start_O))
  vector_O /= jnp.maximum(jnp.linalg.norm(vector_O), SMALLEST_NORM)
  squared_norm = jnp.sum(jnp.square(matrix_IxO))
  return squared_norm / jnp.maximum(jnp.sum(jnp.square(matrix_IxO @ vector_O)), SMALLEST_NORM)
