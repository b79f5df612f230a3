"""Chunk sizes, on a clock that the test sets."""

import itertools

import pytest

from stability.trainer.chunk_size import ChunkSizer
from stability.trainer.processes import Processes


@pytest.mark.parametrize(('step_seconds', 'most'), [(1e-4, 20_000), (0.5, 4), (30.0, 1)])
def test_limit(step_seconds, most):
  """Chunks grow to CHUNK_SECONDS from below."""
  now = [0.0]
  sizer, chunks = ChunkSizer(lambda: now[0], Processes()), []
  for _ in range(30):
    chunks.append(sizer.limit(1_000_000))
    now[0] += step_seconds * chunks[-1]
  assert chunks[0] == 1 and max(chunks) == chunks[-1] <= most * (1 + 1e-6)
  assert chunks[-1] > 0.9 * most
  assert all(b <= 2 * a for a, b in itertools.pairwise(chunks))


def test_smallest_of_all_processes():
  class Slow(Processes):
    def min(self, value):
      return min(value, 3)

  now = iter(range(0, 1000, 2))
  sizer = ChunkSizer(lambda: 1e-6 * next(now), Slow())
  assert [sizer.limit(100) for _ in range(4)] == [1, 2, 3, 3]
