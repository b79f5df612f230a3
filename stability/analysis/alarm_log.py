"""The alarms that were raised in the runs of a sweep."""

from pathlib import Path

import pandas as pd

from stability.control.alarms import read_alarms
from stability.control.records import read_records
from stability.storage import run_files, sweeps

COLUMNS = ('run', 'step', 'rule', 'message', 'acted_on')


def are_pending(workdir: Path) -> bool:
  """Whether launch.alarms has yet to read imported runs: any with metrics, or all for lack of them.

  False for runs that were trained here, whose alarms are raised in training.
  """
  sweep = sweeps.read_sweep(workdir)
  runs = [run_files.run_dir(workdir, name) for name in sweep.runs]
  with_metrics = [run for run in runs if (run / 'metrics.jsonl').exists()]
  are_read = with_metrics and all((run / 'alarms.jsonl').exists() for run in with_metrics)
  return sweep.is_imported and not are_read


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
