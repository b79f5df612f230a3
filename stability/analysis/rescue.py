"""How many unstable runs the policy rescues, counted in pairs of runs with and without it.

The policy is control.on_alarm=policy. The two runs of a pair differ in nothing else.
"""

import dataclasses

import pandas as pd

from stability.analysis import instability, lr_sensitivity
from stability.analysis.results import Results

FIELD = 'control.on_alarm'
WITHIN = 0.02  # a rescued run's loss exceeds the best one by at most this fraction


def pairs(results: Results) -> pd.DataFrame:
  """A table with a row per pair of runs that differ in the policy alone, if both runs count.

  Columns:
    those of size and intervention, parameters, learning_rate, seed
    doomed: unstable without the policy
    loss_without, loss_with: min(final, initial) without and with the policy, nats
    best_loss: the lowest loss of the size and intervention without the policy, averaged over seeds
    rescued: doomed, and the loss with the policy is at most WITHIN above best_loss
    harmed: not doomed, and the loss with the policy is more than WITHIN above that without it

  Empty if the sweep has no such pairs.
  """
  if FIELD not in results.groups:
    return pd.DataFrame()
  groups = [name for name in results.groups if name != FIELD]
  runs = results.runs.assign(loss=lr_sensitivity.counted_loss(results.runs))
  baseline = dataclasses.replace(results, runs=runs[runs[FIELD] == 'none'], groups=groups)
  if baseline.runs.empty:
    return pd.DataFrame()
  of_size = [*results.sizes, *groups, 'parameters']
  key = [*of_size, 'learning_rate', 'seed']
  without = baseline.runs[[*key, 'loss']].assign(doomed=instability.unstable(baseline))
  with_policy = runs.loc[runs[FIELD] == 'policy', [*key, 'loss']]
  best = lr_sensitivity.lr_sensitivity(baseline)[[*of_size, 'best_loss']]
  table = without.merge(with_policy, on=key, suffixes=('_without', '_with'))
  table = table.merge(best, on=of_size)
  table = table.dropna(subset=['loss_without', 'loss_with', 'doomed']).astype({'doomed': bool})
  within_best = table['loss_with'] <= (1 + WITHIN) * table['best_loss']
  worse = table['loss_with'] > (1 + WITHIN) * table['loss_without']
  return table.assign(rescued=table['doomed'] & within_best, harmed=~table['doomed'] & worse)


def by_size(table: pd.DataFrame, results: Results) -> pd.DataFrame:
  """The number of pairs of each kind: a row per size, the smallest first.

  Columns: those of size, parameters, doomed, rescued, others (not doomed) and harmed.
  """
  grouped = table.assign(others=~table['doomed']).groupby([*results.sizes, 'parameters'])
  counts = grouped[['doomed', 'rescued', 'others', 'harmed']].sum().reset_index()
  return counts.sort_values('parameters', kind='stable', ignore_index=True)
