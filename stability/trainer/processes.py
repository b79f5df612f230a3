"""The processes that train one run together, and what they agree on."""

import jax
import numpy as np
from jax.experimental import multihost_utils


class Processes:
  """The processes that JAX has connected; all of them train the same run.

  Without jax.distributed it is this process alone.
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
    """Whether `value` is true in any process; a collective call."""
    if not self.is_multiprocess:
      return value
    return bool(np.max(multihost_utils.process_allgather(np.bool_(value))))

  def min(self, value: int) -> int:
    """The smallest `value` of all processes; a collective call."""
    if not self.is_multiprocess:
      return value
    return int(np.min(multihost_utils.process_allgather(np.int32(value))))
