"""LR sensitivity: how much the final loss depends on the learning rate (arXiv 2309.14322, 2.2)."""

import numpy as np
import pandas as pd

from stability.analysis import tables

COUNTED = ('done', 'diverged')  # failed, stopped and missing runs say nothing about stability
DRAWS = 1000  # resamplings of the seeds for low and high
INTERVAL = (5, 95)  # their percentiles


def counted_loss(runs: pd.DataFrame) -> pd.Series:
  """min(final_loss, initial_loss) in nats; NaN for runs that failed, were stopped or are missing.

  A diverged run without a finite final loss counts as its initial loss.
  """
  loss = np.fmin(runs['final_loss'], runs['initial_loss'])  # fmin passes over NaN
  return loss.where(runs['status'].isin(COUNTED))


def lr_sensitivity(results: tables.Results) -> pd.DataFrame:
  """A row per size and intervention, the smallest size first.

  Columns: those of size and intervention, parameters, lr_sensitivity (mean over learning rates of
  the loss minus the smallest, each averaged over seeds; nats), low and high (90 % interval by
  resampling whole seeds; NaN with one seed), best_loss, best_learning_rate, learning_rates and
  seeds (how many counted), missing (how many runs did not).
  """
  columns = [*results.sizes, *results.groups, 'parameters']
  rows = [
      {**dict(zip(columns, values, strict=True)), **_row(runs)}
      for values, runs in tables.split(results.runs, columns)
  ]
  table = pd.DataFrame(rows).astype({'parameters': 'Int64'})
  return table.sort_values('parameters', kind='stable', ignore_index=True)


def _row(runs: pd.DataFrame) -> dict[str, float | int]:
  runs = runs.assign(loss=counted_loss(runs))
  table = runs.pivot(index='learning_rate', columns='seed', values='loss')
  table = table.dropna(how='all').dropna(how='all', axis='columns')
  row = dict.fromkeys(
      ('lr_sensitivity', 'low', 'high', 'best_loss', 'best_learning_rate'), float('nan')
  )
  if not table.empty:
    losses_LxS = table.to_numpy()
    seeds = losses_LxS.shape[1]
    mean_L = _mean_over_seeds(losses_LxS, np.ones((1, seeds)))[:, 0]
    row['lr_sensitivity'] = mean_L.mean() - mean_L.min()
    row['best_loss'] = mean_L.min()
    row['best_learning_rate'] = table.index[mean_L.argmin()]
    if seeds > 1:
      row['low'], row['high'] = _interval(losses_LxS)
  return row | {
      'learning_rates': table.shape[0],
      'seeds': table.shape[1],
      'missing': int(runs['loss'].isna().sum()),
  }


def _interval(losses_LxS: np.ndarray) -> np.ndarray:
  """Percentiles of LR sensitivity over resampled seeds, each draw the same at all learning rates.

  The generator starts anew here, so that interventions with the same seeds see the same draws.
  """
  seeds = losses_LxS.shape[1]
  weights_DxS = np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS)
  mean_LxD = _mean_over_seeds(losses_LxS, weights_DxS)
  return np.percentile(np.nanmean(mean_LxD, axis=0) - np.nanmin(mean_LxD, axis=0), INTERVAL)


def _mean_over_seeds(losses_LxS: np.ndarray, weights_DxS: np.ndarray) -> np.ndarray:
  """Weighted means [L, D] over the seeds that are there; NaN where none is."""
  there_LxS = np.isfinite(losses_LxS)
  total_LxD = np.where(there_LxS, losses_LxS, 0.0) @ weights_DxS.T
  count_LxD = there_LxS @ weights_DxS.T
  nothing_LxD = np.full(total_LxD.shape, np.nan)
  return np.divide(total_LxD, count_LxD, out=nothing_LxD, where=count_LxD > 0)
