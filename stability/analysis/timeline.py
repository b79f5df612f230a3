"""What happened to the runs in which somebody stepped in: alarms and actions, in their order."""

from pathlib import Path

import pandas as pd

from stability.control import actions
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
  records = actions.read(run)
  if not records:
    return []
  rows, taken = [], 0
  raised = actions.read_alarms(run)
  for record in [*records, None]:
    # An alarm knows how many actions had been taken before it.
    while raised and (record is None or _comes_before(raised[0], record, taken)):
      alarm = raised.pop(0)
      rows.append((run.name, alarm['step'], f'alarm: {alarm["rule"]}', '', alarm['seen']))
    if record is not None:
      rows.append((run.name, record['step'], actions.told(record), record['by'], record['why']))
      taken += 'refused' not in record
  return rows


def _comes_before(alarm: actions.Json, record: actions.Json, taken: int) -> bool:
  if 'refused' in record:  # it counts for nothing: by the step
    return alarm['actions'] < taken or (
        alarm['actions'] == taken and alarm['step'] <= record['step']
    )
  return alarm['actions'] <= taken
