"""A progress line: redrawn on a terminal, otherwise printed every few seconds."""

import contextlib
import sys
import time
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
  import pandas as pd

PLAIN_SECONDS = 10  # between lines if stderr is not a terminal
FOLDED, NARROWEST = 20, 8  # characters of a folded column on the left, before and after others go
_BETWEEN = 3  # characters between two columns


def console(piped_width: int = 130) -> Console:
  """A console on stdout, with lines of this many characters if that is not a terminal."""
  return Console(width=None if sys.stdout.isatty() else piped_width)


def line(console: Console, text: str) -> None:
  """Prints a text as it is: without markup or colours, and not wrapped."""
  console.print(text, markup=False, highlight=False, soft_wrap=True)


def table(names: Iterable[str], left: Container[str] = ()) -> Table:
  """A table with columns of these names, aligned to the right except those in `left`."""
  made = Table(box=box.SIMPLE_HEAD)
  for name in names:
    made.add_column(Text(name), justify='left' if name in left else 'right', overflow='fold')
  return made


def add_rows(table: Table, rows: Iterable[Iterable[str]]) -> None:
  """Adds rows of texts as they are: in a str, brackets would be markup."""
  for row in rows:
    table.add_row(*map(Text, row))


def print_table(
    console: Console, text: 'pd.DataFrame', left: Container[str] = (), spare: Iterable[str] = ()
) -> None:
  """Prints a table of texts; those that are not on the left, such as numbers, are never cut.

  Where lines are too short, columns on the left and the names of columns are folded; empty columns
  and those of `spare` are left out, the first one first. If that is not enough, lines are longer.
  """
  longest = {name: max(map(cell_len, text[name]), default=0) for name in text}
  with_name = {name: max(longest[name], cell_len(name)) for name in text}
  with_words = {name: max(longest[name], *map(cell_len, name.split())) for name in text}

  def needed(widths: dict[str, int], folded: int | None) -> int:
    of_names = (
        min(with_name[name], folded) if folded and name in left else widths[name] for name in names
    )
    return 1 + sum(width + _BETWEEN for width in of_names)

  names = list(text)
  for name in (*(name for name in text if not longest[name]), *spare):
    if name in names and needed(with_words, FOLDED) > console.width:
      names.remove(name)
  made = table(names, left)
  add_rows(made, text[names].itertuples(index=False))
  widths = with_name
  if needed(with_name, None) > console.width:
    widths = with_words if needed(with_words, NARROWEST) <= console.width else longest
    for name, column in zip(names, made.columns, strict=True):
      column.width = None if name in left else widths[name]
  before = console.width
  console.width = max(before, needed(widths, NARROWEST))
  console.print(made)
  console.width = before


class _Console(Console):
  """A console that drops its output once its reader is gone; rich's exits the program."""

  def on_broken_pipe(self) -> None:
    self.quiet = True


class Display:
  """A context that shows progress on stderr: a fraction and some facts."""

  def __init__(self, first_after: float = 0.0):
    """first_after: seconds until the first line, if stderr is not a terminal."""
    self._console = _Console(stderr=True)
    self._is_terminal = self._console.is_terminal
    self._live = Live(console=self._console, refresh_per_second=4, transient=True)
    self._next_line = time.monotonic() + first_after

  def __enter__(self) -> 'Display':
    if self._is_terminal:
      with _dropped():
        self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self._is_terminal:
      with _dropped():
        self._live.stop()

  def log(self, text: str) -> None:
    """Prints a line above the progress line."""
    with _dropped():
      line(self._console, text)

  def show(self, fraction: float | None, facts: Sequence[str], *, last: bool = False) -> None:
    """Shows the progress; if stderr is not a terminal, only when a line is due.

    Args:
      fraction: finished fraction of the work, 0 to 1; None if it is unknown.
      facts: texts to show beside the fraction.
      last: whether this is the last call, for which a line is always due.
    """
    if self._is_terminal:
      with _dropped():
        self._live.update(_bar(fraction, ' · '.join(facts)))
    elif last or time.monotonic() >= self._next_line:
      self._next_line = time.monotonic() + PLAIN_SECONDS
      percent = '' if fraction is None else f'{fraction:4.0%}  '
      with _dropped():
        print(percent + ', '.join(facts), file=sys.stderr, flush=True)


def _dropped() -> contextlib.AbstractContextManager:
  """Drops what cannot be shown: a notebook's stream may be closed, or lack an encoding."""
  return contextlib.suppress(OSError, ValueError)


def time_left(seconds: float) -> str:
  """A remaining time as MINUTES:SECONDS, such as `2:05 left`."""
  return f'{round(seconds) // 60}:{round(seconds) % 60:02d} left'


def _bar(fraction: float | None, facts: str) -> Table:
  grid = Table.grid(padding=(0, 1))
  is_known = fraction is not None
  bar = ProgressBar(1 if is_known else None, fraction or 0, width=24, pulse=not is_known)
  grid.add_row(bar, facts)
  return grid
