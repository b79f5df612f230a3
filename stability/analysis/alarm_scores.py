"""How good the alarms are, held against which runs of a sweep became unstable, and when."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis import results as results_lib
from stability.control.alarms import Monitor
from stability.control.rules import RULES, Rule
from stability.storage import run_files

ANY = 'any'  # of the rules


def first_alarms(
    workdir: Path, runs: list[str], rules: Sequence[Rule] = RULES
) -> pd.DataFrame:
  """For each run (the index) the step of each rule's first alarm, and of ANY; NaN: it was silent.

  The rules are held against the rows of metrics.jsonl as the trainer holds them.
  """
  steps = pd.DataFrame(np.nan, runs, [rule.name for rule in rules])
  for name in runs:
    monitor = Monitor(rules)
    for row in run_files.read_metrics(run_files.run_dir(workdir, name)):
      for alarm in monitor.observe(row):
        steps.loc[name, alarm.rule] = alarm.step
  return steps.assign(**{ANY: steps.min(axis='columns')})


def labelled(workdir: Path, rules: Sequence[Rule] = RULES) -> pd.DataFrame:
  """The runs that count, by name: unstable, onset and the columns of first_alarms.

  A run in which somebody stepped in is left out: how it would have ended is not known.
  """
  results = results_lib.load_workdir(workdir)
  curves = results_lib.load_curves(workdir, probes=())
  labels = pd.DataFrame({
      'run': results.runs['run'],
      'unstable': instability.unstable(results),
      'onset': instability.onset(results, curves),
  })
  steered = [
      (run_files.run_dir(workdir, name) / 'actions.jsonl').exists() for name in labels['run']
  ]
  labels = labels[labels['unstable'].notna() & ~np.array(steered, bool)].set_index('run')
  return labels.join(first_alarms(workdir, list(labels.index), rules))


def score(labels: pd.DataFrame) -> pd.DataFrame:
  """A row for each rule, ANY last.

  Columns: rule, runs and unstable (how many there are), fired (in how many), recall (share of the
  unstable runs in which it fired), false_alarm_rate (share of the others), sure (share of those it
  fired in that are unstable), lead: the median, over all unstable runs that have an onset, of the
  step of the alarm over the step of the onset, a silent run counting as infinite. NaN where there
  is nothing to count.
  """
  return pd.DataFrame(list(_scores(labels)))


def _scores(labels: pd.DataFrame) -> Iterator[dict[str, float | int | str]]:
  unstable = labels['unstable'].astype(bool)
  with_onset = labels[unstable & labels['onset'].notna()]
  for rule in labels.columns.drop(['unstable', 'onset']):
    fired = labels[rule].notna()
    lead = (with_onset[rule] / with_onset['onset']).fillna(np.inf)
    yield {
        'rule': rule,
        'runs': len(labels),
        'unstable': int(unstable.sum()),
        'fired': int(fired.sum()),
        'recall': _share(fired[unstable]),
        'false_alarm_rate': _share(fired[~unstable]),
        'sure': _share(unstable[fired]),
        'lead': lead.median() if len(lead) else np.nan,
    }


def _share(values: pd.Series) -> float:
  return float(values.mean()) if len(values) else np.nan
