"""What the caller of the training loop supplies."""

import dataclasses
import time
from collections.abc import Callable, Collection

from stability.control.rules import RulesFor, rules_for
from stability.devices.layout import Interrupted, Layout, never
from stability.devices.make_layout import make_layout
from stability.trainer.processes import Processes
from stability.trainer.run import Run


def _ignore(value: object) -> None:
  del value


@dataclasses.dataclass(frozen=True)
class TrainerHooks:
  """The layout factory, the clock, the rules of alarms and the callbacks of train_runs."""

  make_layout: Callable[..., Layout] = make_layout
  clock: Callable[[], float] = time.perf_counter  # seconds; never goes back
  rules: RulesFor = rules_for  # of the alarms
  processes: Processes = dataclasses.field(default_factory=Processes)
  # Polled every few seconds while runs train; True: save them and return.
  interrupted: Interrupted = never
  # Called with the runs in training at each stop, before actions are applied there.
  on_stop: Callable[[Collection[Run]], None] = _ignore
  max_members: int | None = None  # runs per device at most; None: no limit
  # Called with the number of runs per device before each attempt to compile for it.
  on_members: Callable[[int], None] = _ignore
