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

  A paused run holds no slot of a layout. It is loaded again once it has a request to answer, or
  once its deadline has passed.
  """

  workdir: Path
  clock: Callable[[], float] = time.perf_counter  # seconds; never goes back
  deadlines: dict[str, float] = dataclasses.field(default_factory=dict)  # run -> clock time

  def add(self, run: Run, deadline: float | None = None) -> None:
    """Adds a run, by default with the deadline that its config sets for an alarm's pause."""
    if deadline is None:
      seconds = run.config['control']['timeout_seconds']
      by_alarm = run.control.paused_by == ALARM
      deadline = self.clock() + seconds if seconds and by_alarm else math.inf
    self.deadlines[run.folder.name] = deadline

  def is_overdue(self, name: str) -> bool:
    """Whether the deadline of a paused run has passed; False for a run that is not paused."""
    return name in self.deadlines and self.clock() > self.deadlines[name]

  def ready(self) -> list[str]:
    """The runs that are to be loaded again."""
    return [name for name in self.deadlines if self.is_overdue(name) or self._has_request(name)]

  def _has_request(self, name: str) -> bool:
    try:
      return bool(requests.unanswered(run_files.run_dir(self.workdir, name)))
    except BadInput:  # a damaged actions.jsonl: loading the run records the failure as its result
      return True
