"""LR sensitivity: how much the final loss depends on the learning rate (paper section 2.2).

Suffixes of arrays: L learning rates, S seeds, D draws (weightings of the seeds), W windows.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

from stability.analysis import results as results_lib
from stability.analysis import windows as windows_lib

COUNTED = ('done', 'diverged')  # statuses of runs that count; the others say nothing of stability
DRAWS = 1000  # bootstrap resamples of the seeds, for low and high
# Values of the column `window`.
ALL = 'all'  # all learning rates
NOT_COMPARABLE = 'not comparable'


def counted_loss(runs: pd.DataFrame) -> pd.Series:
  """min(final_loss, initial_loss) in nats; NaN for runs that failed, were stopped or are missing.

  A diverged run without a finite final loss counts with its initial loss.
  """
  loss = np.fmin(runs['final_loss'], runs['initial_loss'])  # fmin ignores NaN
  return loss.where(runs['status'].isin(COUNTED))


def trains(runs: pd.DataFrame) -> bool:
  """Whether a run that counts ends below its initial loss; without one, no rate is the best.

  Args:
    runs: with the columns initial_loss and loss (counted_loss).
  """
  counted = runs.dropna(subset='loss')
  return not (counted['loss'] >= counted['initial_loss']).all()


def lr_sensitivity(results: results_lib.Results) -> pd.DataFrame:
  """A table of LR sensitivity: a row per size and intervention, the smallest size first.

  Columns:
    those of size and intervention, and parameters
    lr_sensitivity: the mean over learning rates of the loss averaged over seeds, minus the lowest
      of these averages; nats; NaN with one learning rate
    low, high: interval of level results.interval over seeds, see interval_of_sensitivity; NaN with
      one seed, and where seeds lack learning rates
    best_loss (nats), best_learning_rate (NaN where none trains, see trains)
    learning_rates, seeds: how many were used; see paired
    missing: how many runs do not count
    window: the window of learning rates that lr_sensitivity and learning_rates refer to: that of
      results.windows with the lowest LR sensitivity. The other columns refer to all windows. `all`
      if there are no windows; `not comparable` if results.not_comparable is set
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
  limits = windows_lib.find(results.windows, key)
  runs = within(runs.assign(loss=counted_loss(runs)), limits)
  losses = paired(loss_table(runs))
  row = dict.fromkeys(
      ('lr_sensitivity', 'low', 'high', 'best_loss', 'best_learning_rate'), float('nan')
  )
  row |= {'learning_rates': losses.shape[0], 'seeds': losses.shape[1]}
  row |= {'missing': int(runs['loss'].isna().sum()), 'window': ALL}
  if not losses.empty:
    mean_LxD = mean_curves(losses)
    row['best_loss'] = mean_LxD[:, 0].min()
    if trains(runs):
      row['best_learning_rate'] = losses.index[mean_LxD[:, 0].argmin()]
    if results.not_comparable is None:
      sensitivities_WxD = sensitivities(losses.index, mean_LxD, limits)
      sensitivity_W, sensitivity_D = sensitivities_WxD[:, 0], np.fmin.reduce(sensitivities_WxD)
      row['lr_sensitivity'] = sensitivity_D[0]
      ends = interval_of_sensitivity(sensitivity_D, row['seeds'], results.interval)
      row['low'], row['high'] = ends
      if limits is not None and np.isfinite(sensitivity_W).any():
        low, high = limits[np.nanargmin(sensitivity_W)]
        row['window'] = f'{low:g} to {high:g}'
        row['learning_rates'] = len(_inside(losses.index, (low, high)))
  if results.not_comparable is not None:
    row['window'] = NOT_COMPARABLE
  return row


def loss_table(runs: pd.DataFrame) -> pd.DataFrame:
  """The losses of a size and arm: a row per learning rate, a column per seed, both ascending."""
  return runs.pivot(index='learning_rate', columns='seed', values='loss')


