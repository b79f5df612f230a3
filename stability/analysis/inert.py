"""How often interventions changed anything, from the probes acted/NAME.

An intervention that never acts is inert. Steps between the probed ones are not known.
"""

import re
from pathlib import Path

import pandas as pd

from stability.analysis import results as results_lib
from stability.analysis.results import Results
from stability.storage import run_files, sweeps

# Read from the text of the rows, which is ten times as fast as parsing all of their probes.
_ACTED = re.compile(rb'"acted/([^"]+)": ([01])\.0')


def load(workdir: Path) -> pd.DataFrame:
  """The share of probed steps in which an intervention changed anything: columns run, name, share.

  A row per run and intervention; none for runs without such probes.
  """
  rows = []
  for run in sweeps.read_sweep(workdir).runs:
    metrics = run_files.run_dir(workdir, run) / 'metrics.jsonl'
    found = _ACTED.findall(metrics.read_bytes()) if metrics.exists() else []
    rows += [(run, name.decode(), float(acted)) for name, acted in found]
  steps = pd.DataFrame(rows, columns=['run', 'name', 'share'])
  return steps.groupby(['run', 'name'], sort=False, as_index=False)['share'].mean()


def by_arm(results: Results, acted: pd.DataFrame) -> pd.DataFrame:
  """The mean share over the runs of each arm: columns results.groups and a column per intervention.

  NaN where an arm does not have the intervention. Without any probes, the table is empty.

  Args:
    results: the runs.
    acted: the result of `load`.
  """
  names = list(acted['name'].unique())
  if not names:
    return pd.DataFrame(columns=results.groups)
  shares = acted.pivot(index='run', columns='name', values='share')[names]
  runs = results.runs[['run', *results.groups]].join(shares, on='run', how='inner')
  rows = [
      dict(zip(results.groups, values, strict=True)) | of_arm[names].mean().to_dict()
      for values, of_arm in results_lib.split(runs, results.groups)
  ]
  return pd.DataFrame(rows, columns=[*results.groups, *names])
