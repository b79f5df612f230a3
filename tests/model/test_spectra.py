"""Stable ranks against NumPy's singular values."""

import jax
import numpy as np
import pytest

from stability.model import spectra

RNG = np.random.default_rng(0)
MATRICES = {
    'square': RNG.normal(size=(24, 24)),
    'wide': RNG.normal(size=(8, 24)),
    'tall': RNG.normal(size=(24, 8)),
    'other square': np.diag([3.0, *[1.0] * 23]),
    'rank one': np.outer(RNG.normal(size=8), RNG.normal(size=24)),
    'tiny': 1e-25 * np.outer(RNG.normal(size=24), RNG.normal(size=8)),
    'identity': np.eye(24),
    'orthogonal to ones': np.outer(RNG.normal(size=8), [1.0, -1.0] * 12),
}


def test_stable_ranks():
  matrices = {name: np.float32(matrix) for name, matrix in MATRICES.items()}
  found = jax.jit(spectra.stable_ranks)(matrices)
  assert found.keys() == MATRICES.keys()
  for name, matrix in MATRICES.items():
    singular = np.linalg.svd(matrix, compute_uv=False)
    expected = np.sum(singular**2) / singular[0] ** 2
    # The spectral norm of a random matrix converges slowly from below.
    assert expected * (1 - 1e-5) <= found[name] <= expected * 1.1, name
    if name not in ('square', 'wide', 'tall'):
      assert found[name] == pytest.approx(expected, rel=1e-5), name


def test_matrix_of_zeros():
  assert np.isfinite(spectra.stable_ranks({'zero': np.zeros((4, 6), np.float32)})['zero'])


@pytest.mark.parametrize('group', [1, 2])
@pytest.mark.parametrize('width, head_dim', [(24, 6), (8, 8), (4, 1)])
def test_qk_spectral_entropies(width, head_dim, group, rng):
  """Against the singular values of the whole product, [D, D]."""
  heads = width // head_dim
  if heads % group:
    pytest.skip('heads cannot share keys')
  query, key = rng.normal(size=(width, width)), rng.normal(size=(width, width // group))
  query[:, 0] *= 100  # one direction of one head dominates
  found = jax.jit(spectra.qk_spectral_entropies, static_argnums=2)(
      np.float32(query), np.float32(key), head_dim
  )
  assert found.shape == (heads,)
  for h in range(heads):
    own, shared = (slice(head_dim * i, head_dim * (i + 1)) for i in (h, h // group))
    singular = np.linalg.svd(query[:, own] @ key[:, shared].T, compute_uv=False)[:head_dim]
    shares = singular**2 / np.sum(singular**2)
    expected = -np.sum(shares * np.log(shares)) / np.log(head_dim) if head_dim > 1 else 1
    assert found[h] == pytest.approx(expected, rel=1e-4), h


def test_qk_spectral_entropy_of_known_spectra():
  unit, zero = np.eye(8, dtype=np.float32), np.zeros((8, 8), np.float32)
  assert spectra.qk_spectral_entropies(unit, unit, 8)[0] == pytest.approx(1)
  assert spectra.qk_spectral_entropies(1e-9 * unit, unit, 8)[0] == pytest.approx(1)
  assert spectra.qk_spectral_entropies(unit, zero, 8)[0] == 0