def paired(losses: pd.DataFrame) -> pd.DataFrame:
  """The losses of the seeds from which the curve of a size and arm is computed.

  These are the seeds that have all learning rates if there are two or more, else all seeds.

  Args:
    losses: a row per learning rate, a column per seed; NaN does not count.
  """
  losses = losses.dropna(how='all').dropna(how='all', axis='columns')
  whole = losses.dropna(axis='columns')
  return whole if whole.shape[1] > 1 else losses


def mean_curve(losses: pd.DataFrame) -> np.ndarray:
  """The loss [L] averaged over seeds, as if all seeds had all learning rates.

  A seed that lacks rates is shifted by its offset from the mean of the seeds with the most rates.
  The offset is taken at the rate where the larger of the two losses is lowest, since neither is
  likely to be unstable there. A plain mean would jump where the set of seeds changes; a fit of each
  seed's offset over all rates would spread one unstable run over the curve.

  If seeds are thinned out near the cliff, as launch.next does, the critical rate has a root mean
  square error of 0.04 decades for finetuning.py (plain means: 0.19, a fit: 0.08) and of 0.07 for
  selection.py (0.03 and 0.08). For simulated curves whose seeds differ by 0.01 nats, that of the
  best loss is at most 0.04 nats (0.04 and 0.5).

  Args:
    losses: see paired; with a number in each row and column.
  """
  values_LxS = losses.to_numpy(float)
  is_run_LxS = np.isfinite(values_LxS)
  rates_S = is_run_LxS.sum(axis=0)
  has_most_S = rates_S == rates_S.max(initial=0)
  level_L = mean_over_seeds(values_LxS, has_most_S[None].astype(float))[:, 0]
  difference_LxS = values_LxS - level_L[:, None]
  higher_LxS = np.where(np.isnan(difference_LxS), np.inf, np.maximum(values_LxS, level_L[:, None]))
  shift_S = np.zeros(len(rates_S))
  for seed in np.flatnonzero(np.isfinite(higher_LxS).any(axis=0) & ~has_most_S):
    shift_S[seed] = difference_LxS[higher_LxS[:, seed].argmin(), seed]
  return mean_over_seeds(values_LxS - shift_S, np.ones((1, len(rates_S))))[:, 0]


def mean_curves(losses: pd.DataFrame) -> np.ndarray:
  """The mean curve [L, D] and, if all seeds have all learning rates, that of each resample."""
  if losses.empty or losses.isna().any(axis=None):
    return mean_curve(losses)[:, None]
  return mean_over_seeds(losses.to_numpy(float), with_draws(losses.shape[1]))


def interval_of_sensitivity(values_D: np.ndarray, seeds: int, level: float) -> tuple[float, float]:
  """The interval of an LR sensitivity: as `interval`, but reaching at least as far down as up.

  It does not go below 0. LR sensitivity is biased upwards, since noise lowers the minimum.
  Resampling adds the same bias again, so the lower percentile can lie above the true value. With 2,
  3 and 5 seeds, where seeds and the runs of a seed each have a standard deviation of 0.02 nats,
  90 % intervals hold the true value in 83 to 89 % of cases for a flat curve and 89 to 96 % for
  bowls and a cliff; plain percentiles in 0 to 18 and 76 to 93 %. Ratios of two LR sensitivities use
  plain percentiles, since the biases mostly cancel: 75 to 89 % with 2 seeds, 88 to 95 % with 3
  and 5.
  """
  low, high = interval(values_D, seeds, level)
  return max(min(low, 2 * float(values_D[0]) - high), 0.0), high


