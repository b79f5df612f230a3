"""The workers of the other processes that share a run, until the run is trained.

A worker that compiles has nothing to save and ends at once when it is told to. The others would
wait for it until jax ends them with an error, so it tells them before it ends, through the
key-value store of jax.distributed, whose server is in process 0.
"""

import contextlib
import os
import threading
import time
from typing import NoReturn

import jax
from jax._src import distributed

from launch.common import preemption

# Process 0 ends this long after the others, since jax aborts them when it ends.
LAST_SECONDS = 2
_KEY = 'stability/told_to_end'
_MILLISECONDS = 2**31 - 1  # the longest wait: 24 days


class Peers:
  """The connection to the other workers; jax.distributed must be initialized."""

  def __init__(self):
    """Starts a thread that ends this process once a worker has called `end_all`."""
    self._client = distributed.global_state.client
    threading.Thread(target=self._await_end, daemon=True).start()

  def end_all(self) -> NoReturn:
    """Ends the workers of all processes with preemption.EXIT_CODE.

    No worker may have taken a step: that is so while any of them has not called
    Processes.any (stability/trainer/processes.py) since the programs were compiled.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 has died
      self._client.key_value_set(_KEY, '1', allow_overwrite=True)
    _end()

  def end_if_told(self) -> None:
    """Ends this process if a worker has called `end_all`; called when training has failed."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the key is not there
      self._client.key_value_try_get(_KEY)
      _end()

  def _await_end(self) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.blocking_key_value_get(_KEY, _MILLISECONDS)
      _end()


def let_others_end() -> None:
  """Waits in process 0 until the other processes have ended."""
  if jax.process_index() == 0:
    time.sleep(LAST_SECONDS)


def _end() -> NoReturn:
  let_others_end()
  os._exit(preemption.EXIT_CODE)
