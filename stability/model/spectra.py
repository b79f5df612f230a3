"""Spectral norms and stable ranks of matrices, by power iteration, and spectral entropies.

Shape suffixes: D width, E width of all keys, H heads, K head dimension.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from stability.model.kernels import SMALLEST_NORM, unit

# Of power iteration. The spectral norm of a Gaussian matrix of width 64 to 1,024 is then up to 2 %
# too low.
STEPS = 20


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
  matrix_IxO = _scaled(matrix_IxO)  # since squares of small elements would underflow
  squared = jnp.square(spectral_norm(matrix_IxO))
  return jnp.sum(jnp.square(matrix_IxO)) / jnp.maximum(squared, SMALLEST_NORM)


def spectral_norm(matrix_IxO: jax.Array) -> jax.Array:
  """An estimate of the largest singular value, never above it.

  It starts from random numbers that are always the same: regular vectors, such as ones, may be
  orthogonal to the wanted one.
  """

  def step(_, vector_O):
    return unit(unit(matrix_IxO @ vector_O) @ matrix_IxO)

  start_O = np.random.default_rng(0).normal(size=matrix_IxO.shape[1]).astype(np.float32)
  vector_O = jax.lax.fori_loop(0, STEPS, step, jnp.asarray(start_O))
  return jnp.linalg.norm(matrix_IxO @ vector_O)


def radius(shape: tuple[int, int]) -> float:
  """The spectral norm of a kernel, [fan in, fan out], on the sphere of arXiv 2601.08393."""
  fan_in, fan_out = shape
  return (fan_out / fan_in) ** 0.5


def to_sphere(kernel: jax.Array) -> jax.Array:
  """A kernel, [fan in, fan out], scaled to the spectral norm of the sphere."""
  norm = spectral_norm(kernel)
  return radius(kernel.shape) / jnp.maximum(norm, SMALLEST_NORM) * kernel


def qk_spectral_entropies(query_DxD: jax.Array, key_DxE: jax.Array, head_dim: int) -> jax.Array:
  """The spectral entropy of W_q W_k^T of each head, [H]: 1 if all singular values are equal.

  It is the entropy of the squared singular values over their sum, divided by its largest value;
  with one, it is 1, and of zeros, 0. Query head h uses key head h // (H // key heads).
  """
  D, E = key_DxE.shape
  q_HxDxK, k_HxDxK = (
      jnp.moveaxis(w.reshape(D, -1, head_dim), 1, 0) for w in (query_DxD, key_DxE)
  )
  k_HxDxK = jnp.repeat(k_HxDxK, D // E, axis=0)
  # W_q W_k^T has the singular values of R_q R_k^T, which is no larger than K x K. They are scaled
  # first, since products of small elements would underflow.
  r_q, r_k = (jnp.linalg.qr(_scaled(w), mode='r') for w in (q_HxDxK, k_HxDxK))
  product = r_q @ jnp.swapaxes(r_k, -1, -2)
  values = jnp.square(jnp.linalg.svd(product, compute_uv=False))
  shares = values / jnp.maximum(jnp.sum(values, axis=-1, keepdims=True), SMALLEST_NORM)
  count = shares.shape[-1]
  if count == 1:
    return jnp.ones(shares.shape[0])
  logs = jnp.log(jnp.where(shares > 0, shares, 1))
  return -jnp.sum(shares * logs, axis=-1) / np.log(count)


def _scaled(matrices: jax.Array) -> jax.Array:
  """Matrices [..., I, O], each divided by its largest element."""
  largest = jnp.max(jnp.abs(matrices), axis=(-2, -1), keepdims=True)
  return matrices / jnp.maximum(largest, SMALLEST_NORM)
