"""Applies the alarm rules to the rows that the runs of a workdir have logged.

  python -m launch.alarms --workdir=DIR [--limits=FILE.json]
  python -m launch.alarms --workdir=DIR --calibrate=FILE.json

It prints in how many runs each rule could be applied, in how many it fired and at which step, what
the other runs lacked, and the first alarm of each run. The alarms of runs that launch.import_runs
has brought into the workdir are also written to their alarms.jsonl. The trainer has written those
of runs trained here, with the actions taken on them, and they stay as they are.

Where it is known which runs became unstable, it scores the rules and writes

  DIR/report/alarm_scores.csv       recall, false alarms and lead (step of the alarm over that of
                                    the onset of instability) of each rule and of any
  DIR/report/alarm_reliability.csv  how often a run became unstable after alarms of a probability,
                                    without those that came after the onset; and its figure
  DIR/report/alarm_rises.csv        how many runs raise alarms, by how far their losses rise

--calibrate chooses limits for the regime of the sweep on its own runs, and writes them to FILE.json
with what they were made from. --limits applies such a file in place of the limits that the rules
come with (stability/control/rules.py), as config.control.limits does in runs of this package and
stability.Monitor(limits='FILE.json') in any training loop. A sweep is not scored by limits that
were chosen on its runs.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, display, path_flags

# isort: split
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console
from rich.text import Text

from stability.control import limits
from stability.control.rules import RULES, Rule
from stability.errors import BadInput
from stability.storage import files, run_files, sweeps

if TYPE_CHECKING:
  from stability.analysis.alarm_replay import Replay

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
_CALIBRATE = path_flags.define('calibrate', None, 'file to write limits to', FLAGS)
_LIMITS = path_flags.define('limits', None, 'file of limits to apply', FLAGS)

_NEAR = (0.03, 0.1)  # rises that are close to instability.MARGIN


def main() -> int:
  """Replays the rules and prints what they find; returns 1 if a run could not be read."""
  if _CALIBRATE.value and _LIMITS.value:
    raise BadInput('--calibrate, --limits: only one of them can be given')
  workdir = Path(_WORKDIR.value)
  sweep = sweeps.read_sweep(workdir)
  from stability.analysis import alarm_calibration, alarm_replay  # pandas: slow to import

  if _CALIBRATE.value:
    _calibrate(workdir, Path(_CALIBRATE.value))
    return 0
  rules = RULES
  if _LIMITS.value:
    try:
      found = limits.read(_LIMITS.value)
    except BadInput as error:
      raise BadInput(f'--limits={error}') from None
    alarm_calibration.check_not_made_on(found, workdir, f'--limits={_LIMITS.value}')
    rules = found.apply()
  names = [*sweep.runs, *sweeps.read_forks(workdir)]
  if sweep.is_imported:
    files.refuse_links(workdir / 'runs')
  replays, damaged = {}, []
  for name in names:
    run = run_files.run_dir(workdir, name)
    try:
      found = alarm_replay.replay(run, rules)
    except BadInput as error:
      damaged.append(error)
      continue
    if run_files.has_metrics(workdir, name):
      replays[name] = found
      if sweep.is_imported:
        files.write_lines(run / 'alarms.jsonl', [alarm.to_json() for alarm in found.alarms])
  console = display.console()
  _print_rules(alarm_replay.by_rule(replays, rules).itertuples(index=False), console)
  _print_runs(replays, console)
  display.line(console, f'{len(replays)} of {len(names)} runs have logged rows.')
  if sweep.is_imported and replays:
    display.line(console, f'Written: {workdir / "runs" / "NAME" / "alarms.jsonl"}')
  for error in damaged:
    print(f'error: {error}', file=sys.stderr)
  if damaged:
    return 1
  _score(workdir, replays, rules, console)
  if sweep.is_imported and replays and (workdir / 'report' / 'index.html').exists():
    print('The page of the report shows them after:')
    print(f'  python -m launch.report --workdir={workdir}')
  return 0


def _calibrate(workdir: Path, path: Path) -> None:
  """Writes limits for the regime of a sweep, and prints how they do on its own runs."""
  from stability.analysis import alarm_calibration

  if path.exists():
    raise BadInput(f'--calibrate={path}: exists already; name another file')
  made = alarm_calibration.calibrate(workdir)
  limits.write(path, made)
  about = made.made_from
  print(
      f'Written: {path}, from {about["runs"]} runs, {about["unstable"]} of them unstable. On these'
      f' runs: recall {about["recall"]:.2f}, false alarms {about["false_alarm_rate"]:.2f}.'
  )


def _score(
    workdir: Path, replays: 'Mapping[str, Replay]', rules: Sequence[Rule], console: Console
) -> None:
  """Scores the rules on the runs whose outcome is known; prints and writes the tables."""
  from stability.analysis import alarm_scores, instability
  from stability.report import alarm_figure

  outcomes = alarm_scores.outcomes(workdir)
  outcomes = outcomes[outcomes.index.isin(list(replays))]
  if outcomes['unstable'].nunique() < 2:
    display.line(console, 'The rules are not scored: that needs stable and unstable runs.')
    return
  alarms = {name: replays[name].alarms for name in outcomes.index}
  lacking = {name: replays[name].lacking for name in outcomes.index}
  scores = alarm_scores.score(alarm_scores.join(outcomes, alarms, rules), lacking)
  reliability = alarm_scores.reliability(outcomes, alarms)
  _print_scores(scores.itertuples(index=False), console)
  display.line(
      console,
      'Runs: those to which a rule could be applied. Lead: the step of its alarm over that at which'
      ' a run becomes unstable, the median; above 1 is too late, never: most have no alarm.',
  )
  has_alarm = outcomes.index.map(lambda name: bool(alarms[name]))
  wrong = outcomes[outcomes['unstable'] != has_alarm]
  display.line(
      console,
      f'A false or missing alarm: {len(wrong):,} runs, {wrong["rise"].between(*_NEAR).sum():,} of'
      f' which rise above the best loss by {_NEAR[0]:.0%} to {_NEAR[1]:.0%} of what was learned;'
      f' more than {instability.MARGIN:.0%} is unstable.',
  )
  folder = workdir / 'report'
  files.refuse_links(folder)
  files.write_atomic(folder / 'alarm_scores.csv', scores.to_csv(index=False))
  files.write_atomic(folder / 'alarm_reliability.csv', reliability.to_csv(index=False))
  rises = alarm_scores.by_rise(outcomes, alarms)
  files.write_atomic(folder / 'alarm_rises.csv', rises.to_csv(index=False))
  alarm_figure.write(reliability, folder)
  written = f'{folder / "alarm_scores.csv"}, alarm_rises.csv, alarm_reliability.csv, .svg, .png'
  display.line(console, f'Written: {written}')


def _print_scores(rows: Iterable, console: Console) -> None:
  """Prints a row per rule; `rows` are those of alarm_scores.score."""
  names = ('rule', 'runs', 'unstable', 'fired', 'recall', 'false alarms', 'lead')
  table = display.table(names, left=('rule',))
  for row in rows:
    counts = [f'{number:,.0f}' for number in (row.runs, row.unstable, row.fired)]
    shares = [
        '' if math.isnan(share) else 'never' if math.isinf(share) else f'{share:.2f}'
        for share in (row.recall, row.false_alarm_rate, row.lead)
    ]
    table.add_row(row.rule, *counts, *shares)
  console.print(table)


def _print_rules(rows: Iterable, console: Console) -> None:
  """Prints a row per rule; `rows` are those of alarm_replay.by_rule."""
  names = ('rule', 'needs', 'runs', 'fired', 'first step', 'median step', 'lacking in')
  table = display.table(names, left=('rule', 'needs'))
  for row in rows:
    numbers = row.runs, row.fired, row.first_step, row.median_step, row.lacking
    cells = ['' if math.isnan(number) else f'{number:,.0f}' for number in numbers]
    table.add_row(row.rule, Text(row.needs), *cells)
  console.print(table)


def _print_runs(replays: 'Mapping[str, Replay]', console: Console) -> None:
  """Prints a row per run with an alarm."""
  names = ('run', 'alarms', 'step', 'first alarm')
  table = display.table(names, left=names)
  for name, found in replays.items():
    if found.alarms:
      first = found.alarms[0]
      table.add_row(Text(name), str(len(found.alarms)), str(first.step), Text(first.message))
  if table.rows:
    console.print(table)


if __name__ == '__main__':
  app.run(main, FLAGS)
