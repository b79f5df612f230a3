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
