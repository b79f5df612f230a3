"""Ratios of LR sensitivity to that of the baseline."""

import dataclasses

import numpy as np
import pytest
from helpers import simulated_sweeps as sim
from helpers.simulated_sweeps import QK, RATES, WIDTHS, grid, simulate, sweep, where

from stability.analysis import comparison
from stability.analysis.lr_sensitivity import lr_sensitivity

QK_NORM, EPS = 'model.qk_norm', 'optimizer.eps'


def compared(points, outcomes, **options):
  """The comparison of a simulated sweep."""
  results = simulate(points, outcomes, **options)[0]
  table = lr_sensitivity(results)
  return comparison.compare(results, table)


def baseline(*points):
  results = simulate(grid(*points, RATES), sim.Outcomes(sim.flat))[0]
  return comparison.baseline(results).iloc[0].to_dict()


def test_ratio_at_each_size():
  table = compared(QK, sim.steep(lambda c: 0.02 * (sim.size(c) if c[QK_NORM] == 'none' else 1)))
  assert list(table['is_baseline']) == [True, False] * 3
  assert table['ratio'].tolist() == pytest.approx([np.nan, 1, np.nan, 4, np.nan, 16], nan_ok=True)
  assert table[['low', 'high']].isna().all(axis=None)  # one seed


# Of intervals over two seeds: Student's t over the normal quantile, times sqrt(2).
STRETCH = 6.313752 / 1.644854 * 2**0.5


def test_interval_is_over_pairs_of_seeds():
  """Seeds differ by a factor that both interventions share, so that the ratio is exact."""
  points = grid(QK, sweep('seed', 0, 1, 2))
  shared = sim.steep(lambda c: where(QK_NORM, 'none', 0.04, 0.02)(c) * 3 ** c['seed'])
  table = compared(points, shared).iloc[1]
  assert table[['ratio', 'low', 'high']].tolist() == pytest.approx([2.0, 2.0, 2.0])

  def of_seed(c):  # 2 in seed 0, 3 in seed 1
    return 0.1 * ((2 + c['seed']) if c[QK_NORM] == 'none' else 1)

  table = compared(grid(QK, sweep('seed', 0, 1)), sim.steep(of_seed)).iloc[1]
  # Stretched on a log scale, so that it stays above 0.
  expected = [2.5, 2.5 * (2 / 2.5) ** STRETCH, 2.5 * (3 / 2.5) ** STRETCH]
  assert table[['ratio', 'low', 'high']].tolist() == pytest.approx(expected)


def test_baseline_is_closest_to_the_paper():
  none_first = sweep(QK_NORM, 'none', 'layernorm')
  assert baseline(none_first) == {QK_NORM: 'layernorm'}
  assert baseline(sweep(QK_NORM, 'none', 'l2')) == {QK_NORM: 'l2'}  # of the same family
  assert baseline(sweep(EPS, 1e-15, 1e-6)) == {EPS: 1e-15}  # the first
  eps = sweep(EPS, 1e-15, 1e-6, 1e-8)
  assert baseline(none_first, eps) == {QK_NORM: 'layernorm', EPS: 1e-8}
  assert baseline(none_first, eps[:2]) == {QK_NORM: 'layernorm', EPS: 1e-15}


@pytest.mark.parametrize('row', [0, 1])
def test_no_ratio_where_runs_are_missing(row):
  results = simulate(QK, sim.steep(where(QK_NORM, 'none', 0.2, 0.1)))[0]
  runs = results.runs.copy()
  smallest = runs.index[runs['model.width'] == 16]
  runs.loc[smallest[4 * row], ['status', 'final_loss']] = 'missing', np.nan
  results = dataclasses.replace(results, runs=runs)
  table = comparison.compare(results, lr_sensitivity(results))
  assert table['ratio'].tolist() == pytest.approx([np.nan] * 3 + [2, np.nan, 2], nan_ok=True)


def test_nothing_to_compare():
  flat = sim.Outcomes(sim.flat)
  alone = compared(grid(WIDTHS, RATES), flat)
  assert alone['is_baseline'].all() and alone['ratio'].isna().all()
  two_rates = grid(sweep(QK_NORM, 'none', 'layernorm'), RATES[:2])
  assert compared(two_rates, flat)['ratio'].isna().all()
  assert compared(QK, flat, not_comparable=QK_NORM)['ratio'].isna().all()


def test_ratios_are_of_the_seeds_that_both_arms_have():
  """The third seed of one arm has twice its LR sensitivity."""
  points = [
      p for p in grid(QK, sweep('seed', 0, 1, 2)) if p[QK_NORM] != 'none' or p['seed'] < 2
  ]
  of_seed = sim.steep(lambda c: (0.2 if c[QK_NORM] == 'none' else 0.1) * max(1, c['seed']))
  table = compared(points, of_seed).iloc[1]
  assert table[['ratio', 'low', 'high']].tolist() == pytest.approx([2.0, 2.0, 2.0])


def test_an_arm_with_one_seed_has_no_interval():
  """Its resamples are all the same."""
  points = [p for p in grid(QK, sweep('seed', 0, 1)) if p[QK_NORM] != 'none' or p['seed'] == 0]
  table = compared(points, sim.steep(lambda c: 0.1))
  assert table['ratio'].notna().sum() == len(WIDTHS)
  assert table[['low', 'high']].isna().all(axis=None)
