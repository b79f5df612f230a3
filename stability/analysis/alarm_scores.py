"""Scores of the alarm rules: how well they predict which runs become unstable, and when."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from stability.analysis import alarm_replay, instability
from stability.analysis import results as results_lib
from stability.control.alarms import Alarm
from stability.control.rules import RULES, Rule
from stability.storage import run_files

ANY = 'any'  # the union of all rules
# The bins of by_rise. Runs with the first one have a learning rate up to the best one; the loss of
# unstable runs rises by more than instability.MARGIN.
RISES = (0.0, 0.01, 0.02, 0.03, 0.04, instability.MARGIN, 0.07, 0.1, 0.2, math.inf)


def outcomes(workdir: Path) -> pd.DataFrame:
  """A table of unstable, rise, onset (see instability) and steps, with a row for each run, by name.

  Runs whose stability is unknown are left out: those that failed, were stopped or are missing, and
  those that were acted on.
  """
  results = results_lib.load_workdir(workdir)
  curves = results_lib.load_curves(workdir, probes=())
  found = pd.DataFrame({
      'run': results.runs['run'],
      'unstable': instability.unstable(results),
      'rise': instability.rise(results),
      'onset': instability.onset(results, curves),
      'steps': results.runs['steps'],
  })
  acted_on = [
      (run_files.run_dir(workdir, name) / 'actions.jsonl').exists() for name in found['run']
  ]
  return found[found['unstable'].notna() & ~np.array(acted_on, bool)].set_index('run')


def join(
    outcomes: pd.DataFrame,
    alarms: Mapping[str, Iterable[Alarm]],
    rules: Sequence[Rule] = RULES,
) -> pd.DataFrame:
  """The outcomes of runs with the steps of their first alarms.

  Columns: unstable, onset, and one per rule and ANY with the step; NaN if no alarm was raised.
  """
  steps = pd.DataFrame(np.nan, outcomes.index, [rule.name for rule in rules])
  for name in outcomes.index:
    for alarm in alarms[name]:
      steps.loc[name, alarm.rule] = alarm.step
  return outcomes[['unstable', 'onset']].join(steps.assign(**{ANY: steps.min(axis='columns')}))


def label_runs(workdir: Path, rules: Sequence[Rule] = RULES) -> pd.DataFrame:
  """The outcome and the first alarms of each run; see `join`.

  The rules are applied to the rows of metrics.jsonl in the same way as in the trainer.
  """
  found = outcomes(workdir)
  alarms = {
      name: alarm_replay.replay(run_files.run_dir(workdir, name), rules).alarms
      for name in found.index
  }
  return join(found, alarms, rules)


def score(
    labels: pd.DataFrame, lacking: Mapping[str, Collection[str]] = MappingProxyType({})
) -> pd.DataFrame:
  """Scores each rule: a row per rule, ANY last; NaN where no run qualifies.

  Args:
    labels: see join.
    lacking: run -> the rules that could not be applied to it, for which it does not count.

  Columns:
    rule
    runs, unstable: to how many runs it could be applied, and how many of them are unstable
    fired: in how many runs the rule fired
    recall: the share of unstable runs in which it fired
    false_alarm_rate: the share of stable runs in which it fired
    lead: the step of the alarm divided by the step of the onset, infinite if the rule did not fire;
      the median over unstable runs with an onset
  """
  rules = labels.columns.drop(['unstable', 'onset'])
  return pd.DataFrame([
      _score(rule, labels[[rule not in lacking.get(name, ()) for name in labels.index]])
      for rule in rules
  ])


def reliability(outcomes: pd.DataFrame, alarms: Mapping[str, Iterable[Alarm]]) -> pd.DataFrame:
  """How often runs become unstable after an alarm, by its probability.

  An alarm's probability is that of the run becoming unstable, so alarms after the onset do not
  count; in an unstable run without an onset, all do. Only the first alarm of each rule in a run
  counts.

  Args:
    outcomes: see outcomes.
    alarms: run -> its alarms.

  Returns:
    A row per tenth of probability with any alarm. Columns: low, high, alarms (their number),
    probability (their mean), unstable (the share of them after which the run became unstable).
  """
  found = pd.DataFrame(
      [
          (alarm.probability, float(run.unstable))
          for run in outcomes.itertuples()
          for alarm in _first_of_rules(alarms[run.Index])
          if not (run.unstable and alarm.step > run.onset)
      ],
      columns=['probability', 'unstable'],
  )
  tenth = np.minimum(np.floor(found['probability'] * 10), 9)  # 1 belongs to the last
  table = found.groupby(tenth.rename('tenth')).agg(
      alarms=('unstable', 'size'),
      probability=('probability', 'mean'),
      unstable=('unstable', 'mean'),
  )
  table.insert(0, 'high', (table.index + 1) / 10)
  table.insert(0, 'low', table.index / 10)
  return table.reset_index(drop=True)


def by_rise(outcomes: pd.DataFrame, alarms: Mapping[str, Sequence[Alarm]]) -> pd.DataFrame:
  """In how many runs alarms are raised, by how far their losses rise above the best one.

  False and missed alarms in runs whose loss rises by nearly MARGIN say less than others.

  Args:
    outcomes: see outcomes.
    alarms: run -> its alarms.

  Returns:
    A row per bin of RISES. Columns: low, high (a run of the bin has a rise above low, up to high;
    in the first one, it is 0), runs, unstable, fired (the numbers of them).
  """
  fired = np.array([bool(alarms[name]) for name in outcomes.index], bool)
  bins = np.searchsorted(RISES, outcomes['rise'].to_numpy(float))
  return pd.DataFrame([
      {
          'low': RISES[max(number - 1, 0)],
          'high': high,
          'runs': (bins == number).sum(),
          'unstable': outcomes['unstable'][bins == number].sum(),
          'fired': fired[bins == number].sum(),
      }
      for number, high in enumerate(RISES)
  ])


def _first_of_rules(alarms: Iterable[Alarm]) -> Iterable[Alarm]:
  first: dict[str, Alarm] = {}
  for alarm in sorted(alarms, key=lambda alarm: alarm.step):
    first.setdefault(alarm.rule, alarm)
  return first.values()


def _score(rule: str, labels: pd.DataFrame) -> dict[str, float | int | str]:
  unstable = labels['unstable'].astype(bool)
  with_onset = labels[unstable & labels['onset'].notna()]
  fired = labels[rule].notna()
  lead = (with_onset[rule] / with_onset['onset']).fillna(np.inf)
  return {
      'rule': rule,
      'runs': len(labels),
      'unstable': int(unstable.sum()),
      'fired': int(fired.sum()),
      'recall': _share(fired[unstable]),
      'false_alarm_rate': _share(fired[~unstable]),
      'lead': lead.median() if len(lead) else np.nan,
  }


def _share(values: pd.Series) -> float:
  return float(values.mean()) if len(values) else np.nan
