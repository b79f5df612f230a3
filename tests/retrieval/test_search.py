"""Nearest neighbours against a table of all distances."""

import numpy as np
import pytest

from stability.retrieval import search


def brute_force(queries, keys, k):
  """Distances in float64, and indices; of equal distances, the lower index first."""
  differences = queries[:, None].astype(np.float64) - keys[None]
  distances = np.square(differences).sum(-1)
  order = np.argsort(distances, axis=1, kind='stable')[:, :k]
  return np.take_along_axis(distances, order, 1), order


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(search, '_QUERIES', 7)
  monkeypatch.setattr(search, '_KEYS', 20)


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('k', [1, 5, 64])
def test_equal_to_brute_force(k, threads):
  rng = np.random.default_rng(k)
  keys = rng.normal(size=(333, 6)).astype(np.float32)
  queries = rng.normal(size=(30, 6)).astype(np.float32)
  shares = []
  found = search.nearest(queries, [keys[:100], keys[100:]], k, threads, shares.append)
  distances, indices = brute_force(queries, keys, k)
  assert np.array_equal(found.indices_QxK, indices)
  np.testing.assert_allclose(found.distances_QxK, distances, rtol=1e-4, atol=1e-4)
  assert shares == sorted(shares) and shares[-1] == 1


@pytest.mark.parametrize('order', [1, -1])
def test_keys_that_come_nearer_and_nearer_or_go_away(order):
  """The limit is right whatever the order of the keys is."""
  keys = np.arange(500, dtype=np.float32)[::order, None].copy()
  found = search.nearest(np.float32([[-1.0]]), [keys], 30)
  assert np.array_equal(keys[found.indices_QxK[0], 0], np.arange(30))
  assert np.array_equal(found.distances_QxK[0], np.square(np.arange(30) + 1.0))


def test_fewer_keys_than_neighbours():
  keys = np.float32([[1, 0], [0, 2], [0, 0]])
  found = search.nearest(np.zeros((2, 2), np.float32), [keys[:2], keys[2:]], 10)
  assert found.indices_QxK.tolist() == [[2, 0, 1]] * 2
  assert found.distances_QxK.tolist() == [[0, 1, 4]] * 2
