"""How many doomed runs the policy rescues: runs with control.on_alarm=policy beside none."""

import dataclasses

import pandas as pd

from stability.analysis import instability, lr_sensitivity
from stability.analysis.results import Results

FIELD = 'control.on_alarm'
WITHIN = 0.02  # of the best loss at the size: what counts as rescued


def pairs(results: Results) -> pd.DataFrame:
  """A row for each two runs that differ in nothing but the policy, both with a loss that counts.

  Columns: those of size and intervention, parameters, learning_rate, seed, doomed (unstable without
  the policy), loss_without and loss_with (min(final, initial), nats), best_loss (of the size and
  intervention without the policy: the lowest over learning rates of the mean over seeds), rescued
  (doomed, and with the policy at most WITHIN above the best) and harmed (not doomed, and with the
  policy more than WITHIN above the same run without it). Empty if the sweep has no such runs.
  """
  if FIELD not in results.groups:
    return pd.DataFrame()
  groups = [name for name in results.groups if name != FIELD]
  runs = results.runs.assign(loss=lr_sensitivity.counted_loss(results.runs))
  alone = dataclasses.replace(results, runs=runs[runs[FIELD] == 'none'], groups=groups)
  if alone.runs.empty:
    return pd.DataFrame()
  of_size = [*results.sizes, *groups, 'parameters']
  key = [*of_size, 'learning_rate', 'seed']
  without = alone.runs[[*key, 'loss']].assign(doomed=instability.unstable(alone))
  steered = runs.loc[runs[FIELD] == 'policy', [*key, 'loss']]
  best = lr_sensitivity.lr_sensitivity(alone)[[*of_size, 'best_loss']]
  table = without.merge(steered, on=key, suffixes=('_without', '_with')).merge(best, on=of_size)
  table = table.dropna(subset=['loss_without', 'loss_with', 'doomed']).astype({'doomed': bool})
  within_best = table['loss_with'] <= (1 + WITHIN) * table['best_loss']
  worse = table['loss_with'] > (1 + WITHIN) * table['loss_without']
  return table.assign(rescued=table['doomed'] & within_best, harmed=~table['doomed'] & worse)


def by_size(table: pd.DataFrame, results: Results) -> pd.DataFrame:
  """The pairs counted: a row per size, the smallest first.

  Columns: those of size, parameters, doomed, rescued, others (not doomed) and harmed.
  """
  counted = table.assign(others=~table['doomed']).groupby([*results.sizes, 'parameters'])
  found = counted[['doomed', 'rescued', 'others', 'harmed']].sum().reset_index()
  return found.sort_values('parameters', kind='stable', ignore_index=True)
