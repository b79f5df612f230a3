"""The alarms that were raised in the runs of a sweep."""

from pathlib import Path

import pandas as pd

from stability.control.alarms import read_alarms
from stability.control.records import read_records
from stability.storage import run_files, sweeps

COLUMNS = ('run', 'step', 'rule', 'message', 'acted_on')


def are_pending(workdir: Path) -> bool:
  """Whether the runs are imported and launch.alarms has not yet looked for alarms in each of them.

  It looks at those with metrics.
  """
  sweep = sweeps.read_sweep(workdir)
  runs = [run_files.run_dir(workdir, name) for name in sweep.runs]
  is_looked_for = [
      (run / 'alarms.jsonl').exists() for run in runs if (run / 'metrics.jsonl').exists()
  ]
  return sweep.is_imported and not (is_looked_for and all(is_looked_for))


def load(workdir: Path) -> pd.DataFrame:
  """Loads a table with a row per alarm, in the order of the runs; forks come last.

  Columns: run, step, rule, message, acted_on (whether any action was requested on the run).
  """
  rows = []
  for name in [*sweeps.read_sweep(workdir).runs, *sweeps.read_forks(workdir)]:
    run = run_files.run_dir(workdir, name)
    acted_on = bool(read_records(run))
    for alarm in read_alarms(run):
      rows.append((name, alarm.step, alarm.rule, alarm.message, acted_on))
  return pd.DataFrame(rows, columns=COLUMNS).astype({'acted_on': bool})
