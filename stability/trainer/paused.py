"""Runs that an action has paused."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

from stability.control import requests
from stability.control.run_control import ALARM
from stability.errors import BadInput
from stability.storage import run_files
from stability.trainer.run import Run


@dataclasses.dataclass
class PausedRuns:
  """The paused runs of a workdir.

  A paused run occupies no slot of a layout. It is loaded again when an action has been requested
  or its deadline has passed.
  """

  workdir: Path
  clock: Callable[[], float] = time.perf_counter  # in seconds, monotonic
  deadlines: dict[str, float] = dataclasses.field(default_factory=dict)  # run name -> clock time

  def add(self, run: Run, deadline: float | None = None) -> None:
    """Adds a paused run.

    Args:
      run: the run.
      deadline: clock time at which the run is loaded even if nobody has requested an action. By
        default, control.timeout_seconds from now if an alarm has paused the run and that option is
        not 0; otherwise never.
    """
    if deadline is None:
      seconds = run.config['control']['timeout_seconds']
      by_alarm = run.control.paused_by == ALARM
      deadline = self.clock() + seconds if seconds and by_alarm else math.inf
    self.deadlines[run.folder.name] = deadline

  def is_overdue(self, name: str) -> bool:
    """Whether the deadline of a paused run has passed; False for a run that is not paused."""
    return name in self.deadlines and self.clock() > self.deadlines[name]

  def ready(self) -> list[str]:
    """The names of the runs to load again."""
    return [name for name in self.deadlines if self.is_overdue(name) or self._has_request(name)]

  def _has_request(self, name: str) -> bool:
    try:
      return bool(requests.unanswered(run_files.run_dir(self.workdir, name)))
    except BadInput:  # actions.jsonl is damaged: loading the run records this as its failure
      return True
