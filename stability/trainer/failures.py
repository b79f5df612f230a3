"""Failures of runs, which are recorded as results so that the other runs continue."""

import sys
import traceback
from pathlib import Path

from stability.devices.make_layout import is_out_of_memory
from stability.errors import CannotWrite
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


def record_failure(folder: Path, processes: Processes) -> None:
  """Writes the traceback of the exception being handled to the run's result.json.

  Re-raises a CannotWrite, which is the fault of the disk and not of the run.
  """
  error = sys.exception()
  if isinstance(error, CannotWrite):
    raise error
  text = traceback.format_exc()
  if is_out_of_memory(error):
    text += OUT_OF_MEMORY_ADVICE
  if processes.is_primary:
    run_files.write_failure(folder, text)
