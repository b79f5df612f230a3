"""LR sensitivity of every intervention relative to a baseline of the same size."""

import numpy as np
import pandas as pd

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.claims.evidence import Evidence, Undecided
from stability.analysis.claims.families import closest_to_paper
from stability.analysis.results import SWEEP, Results


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
  whole seeds, with the same resamples for both interventions; NaN with one seed). The ratio is NaN
  for the baseline itself, if a run of either intervention is missing, and if there is no LR
  sensitivity to compare.

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
  try:
    evidence = Evidence.from_results(results, None)
    spreads = evidence.lr_sensitivity()
  except Undecided:
    return found.assign(is_baseline=is_baseline)
  indices = spreads.index.to_frame()[keys].to_numpy(object)
  positions = {results_lib.key(index): position for position, index in enumerate(indices)}
  rows['position'] = [positions.get(results_lib.key(row)) for row in rows.to_numpy(object)]
  usable = (table['missing'] == 0) & rows['position'].notna()
  of_baseline = rows[usable & is_baseline].drop(columns=results.groups)
  others = rows[usable & ~is_baseline].reset_index()
  pairs = others.merge(of_baseline, on=size, suffixes=('', '_base'))
  draws_RxD = spreads.to_numpy()
  pairs = pairs[draws_RxD[pairs['position_base'].astype(int), 0] > 0]
  base_RxD = draws_RxD[pairs['position_base'].astype(int)]
  ratios_RxD = draws_RxD[pairs['position'].astype(int)] / np.where(base_RxD > 0, base_RxD, np.nan)
  found.loc[pairs['index'], 'ratio'] = ratios_RxD[:, 0]
  if evidence.seeds > 1 and len(pairs):
    seeds_R = table.loc[pairs['index'], 'seeds']
    found.loc[pairs['index'], ['low', 'high']] = [
        lr_sensitivity.interval(ratios_D, seeds, results.interval, of_ratio=True)
        for ratios_D, seeds in zip(ratios_RxD, seeds_R, strict=True)
    ]
  return found.assign(is_baseline=is_baseline)
