"""The processes that train one run together, and their collective operations."""

import jax
import numpy as np
from jax.experimental import multihost_utils


class Processes:
  """The processes that jax.distributed has connected, all of which train the same run.

  Without jax.distributed, this process is the only one.
  """

  @property
  def is_multiprocess(self) -> bool:
    """Whether several processes train one run."""
    return jax.process_count() > 1

  @property
  def is_primary(self) -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0

  def any(self, value: bool) -> bool:
    """Whether `value` is true in any process. Collective: all processes must call it."""
    if not self.is_multiprocess:
      return value
    return bool(np.max(multihost_utils.process_allgather(np.bool_(value))))

  def min(self, value: int) -> int:
    """The smallest `value` of all processes. Collective: all processes must call it."""
    if not self.is_multiprocess:
      return value
    return int(np.min(multihost_utils.process_allgather(np.int32(value))))