def interval(
    values_D: np.ndarray, seeds: int, level: float, *, of_ratio: bool = False
) -> tuple[float, float]:
  """The interval of a number over seeds; NaN with one seed.

  Resamples of few seeds vary too little: the percentiles of the mean of three seeds hold the true
  one in 62 % of cases instead of 90 %. They are stretched about the number by Student's t over the
  normal quantile and by sqrt(n / (n - 1)), so that the interval of a mean is about Student's.

  Args:
    values_D: the number, with all seeds and then with each of `draws`; see with_draws.
    seeds: the number of seeds.
    level: confidence level, such as 0.9.
    of_ratio: whether the number is a ratio, which is stretched on a log scale.
  """
  if seeds < 2 or not np.isfinite(values_D[0]) or not np.isfinite(values_D[1:]).any():
    return math.nan, math.nan
  if of_ratio:
    with np.errstate(divide='ignore'):
      low, high = interval(np.log(values_D), seeds, level)
    return math.exp(low), math.exp(high)
  tail = round((1 - level) / 2, 9)
  stretch = special.stdtrit(seeds - 1, tail) / special.ndtri(tail) * (seeds / (seeds - 1)) ** 0.5
  drawn = values_D[1:][np.isfinite(values_D[1:])]
  ends = np.percentile(drawn, (100 * tail, 100 - 100 * tail))
  low, high = values_D[0] + stretch * (ends - values_D[0])
  return float(low), float(high)


def with_draws(seeds: int) -> np.ndarray:
  """The weights [1 + DRAWS, seeds] of all seeds and of bootstrap resamples of them.

  Each call restarts the generator, so interventions with equally many seeds get the same resamples.
  """
  shares = np.full(seeds, 1 / seeds)
  resamples = np.random.default_rng(0).multinomial(seeds, shares, size=DRAWS)
  return np.concatenate([np.ones((1, seeds)), resamples])


def within(runs: pd.DataFrame, limits: Sequence[windows_lib.Window] | None) -> pd.DataFrame:
  """The runs whose learning rate lies in one of the windows; all runs if `limits` is None."""
  if limits is None:
    return runs
  rates = runs['learning_rate']
  return runs[[any(windows_lib.inside(rate, window) for window in limits) for rate in rates]]


def sensitivities(
    rates: pd.Index, mean_LxD: np.ndarray, limits: Sequence[windows_lib.Window] | None
) -> np.ndarray:
  """LR sensitivity [W, D] in each window, of each curve.

  NaN with fewer than two learning rates.

  Args:
    rates: the learning rates.
    mean_LxD: curves of loss, such as those of mean_curves.
    limits: the windows; None: a single one without limits.
  """
  if limits is None:
    return _sensitivity(mean_LxD)[None]
  sensitivities_WxD = []
  for window in limits:
    rows = rates.get_indexer(_inside(rates, window))
    sensitivities_WxD.append(_sensitivity(mean_LxD[rows]))
  return np.array(sensitivities_WxD)


def _inside(rates: pd.Index, window: windows_lib.Window) -> pd.Index:
  return rates[[windows_lib.inside(rate, window) for rate in rates]]


def _sensitivity(mean_LxD: np.ndarray) -> np.ndarray:
  """The mean minus the minimum of the finite values [D]; NaN with fewer than two."""
  finite_LxD = np.isfinite(mean_LxD)
  total_D = np.where(finite_LxD, mean_LxD, 0.0).sum(axis=0)
  count_D = finite_LxD.sum(axis=0)
  mean_D = np.divide(total_D, count_D, out=np.full(total_D.shape, np.nan), where=count_D > 1)
  return mean_D - np.where(finite_LxD, mean_LxD, np.inf).min(axis=0, initial=np.inf)


def mean_over_seeds(values_LxS: np.ndarray, weights_DxS: np.ndarray) -> np.ndarray:
  """Weighted means [L, D] over seeds of the finite values; NaN if there are none."""
  finite_LxS = np.isfinite(values_LxS)
  total_LxD = np.where(finite_LxS, values_LxS, 0.0) @ weights_DxS.T
  count_LxD = finite_LxS @ weights_DxS.T
  nan_LxD = np.full(total_LxD.shape, np.nan)
  return np.divide(total_LxD, count_LxD, out=nan_LxD, where=count_LxD > 0)
