"""The number of steps to dispatch to the devices at once."""

from collections.abc import Callable

from stability.trainer.processes import Processes

# Target duration of a chunk of steps. An interruption waits for at most two chunks.
CHUNK_SECONDS = 2


class ChunkSizer:
  """Chooses chunks of steps that take about CHUNK_SECONDS.

  The first chunk is one step, and the limit at most doubles from one chunk to the next, so one
  measurement that is too short cannot make the next chunk far too long.
  """

  def __init__(self, clock: Callable[[], float], processes: Processes):
    self._clock = clock
    self._processes = processes
    self._limit = 1
    self._last: tuple[int, float] | None = None  # steps of the last chunk, and its start time

  def limit(self, steps: int) -> int:
    """The number of steps to dispatch next, at most `steps`; the same in all processes.

    The caller dispatches a chunk and then waits for the one before it, so the time between two
    calls is the duration of one chunk, and of a checkpoint or an evaluation beside it. These make
    the next chunks shorter, never longer.
    """
    now = self._clock()
    if self._last is not None:
      last_steps, start = self._last
      affordable = int(CHUNK_SECONDS * last_steps / max(now - start, 1e-6))
      self._limit = max(1, min(2 * self._limit, affordable))
    steps = self._processes.min(min(steps, self._limit))
    self._last = steps, now
    return steps
