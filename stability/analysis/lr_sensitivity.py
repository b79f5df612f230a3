"""LR sensitivity: how much the final loss depends on the learning rate (arXiv 2309.14322, 2.2)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stability.analysis import results as results_lib
from stability.analysis import windows as windows_lib

COUNTED = ('done', 'diverged')  # failed, stopped and missing runs say nothing about stability
DRAWS = 1000  # resamplings of the seeds for low and high
INTERVAL = (5, 95)  # their percentiles
ALL = 'all'  # in the column window: no limits
NOT_COMPARABLE = 'not comparable'


def counted_loss(runs: pd.DataFrame) -> pd.Series:
  """min(final_loss, initial_loss) in nats; NaN for runs that failed, were stopped or are missing.

  A diverged run without a finite final loss counts as its initial loss.
  """
  loss = np.fmin(runs['final_loss'], runs['initial_loss'])  # fmin passes over NaN
  return loss.where(runs['status'].isin(COUNTED))


def lr_sensitivity(results: results_lib.Results) -> pd.DataFrame:
  """A row per size and intervention, the smallest size first.

  Columns: those of size and intervention, parameters, lr_sensitivity (mean over learning rates of
  the loss minus the smallest, each averaged over seeds; nats; NaN with one learning rate), low and
  high (90 % interval by resampling whole seeds; NaN with one seed), best_loss, best_learning_rate,
  learning_rates and seeds (how many counted), missing (how many runs did not), window.

  window: `all`, or the one of results.windows in which LR sensitivity is lowest, and which
  lr_sensitivity and learning_rates are of; the other columns are of all the windows together.
  `not comparable`: results.not_comparable is set, and there is no lr_sensitivity.
  """
  columns = [*results.sizes, *results.groups, 'parameters']
  rows = [
      {**(key := dict(zip(columns, values, strict=True))), **_row(runs, results, key)}
      for values, runs in results_lib.split(results.runs, columns)
  ]
  table = pd.DataFrame(rows).astype({'parameters': 'Int64'})
  return table.sort_values('parameters', kind='stable', ignore_index=True)


def _row(
    runs: pd.DataFrame, results: results_lib.Results, key: dict
) -> dict[str, float | int | str]:
  limits = windows_lib.of(results.windows, key)
  runs = within(runs.assign(loss=counted_loss(runs)), limits)
  losses = runs.pivot(index='learning_rate', columns='seed', values='loss')
  losses = losses.dropna(how='all').dropna(how='all', axis='columns')
  row = dict.fromkeys(
      ('lr_sensitivity', 'low', 'high', 'best_loss', 'best_learning_rate'), float('nan')
  )
  row |= {'learning_rates': losses.shape[0], 'seeds': losses.shape[1]}
  row |= {'missing': int(runs['loss'].isna().sum()), 'window': ALL}
  if not losses.empty:
    seeds = losses.shape[1]
    mean_L = mean_over_seeds(losses.to_numpy(), np.ones((1, seeds)))[:, 0]
    row['best_loss'] = mean_L.min()
    row['best_learning_rate'] = losses.index[mean_L.argmin()]
    if results.not_comparable is None:
      spreads_W = spreads(losses, np.ones((1, seeds)), limits)[:, 0]
      row['lr_sensitivity'] = np.fmin.reduce(spreads_W)
      if seeds > 1 and np.isfinite(spreads_W).any():
        spread_D = np.fmin.reduce(spreads(losses, draws(seeds), limits))
        row['low'], row['high'] = np.nanpercentile(spread_D, INTERVAL)
      if limits is not None and np.isfinite(spreads_W).any():
        low, high = limits[np.nanargmin(spreads_W)]
        row['window'] = f'{low:g} to {high:g}'
        row['learning_rates'] = len(_inside(losses.index, (low, high)))
  if results.not_comparable is not None:
    row['window'] = NOT_COMPARABLE
  return row


def draws(seeds: int) -> np.ndarray:
  """Weights [DRAWS, seeds] of the seeds, drawn as often as there are, with replacement.

  The generator starts anew here, so that interventions with the same seeds see the same draws.
  """
  shares = np.full(seeds, 1 / seeds)
  return np.random.default_rng(0).multinomial(seeds, shares, size=DRAWS)


def within(runs: pd.DataFrame, limits: Sequence[windows_lib.Window] | None) -> pd.DataFrame:
  """The runs whose learning rate lies in one of the windows; all without windows."""
  if limits is None:
    return runs
  rates = runs['learning_rate']
  return runs[[any(windows_lib.inside(rate, window) for window in limits) for rate in rates]]


def spreads(
    losses: pd.DataFrame, weights_DxS: np.ndarray, limits: Sequence[windows_lib.Window] | None
) -> np.ndarray:
  """LR sensitivity [W, D] in each window, for each weighting of the seeds.

  Fewer than two learning rates have none (NaN): one alone has no spread.

  Args:
    losses: a row per learning rate, a column per seed.
    weights_DxS: of the seeds, in the order of the columns.
    limits: the windows; None: one without limits.
  """
  mean_LxD = mean_over_seeds(losses.to_numpy(), weights_DxS)
  if limits is None:
    return _spread(mean_LxD)[None]
  found = []
  for window in limits:
    rows = losses.index.get_indexer(_inside(losses.index, window))
    found.append(_spread(mean_LxD[rows]))
  return np.array(found)


def _inside(rates: pd.Index, window: windows_lib.Window) -> pd.Index:
  return rates[[windows_lib.inside(rate, window) for rate in rates]]


def _spread(mean_LxD: np.ndarray) -> np.ndarray:
  """Mean minus lowest over what is there; NaN where that is fewer than two."""
  there_LxD = np.isfinite(mean_LxD)
  total_D = np.where(there_LxD, mean_LxD, 0.0).sum(axis=0)
  count_D = there_LxD.sum(axis=0)
  mean_D = np.divide(total_D, count_D, out=np.full(total_D.shape, np.nan), where=count_D > 1)
  return mean_D - np.where(there_LxD, mean_LxD, np.inf).min(axis=0, initial=np.inf)


def mean_over_seeds(values_LxS: np.ndarray, weights_DxS: np.ndarray) -> np.ndarray:
  """Weighted means [L, D] over the seeds that are there; NaN where none is."""
  there_LxS = np.isfinite(values_LxS)
  total_LxD = np.where(there_LxS, values_LxS, 0.0) @ weights_DxS.T
  count_LxD = there_LxS @ weights_DxS.T
  nothing_LxD = np.full(total_LxD.shape, np.nan)
  return np.divide(total_LxD, count_LxD, out=nothing_LxD, where=count_LxD > 0)
