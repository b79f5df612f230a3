"""Failures of runs, which are recorded as results so that the other runs continue."""

import sys
import traceback
from pathlib import Path

import jax
import numpy as np

from stability.devices.make_layout import is_out_of_memory
from stability.errors import BadInput, CannotWrite
from stability.storage import run_files
from stability.trainer.processes import Processes

OUT_OF_MEMORY_ADVICE = (
    'out of memory with one run per device: config.parallel.microbatches or'
    ' config.parallel.remat=block reduces the memory of a step\n'
)


class TooManyMembers(Exception):
  """The devices ran out of memory with several runs per device; fewer would need less."""


def raise_if_too_many(error: Exception, members: int) -> None:
  """Raises TooManyMembers if `error` means out of memory and a device has more than one run."""
  if members > 1 and is_out_of_memory(error):
    raise TooManyMembers from error


def raise_if_lost(error: Exception) -> None:
  """Raises `error` if a device no longer answers.

  An error of CUDA, such as an illegal address or ECC, persists until the process ends. A new one
  continues the runs from their checkpoints.
  """
  if isinstance(error, jax.errors.JaxRuntimeError) and not is_out_of_memory(error):
    try:
      for device in jax.local_devices():
        np.asarray(jax.device_put(np.zeros(1), device))
    except jax.errors.JaxRuntimeError:
      raise error from None


def record_failure(folder: Path, processes: Processes) -> None:
  """Writes the exception being handled to the run's result.json: a BadInput's line, or a traceback.

  Re-raises a CannotWrite, which is the fault of the disk and not of the run.
  """
  error = sys.exception()
  if isinstance(error, CannotWrite):
    raise error
  text = str(error) if isinstance(error, BadInput) else traceback.format_exc()
  if is_out_of_memory(error):
    text += OUT_OF_MEMORY_ADVICE
  if processes.is_primary:
    run_files.write_failure(folder, text)
