"""The alarms that were raised in the runs of a sweep."""

from pathlib import Path

import pandas as pd

from stability.control.alarms import read_alarms
from stability.control.records import read_records
from stability.storage import run_files, sweeps

COLUMNS = ('run', 'step', 'rule', 'message', 'acted_on')


def are_pending(workdir: Path) -> bool:
  """Whether alarms of imported runs are not looked for yet, by launch.alarms.

  It reads the runs with logged rows. Those of runs trained here are raised in training.
  """
  sweep = sweeps.read_sweep(workdir)
  if not sweep.is_imported:
    return False
  runs = [run_files.run_dir(workdir, n) for n in sweep.runs if run_files.has_metrics(workdir, n)]
  return not runs or not all((run / 'alarms.jsonl').exists() for run in runs)


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
