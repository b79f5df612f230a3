"""The progress of a sweep, computed from its files alone."""

import collections
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from launch.common import display
from stability.config import Config
from stability.control import records
from stability.devices import cost
from stability.errors import BadInput
from stability.storage import run_files

CHECKS = 50  # of other launchers' runs per update, so that its cost does not grow with the sweep


class Progress:
  """Shows how many runs are finished, running and diverged, the speed and the time left."""

  def __init__(self, workdir: Path, configs: Mapping[str, Config]):
    """configs: the runs to train, by name."""
    self._workdir = workdir
    self._configs = dict(configs)
    self._flops = {name: cost.estimated_flops(config) for name, config in configs.items()}
    self._total_flops = sum(self._flops.values())
    self._finished_flops = 0.0
    self._counts = dict.fromkeys(run_files.STATUSES, 0)
    self._unfinished = dict.fromkeys(configs)
    self._to_check = collections.deque(configs)
    self._start_time: float | None = None  # time of the first logged step
    self._start_fraction = 0.0
    self._display = display.Display()
    self.log = self._display.log

  def __enter__(self) -> 'Progress':
    self._display.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._display.__exit__(*error)

  def add(self, name: str, config: Config) -> None:
    """Adds a run to train, which is a fork."""
    self._configs[name] = config
    self._flops[name] = cost.estimated_flops(config)
    self._total_flops += self._flops[name]
    self._unfinished[name] = None
    self._to_check.append(name)

  def is_finished(self) -> bool:
    """Whether every run has a result."""
    return not self._unfinished

  def update(
      self,
      running: Sequence[str],
      finished: Iterable[str] = (),
      phases: Sequence[str] = (),
  ) -> None:
    """Reads the files and shows the progress.

    Args:
      running: the runs that are being trained.
      finished: the runs known to have finished since the last call. Other finished runs are
        discovered over several calls.
      phases: what workers do besides training, as far as the launcher knows.
    """
    tokens_per_second, running_flops, paused = 0.0, 0.0, 0
    for name in running:
      run = run_files.run_dir(self._workdir, name)
      try:
        is_paused = records.is_paused(records.read_taken(run))
        row = run_files.last_metrics(run)
      except BadInput:  # reported by the worker that trains the run
        continue
      paused += is_paused
      if row:
        tokens_per_second += 0 if is_paused else row['tokens_per_second'] or 0
        steps = self._configs[name]['schedule']['steps']
        running_flops += self._flops[name] * row['step'] / steps
    self._count_results(finished)
    for _ in range(min(CHECKS, len(self._to_check))):
      name = self._to_check.popleft()
      if name in self._unfinished:
        self._to_check.append(name)
        if name not in running:
          self._count_results([name])
    fraction = (self._finished_flops + running_flops) / self._total_flops
    time_left = self._time_left(fraction)
    if tokens_per_second or (time_left and not phases):
      speed = [f'{tokens_per_second:,.0f} tokens/s']
    else:
      speed = [] if phases else ['no step logged yet']
    facts = [
        f'{sum(self._counts.values())}/{len(self._configs)} runs finished',
        f'{len(running) - paused} running',
        *([f'{paused} waiting for a person (launch.control)'] if paused else []),
        f'{self._counts["diverged"]} diverged',
        *([f'{self._counts["failed"]} failed'] if self._counts['failed'] else []),
        *phases,
        *speed,
        *([time_left] if time_left else []),
    ]
    self._display.show(fraction, facts, last=self.is_finished())

  def _count_results(self, names: Iterable[str]) -> None:
    for name in [name for name in names if name in self._unfinished]:
      result = run_files.read_result(run_files.run_dir(self._workdir, name))
      if result is not None:
        del self._unfinished[name]
        self._counts[result.status] += 1
        self._finished_flops += self._flops[name]
        if result.status == 'failed':
          self.log(f'{name} failed: {result.error.strip().splitlines()[-1]}')

  def _time_left(self, fraction: float) -> str | None:
    """The time left, from the speed since the first logged step (without compilation), if known."""
    now = time.monotonic()
    if self._start_time is None:
      if fraction > 0:
        self._start_time, self._start_fraction = now, fraction
      return None
    gained = fraction - self._start_fraction
    if gained <= 0:
      return None
    return display.time_left((1 - fraction) / gained * (now - self._start_time))
