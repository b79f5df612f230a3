"""LR sensitivity of every intervention relative to a baseline of the same size."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stability.analysis import lr_sensitivity, same_rates
from stability.analysis import results as results_lib
from stability.analysis import windows as windows_lib
from stability.analysis.claims.families import closest_to_paper
from stability.analysis.results import SWEEP, Results
from stability.analysis.same_rates import MIN_LEARNING_RATES

# Losses (a row per learning rate, a column per seed) and windows of a size and intervention.
_Curve = tuple[pd.DataFrame, Sequence[windows_lib.Window] | None]


def baseline(results: Results) -> pd.DataFrame:
  """The intervention with the most fields at the paper's values, the first one if several tie.

  Of several sweeps, it is one of the first.

  Returns:
    A table with one row and the columns results.groups.
  """
  interventions = results.runs[results.groups].drop_duplicates()
  if results.sweeps:
    interventions = interventions[interventions[SWEEP] == results.sweeps[0]]
  at_paper = np.zeros(len(interventions), int)
  for field in results.groups:
    at_paper += interventions[field] == closest_to_paper(field, set(interventions[field]))
  return interventions.iloc[[int(np.argmax(at_paper))]]


def compare(results: Results, table: pd.DataFrame) -> pd.DataFrame:
  """The ratio of LR sensitivity to that of the baseline, for each row of the table.

  Columns: is_baseline; ratio; low and high (its interval of level results.interval from resampling
  whole seeds, with the same resamples for both interventions; NaN with one seed). Both are of the
  seeds that have all learning rates of both interventions; with fewer than two, the ratio is of
  the seeds of each row (see lr_sensitivity.paired). Interventions with the same windows are
  compared at the same learning rates, see same_rates.of_all; the LR sensitivities of the table can
  be over more. The ratio is NaN for the baseline itself, if a run of either intervention is
  missing, and if there is no LR sensitivity to compare.

  Args:
    results: the runs of a sweep.
    table: the result of lr_sensitivity for these runs.
  """
  size = ['parameters', *results.sizes]
  keys = [*size, *results.groups]
  rows = table[keys].astype({'parameters': float})
  of_baseline = results_lib.key(baseline(results).iloc[0])
  arms = map(results_lib.key, rows[results.groups].to_numpy(object))
  is_baseline = pd.Series([arm == of_baseline for arm in arms], rows.index)
  found = pd.DataFrame(np.nan, rows.index, ['ratio', 'low', 'high'])
  if results.not_comparable is not None:
    return found.assign(is_baseline=is_baseline)
  curves, grids = {}, []
  runs = results.runs.assign(loss=lr_sensitivity.counted_loss(results.runs))
  for values, of_row in results_lib.split(runs, keys):
    limits = windows_lib.find(results.windows, dict(zip(keys, values, strict=True)))
    losses = lr_sensitivity.loss_table(lr_sensitivity.within(of_row, limits))
    if len(losses) >= MIN_LEARNING_RATES:
      curves[key := results_lib.key(values)] = losses, limits
      grids.append((key[len(size) :], tuple(losses.index)))
  whole = same_rates.with_one_grid(grids)
  complete = rows[table['missing'] == 0]
  of_rows = map(results_lib.key, complete.to_numpy(object))
  by_key = dict(zip(of_rows, complete.index, strict=True))
  for row, index in by_key.items():
    base = (*row[: len(size)], *of_baseline)
    if row != base and base in by_key and row in curves and base in curves:
      arms = (row[len(size) :], of_baseline)
      pair = _at_same_rates(curves[row], curves[base], whole.issuperset(arms))
      if pair is not None:
        found.loc[index] = _ratio(*pair, results.interval)
  return found.assign(is_baseline=is_baseline)


def _at_same_rates(ours: _Curve, base: _Curve, are_whole: bool) -> tuple[_Curve, _Curve] | None:
  """Two curves at the learning rates at which they are compared; None if they cannot be."""
  if ours[1] != base[1]:  # windows of their own
    return ours, base
  grids = [tuple(losses.index) for losses, _ in (ours, base)]
  rates = same_rates.of_all(grids, ours[1], are_whole=are_whole)
  if rates is None:
    return None
  of_ours, of_base = map(list, rates)
  return (ours[0].loc[of_ours], ours[1]), (base[0].loc[of_base], base[1])


def _ratio(ours: _Curve, base: _Curve, level: float) -> tuple[float, float, float]:
  """The ratio of two LR sensitivities, low and high; NaN if that of the baseline is not above 0."""
  whole = [losses.columns[losses.notna().all()] for losses, _ in (ours, base)]
  seeds = whole[0].intersection(whole[1])
  sensitivities = []
  for losses, limits in (ours, base):
    chosen = losses[seeds] if len(seeds) > 1 else lr_sensitivity.paired(losses)
    curves_LxD = lr_sensitivity.mean_curves(chosen)
    values_WxD = lr_sensitivity.sensitivities(chosen.index, curves_LxD, limits)
    sensitivities.append(np.fmin.reduce(values_WxD))
  draws = min(map(len, sensitivities))  # 1 where seeds lack learning rates
  ours_D, theirs_D = (values_D[:draws] for values_D in sensitivities)
  ratio_D = ours_D / np.where(theirs_D > 0, theirs_D, np.nan)
  return ratio_D[0], *lr_sensitivity.interval(ratio_D, len(seeds), level, of_ratio=True)
