"""What a person sees while a sweep runs, read from its files alone."""

import collections
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from stability.config import Config
from stability.control import actions
from stability.devices import cost
from stability.errors import BadInput
from stability.storage import run_files

PLAIN_SECONDS = 10  # between lines where there is no terminal
LOOKS = 50  # at runs that others may have ended, at a time: a look does not grow with the sweep


class Progress:
  """Runs done, running and diverged, tokens per second, time left.

  A line that is redrawn on a terminal; elsewhere a plain line now and then.
  """

  def __init__(self, workdir: Path, configs: Mapping[str, Config]):
    """configs: the runs to be trained."""
    self._workdir = workdir
    self._configs = configs
    self._flops = {name: cost.estimated_flops(config) for name, config in configs.items()}
    self._counts = dict.fromkeys(run_files.STATUSES, 0)
    self._over_flops = 0.0
    self._all_flops = sum(self._flops.values())
    self._unfinished = dict.fromkeys(configs)
    self._to_look_at = collections.deque(configs)
    self._begun: float | None = None  # when the first step was logged, and the work done by then
    self._begun_fraction = 0.0
    self._console = Console(stderr=True)
    self._live = Live(console=self._console, refresh_per_second=4, transient=True)
    self._last_line = 0.0

  def __enter__(self) -> 'Progress':
    if self._console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self._console.is_terminal:
      self._live.stop()

  def add(self, name: str, config: Config) -> None:
    """One more run to be trained: a fork."""
    self._configs = {**self._configs, name: config}
    self._flops[name] = cost.estimated_flops(config)
    self._all_flops += self._flops[name]
    self._unfinished[name] = None
    self._to_look_at.append(name)

  def is_over(self) -> bool:
    """Whether every run has its result."""
    return not self._unfinished

  def say(self, line: str) -> None:
    """Prints a line above the display."""
    self._console.print(line, markup=False, highlight=False, soft_wrap=True)

  def show(self, running: Sequence[str], ended: Iterable[str] = ()) -> None:
    """Looks at the files and redraws.

    Args:
      running: the runs in somebody's hands.
      ended: those that are known to be over since the last call; others are found by and by.
    """
    speed, part, paused = 0.0, 0.0, 0
    for name in running:
      run = run_files.run_dir(self._workdir, name)
      try:
        waits = actions.is_paused(actions.done(actions.read(run)))
        line = run_files.last_metrics(run)
      except BadInput:  # whoever trains it says so, and fails it alone
        continue
      paused += waits
      if line:
        speed += 0 if waits else line['tokens_per_second'] or 0
        part += self._flops[name] * line['step'] / self._configs[name]['schedule']['steps']
    self._count_results(ended)
    for _ in range(min(LOOKS, len(self._to_look_at))):
      name = self._to_look_at.popleft()
      if name in self._unfinished:
        self._to_look_at.append(name)
        if name not in running:
          self._count_results([name])
    over = sum(self._counts.values())
    fraction = (self._over_flops + part) / self._all_flops
    facts = [
        f'{over}/{len(self._configs)} runs over',
        f'{len(running) - paused} running',
        *([f'{paused} waiting for a person (launch.control)'] if paused else []),
        f'{self._counts["diverged"]} diverged',
        *([f'{self._counts["failed"]} failed'] if self._counts['failed'] else []),
        f'{speed:,.0f} tokens/s',
        self._time_left(fraction),
    ]
    if self._console.is_terminal:
      self._live.update(bar(fraction, ' · '.join(facts)))
    elif time.monotonic() - self._last_line > PLAIN_SECONDS or self.is_over():
      self._last_line = time.monotonic()
      print(f'{fraction:4.0%}  ' + ', '.join(facts), file=sys.stderr, flush=True)

  def _count_results(self, names: Iterable[str]) -> None:
    for name in [name for name in names if name in self._unfinished]:
      result = run_files.read_result(run_files.run_dir(self._workdir, name))
      if result is not None:
        del self._unfinished[name]
        self._counts[result.status] += 1
        self._over_flops += self._flops[name]
        if result.status == 'failed':
          self.say(f'{name} failed: {result.error.strip().splitlines()[-1]}')

  def _time_left(self, fraction: float) -> str:
    """From the work done since the first logged step, so that compilation does not count."""
    now = time.monotonic()
    if self._begun is None:
      if fraction > 0:
        self._begun, self._begun_fraction = now, fraction
      return 'starting'
    gained = fraction - self._begun_fraction
    if gained <= 0:
      return 'starting'
    return time_left((1 - fraction) / gained * (now - self._begun))


def time_left(seconds: float) -> str:
  """Minutes and seconds."""
  return f'{round(seconds) // 60}:{round(seconds) % 60:02d} left'


def bar(fraction: float | None, facts: str) -> Table:
  """A bar of the work done, and facts beside it; fraction: None: nobody knows."""
  grid = Table.grid(padding=(0, 1))
  known = fraction is not None
  grid.add_row(ProgressBar(1 if known else None, fraction or 0, width=24, pulse=not known), facts)
  return grid
