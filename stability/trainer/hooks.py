"""Functions and limits that the caller of the training loop supplies."""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence

from stability.control.rules import RulesFor, rules_for
from stability.devices.layout import Interrupted, Layout, never
from stability.devices.make_layout import make_layout
from stability.trainer.processes import Processes
from stability.trainer.run import Run


def _ignore(value: object) -> None:
  del value


@dataclasses.dataclass(frozen=True)
class TrainerHooks:
  """The layout factory, the clock, the alarm rules, the limits and the callbacks of train_runs."""

  make_layout: Callable[..., Layout] = make_layout
  clock: Callable[[], float] = time.perf_counter  # in seconds, monotonic
  rules: RulesFor = rules_for  # returns the alarm rules of a run
  processes: Processes = dataclasses.field(default_factory=Processes)
  # Polled every few seconds while runs train. If true, the runs are saved and train_runs returns.
  interrupted: Interrupted = never
  # Called before runs are saved because of an interruption, with the bytes of each run's state.
  on_save: Callable[[Sequence[int]], None] = _ignore
  # Called at each stop with the runs in training, before actions are applied.
  on_stop: Callable[[Collection[Run]], None] = _ignore
  # Number of runs to train, the first one included: a population has at most as many slots. A run
  # that has begun keeps the number that it began with, since another width may round differently.
  runs: int = 1
  max_members: int | None = None  # maximum number of runs per device; None: no limit
  # Called with the number of runs per device before each attempt to compile.
  on_members: Callable[[int], None] = _ignore
