"""The timeline of runs that were acted on: their alarms and actions in order."""

from pathlib import Path

import pandas as pd

from stability.control.alarms import Alarm, read_alarms
from stability.control.records import Record, read_records
from stability.storage import run_files, sweeps

COLUMNS = ('run', 'step', 'what', 'by', 'why')


def load(workdir: Path) -> pd.DataFrame:
  """A row per alarm and action of the runs that received an action, even a refused one.

  Forks come last. After a rewind the steps of a run start again.

  Columns: run, step, what (`alarm: RULE`, or the action in words), by (who acted; '' for an alarm),
  why (the alarm's message or the reason given for the action).
  """
  names = [*sweeps.read_sweep(workdir).runs, *sweeps.read_forks(workdir)]
  rows = [row for name in names for row in _rows(run_files.run_dir(workdir, name))]
  return pd.DataFrame(rows, columns=COLUMNS)


def _rows(run: Path) -> list[tuple[str, int, str, str, str]]:
  records = read_records(run)
  if not records:
    return []
  rows, taken = [], 0
  raised = read_alarms(run)
  for record in [*records, None]:
    # An alarm records how many actions were taken before it.
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
