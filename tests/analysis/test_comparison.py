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


def of_rates(**rates):
  """The ratio of two arms of a size with these learning rates, 3 if they are the same."""
  none, layernorm = rates['none'], rates['layernorm']
  points = [
      {'model.width': 16, QK_NORM: arm, 'optimizer.learning_rate': rate}
      for arm, of_arm in (('layernorm', layernorm), ('none', none))
      for rate in of_arm
  ]

  outcomes = sim.steep(where(QK_NORM, 'none', 0.3, 0.1))
  return compared(points, outcomes, windows=rates.get('windows', ()))['ratio'].iloc[1]


FULL = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]


def test_arms_are_compared_at_the_same_rates():
  """As launch.next chooses them: where each arm tells most."""
  assert of_rates(none=FULL, layernorm=FULL) == pytest.approx(3.0)
  # Each over its own, the ratio would say where the runs are.
  assert np.isnan(of_rates(none=[3e-3, 1e-2, 3e-2, 1e-1], layernorm=[1e-3, 3e-2, 1.0]))
  assert np.isnan(of_rates(none=FULL[1:5], layernorm=FULL))  # other ends
  assert np.isnan(of_rates(none=[1e-3, 1e-2, 1.0], layernorm=[1e-3, 3e-2, 1.0]))  # two in common
  common = [1e-3, 1e-2, 1.0]
  assert of_rates(none=common, layernorm=FULL) == pytest.approx(3.0)
  assert of_rates(none=FULL, layernorm=common) == pytest.approx(3.0)


def test_rates_beyond_the_windows_need_no_partner():
  windows = [{'where': {}, 'windows': [[1e-3, 1.0]]}]
  ratio = of_rates(none=[*FULL, 3.0], layernorm=FULL, windows=windows)
  assert ratio == pytest.approx(3.0)
  two = [{'where': {}, 'windows': [[1e-3, 1e-1], [1e-2, 1.0]]}]
  assert of_rates(none=FULL, layernorm=FULL, windows=two) == pytest.approx(3.0)
  within = [rate for rate in FULL if rate != 1e-1]  # the end of a window
  assert np.isnan(of_rates(none=FULL, layernorm=within, windows=two))


def test_arms_with_grids_or_windows_of_their_own():
  moved = [rate / 10 for rate in FULL]

  def mean(rates):  # of squared decades from the best rate: LR sensitivities, without a factor
    return np.mean(np.log10(np.array(rates) / 1e-2) ** 2)

  of_moved = of_rates(none=FULL, layernorm=moved)
  assert of_moved == pytest.approx(3 * mean(FULL) / mean(moved))  # 2.95
  assert np.isnan(of_rates(none=FULL[:4] + FULL[5:], layernorm=moved[:5] + moved[6:]))
  own = [{'where': {QK_NORM: 'none'}, 'windows': [[3e-3, 1.0]]}]
  of_own = of_rates(none=FULL, layernorm=FULL, windows=own)
  assert of_own == pytest.approx(3 * mean(FULL[1:]) / mean(FULL))  # 3.10
  # Where the arm has other rates at another size, its grid is not whole.
  points = [
      {'model.width': width, QK_NORM: arm, 'optimizer.learning_rate': rate}
      for width in (16, 32)
      for arm, of_arm in (('layernorm', FULL[:3]), ('none', FULL[2:5]))
      for rate in [*of_arm, *([10.0] if width == 32 else [])]
  ]
  table = compared(points, sim.steep(lambda c: 0.1))
  assert table['ratio'].isna().all()


def test_one_more_run_of_one_seed_leaves_the_interval():
  points = grid(QK, sweep('seed', 0, 1, 2))
  outcomes = sim.steep(lambda c: (0.2 if c[QK_NORM] == 'none' else 0.1) * (1 + c['seed']))
  more = {**points[0], 'optimizer.learning_rate': 3e-2}
  for number in ('ratio', 'low', 'high'):
    assert list(compared([*points, more], outcomes)[number]) == pytest.approx(
        list(compared(points, outcomes)[number]), nan_ok=True
    )
