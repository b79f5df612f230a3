"""Applies the alarm rules to the rows that the runs of a workdir have logged.

  python -m launch.alarms --workdir=DIR

It prints in how many runs each rule could be applied, in how many it fired and at which step, what
the other runs lacked, and the first alarm of each run. The alarms of runs that launch.import_runs
has brought into the workdir are also written to their alarms.jsonl. The trainer has written those
of runs trained here, with the actions taken on them, and they stay as they are.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app

# isort: split
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stability.errors import BadInput
from stability.storage import files, run_files, sweeps

if TYPE_CHECKING:
  from stability.analysis.alarm_replay import Replay

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
PIPED_WIDTH = 130  # characters per line if stdout is not a terminal; the table of rules fits


def main() -> int:
  """Replays the rules and prints what they find; returns 1 if a run could not be read."""
  from stability.analysis import alarm_replay  # pandas: a wrong flag is refused without it

  workdir = Path(_WORKDIR.value)
  sweep = sweeps.read_sweep(workdir)
  names = [*sweep.runs, *sweeps.read_forks(workdir)]
  if sweep.is_imported:
    files.refuse_links(workdir / 'runs')
  replays, damaged = {}, []
  for name in names:
    run = run_files.run_dir(workdir, name)
    try:
      found = alarm_replay.replay(run)
    except BadInput as error:
      damaged.append(error)
      continue
    if (run / 'metrics.jsonl').exists():
      replays[name] = found
      if sweep.is_imported:
        files.write_lines(run / 'alarms.jsonl', [alarm.to_json() for alarm in found.alarms])
  console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
  _print_rules(alarm_replay.by_rule(replays).itertuples(index=False), console)
  _print_runs(replays, console)
  _print_line(f'{len(replays)} of {len(names)} runs have logged rows.', console)
  if sweep.is_imported and replays:
    _print_line(f'Written: {workdir / "runs" / "NAME" / "alarms.jsonl"}', console)
  for error in damaged:
    print(f'error: {error}', file=sys.stderr)
  return 1 if damaged else 0


def _print_rules(rows: Iterable, console: Console) -> None:
  """Prints a row per rule; `rows` are those of alarm_replay.by_rule."""
  table = Table(box=box.SIMPLE_HEAD)
  for name in ('rule', 'needs', 'runs', 'fired', 'first step', 'median step', 'lacking in'):
    table.add_column(name, justify='left' if name in ('rule', 'needs') else 'right')
  for row in rows:
    numbers = row.runs, row.fired, row.first_step, row.median_step, row.lacking
    cells = ['' if math.isnan(number) else f'{number:,.0f}' for number in numbers]
    table.add_row(row.rule, Text(row.needs), *cells)
  console.print(table)


def _print_runs(replays: 'Mapping[str, Replay]', console: Console) -> None:
  """Prints a row per run with an alarm."""
  table = Table(box=box.SIMPLE_HEAD)
  for name in ('run', 'alarms', 'step', 'first alarm'):
    table.add_column(name, overflow='fold')
  for name, found in replays.items():
    if found.alarms:
      first = found.alarms[0]
      table.add_row(Text(name), str(len(found.alarms)), str(first.step), Text(first.message))
  if table.rows:
    console.print(table)


def _print_line(line: str, console: Console) -> None:
  console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == '__main__':
  app.run(main, FLAGS)
