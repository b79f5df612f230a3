"""Exact nearest neighbours in arrays that may be larger than memory, which are read once.

Blocks of squared distances come from matrix products. An element is kept only if it is nearer than
the k-th nearest so far. After the first blocks few are, so most of the time goes into the products.
They are too small for a multithreaded BLAS: a program with long searches sets
OPENBLAS_NUM_THREADS=1 before it imports NumPy, and gives `nearest` the cores.

Shape suffixes: Q queries, D width, J keys of a block, K neighbours.
"""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_QUERIES, _KEYS = 256, 2_048  # of a block, whose distances fit in a core's cache


class Neighbours(NamedTuple):
  """The nearest keys of each query, nearest first."""

  distances_QxK: np.ndarray  # float32; squared
  indices_QxK: np.ndarray  # int64; positions in the concatenation of the arrays


def nearest(
    queries_QxD: np.ndarray,
    arrays: Sequence[np.ndarray],
    k: int,
    threads: int = 1,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> Neighbours:
  """The k nearest keys of each query, or all if there are fewer, by Euclidean distance.

  Args:
    queries_QxD: float32.
    arrays: of keys, float32 [keys, D] each; they may be memory-mapped.
    k: number of neighbours.
    threads: number of threads; the result does not depend on it.
    on_progress: called with the share of the keys that were compared.
  """
  total = sum(map(len, arrays))
  blocks = [
      _Block(queries_QxD[start : start + _QUERIES], min(k, total))
      for start in range(0, len(queries_QxD), _QUERIES)
  ]
  groups = [(blocks[i::threads], np.empty((_QUERIES, _KEYS), np.float32)) for i in range(threads)]
  done = 0
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for array in arrays:
      for start in range(0, len(array), _KEYS):
        keys_JxD = np.asarray(array[start : start + _KEYS])
        norms_J = np.einsum('jd,jd->j', keys_JxD, keys_JxD)
        keys_DxJ = np.ascontiguousarray(keys_JxD.T)
        tasks = [pool.submit(_compare, *group, keys_DxJ, norms_J, done) for group in groups]
        for task in tasks:
          task.result()
        done += len(keys_JxD)
        on_progress(done / total)
  found = [block.sorted() for block in blocks]
  return Neighbours(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _compare(
    blocks: Sequence['_Block'],
    scratch: np.ndarray,
    keys_DxJ: np.ndarray,
    norms_J: np.ndarray,
    first: int,
) -> None:
  for block in blocks:
    block.compare(keys_DxJ, norms_J, first, scratch)


class _Block:
  """Some queries and their nearest keys so far."""

  def __init__(self, queries_QxD: np.ndarray, k: int):
    self._doubled_QxD = 2 * queries_QxD
    self._norms_Q = np.einsum('qd,qd->q', queries_QxD, queries_QxD)
    count = len(queries_QxD)
    # A score is the squared norm of the query minus the squared distance.
    self._scores_QxK = np.full((count, k), -np.inf, np.float32)
    self._indices_QxK = np.full((count, k), -1)
    self._limit_Qx1 = np.full((count, 1), -np.inf, np.float32)
    self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # rows, scores, indices
    self._most_pending = 0

  def compare(
      self, keys_DxJ: np.ndarray, norms_J: np.ndarray, first: int, scratch: np.ndarray
  ) -> None:
    """Compares the queries with keys.

    Args:
      keys_DxJ: the keys.
      norms_J: their squared norms.
      first: the index of the first of them.
      scratch: float32 array for the scores, at least [Q, J].
    """
    shape = len(self._doubled_QxD), len(norms_J)
    scores_QxJ = scratch.reshape(-1)[: shape[0] * shape[1]].reshape(shape)
    np.matmul(self._doubled_QxD, keys_DxJ, out=scores_QxJ)
    np.subtract(scores_QxJ, norms_J, out=scores_QxJ)
    # flatnonzero of a contiguous array is many times as fast as nonzero of a matrix.
    found = np.flatnonzero(scores_QxJ > self._limit_Qx1)
    if not len(found):
      return
    rows, columns = np.divmod(found, shape[1])
    self._pending.append((rows, scores_QxJ.reshape(-1)[found], columns + first))
    self._most_pending += int(np.bincount(rows).max())
    if self._most_pending >= self._scores_QxK.shape[1]:
      self._merge()

  def _merge(self) -> None:
    """Keeps the best of the neighbours so far and the pending ones."""
    rows, scores, indices = map(np.concatenate, zip(*self._pending, strict=True))
    order = np.argsort(rows, kind='stable')
    rows, scores, indices = rows[order], scores[order], indices[order]
    counts_Q = np.bincount(rows, minlength=len(self._scores_QxK))
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
    shape = len(counts_Q), int(counts_Q.max())
    new_scores = np.full(shape, -np.inf, np.float32)
    new_indices = np.full(shape, -1)
    new_scores[rows, columns], new_indices[rows, columns] = scores, indices
    all_scores = np.concatenate([self._scores_QxK, new_scores], axis=1)
    all_indices = np.concatenate([self._indices_QxK, new_indices], axis=1)
    k = self._scores_QxK.shape[1]
    best = np.argpartition(all_scores, -k, axis=1)[:, -k:]
    self._scores_QxK = np.take_along_axis(all_scores, best, 1)
    self._indices_QxK = np.take_along_axis(all_indices, best, 1)
    self._limit_Qx1 = self._scores_QxK.min(axis=1, keepdims=True)
    self._pending, self._most_pending = [], 0

  def sorted(self) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and indices, nearest first; of equal distances, the lower index first."""
    if self._pending:
      self._merge()
    distances = np.maximum(self._norms_Q[:, None] - self._scores_QxK, 0)
    order = np.lexsort((self._indices_QxK, distances))
    return np.take_along_axis(distances, order, 1), np.take_along_axis(self._indices_QxK, order, 1)
