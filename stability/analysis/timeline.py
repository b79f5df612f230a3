"""The timeline of the runs that were acted on: their alarms and actions in order."""

from pathlib import Path

import pandas as pd

from stability.control.alarms import Alarm, read_alarms
from stability.control.records import Record, read_records
from stability.storage import run_files, sweeps

COLUMNS = ('run', 'step', 'what', 'by', 'why')


def load(workdir: Path) -> pd.DataFrame:
  """Loads a table with a row per alarm and action of each run that was acted on.

  A refused action counts too. Forks come last. After a rewind, steps start again at an earlier one.

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
  alarms = read_alarms(run)
  for record in [*records, None]:  # None: the alarms after the last action
    # An alarm records how many actions were taken before it.
    while alarms and (record is None or _comes_before(alarms[0], record, taken)):
      alarm = alarms.pop(0)
      rows.append((run.name, alarm.step, f'alarm: {alarm.rule}', '', alarm.message))
    if record is not None:
      rows.append((run.name, record.step, str(record), record.by, record.why))
      taken += record.action is not None
  return rows


def _comes_before(alarm: Alarm, record: Record, taken: int) -> bool:
  if record.action is None:
    # Alarms do not count refused actions, so the steps are compared as well.
    return (alarm.actions, alarm.step) <= (taken, record.step)
  return alarm.actions <= taken
