"""What happened to the runs in which somebody stepped in: alarms and actions, in their order."""

from pathlib import Path

import pandas as pd

from stability.control.alarms import Alarm, read_alarms
from stability.control.records import Record, read_records
from stability.storage import run_files, sweeps

COLUMNS = ('run', 'step', 'what', 'by', 'why')


def story(workdir: Path) -> pd.DataFrame:
  """A row for each alarm and action of the runs that took an action or refused one, forks last.

  Columns: run, step, what (the alarm's rule or the action in words), by ('' for an alarm), why
  (what the alarm saw, or the reason that was given). After a rewind the steps begin again.
  """
  names = [*sweeps.read_sweep(workdir).runs, *sweeps.read_forks(workdir)]
  rows = [row for name in names for row in _of_run(run_files.run_dir(workdir, name))]
  return pd.DataFrame(rows, columns=COLUMNS)


def _of_run(run: Path) -> list[tuple[str, int, str, str, str]]:
  records = read_records(run)
  if not records:
    return []
  rows, taken = [], 0
  raised = read_alarms(run)
  for record in [*records, None]:
    # An alarm knows how many actions had been taken before it.
    while raised and (record is None or _comes_before(raised[0], record, taken)):
      alarm = raised.pop(0)
      rows.append((run.name, alarm.step, f'alarm: {alarm.rule}', '', alarm.message))
    if record is not None:
      rows.append((run.name, record.step, str(record), record.by, record.why))
      taken += record.action is not None
  return rows


def _comes_before(alarm: Alarm, record: Record, taken: int) -> bool:
  if record.action is None:  # refused, and so not counted by the alarm: compare the steps
    return (alarm.actions, alarm.step) <= (taken, record.step)
  return alarm.actions <= taken
