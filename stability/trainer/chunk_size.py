"""How far a population goes at once, and what processes that share a run agree on about it."""

import time

import jax
import numpy as np
from jax.experimental import multihost_utils

CHUNK_SECONDS = 2  # of steps sent off at once; two such are waited for when a run must be saved


class ChunkSizer:
  """How many steps to send off at once, so that what they take can be waited for."""

  def __init__(self):
    self._most = 1
    self._sent: tuple[int, float] | None = None  # steps, and when those before them were done

  def limit(self, steps: int) -> int:
    """The most of `steps`; called once those sent off before the last ones are done."""
    now = time.perf_counter()
    if self._sent is not None:
      sent, then = self._sent
      fitting = int(CHUNK_SECONDS * sent / max(now - then, 1e-6))
      self._most = max(1, min(2 * self._most, fitting))
    steps = fewest_of_processes(min(steps, self._most))
    self._sent = steps, now
    return steps


def any_process(told: bool) -> bool:
  """Whether it holds in any of the processes that share a run; all ask at the same point."""
  if jax.process_count() == 1:
    return told
  return bool(np.max(multihost_utils.process_allgather(np.bool_(told))))


def fewest_of_processes(steps: int) -> int:
  """The least that any of the processes that share a run says; all ask at the same point."""
  if jax.process_count() == 1:
    return steps
  return int(np.min(multihost_utils.process_allgather(np.int32(steps))))
