"""No size or intervention drops out of a claim without a word."""

import dataclasses
import warnings

import numpy as np
import pytest
from helpers import claim_cases, extension_cases
from helpers import simulated_sweeps as sim
from helpers.named_claims import NAMED, verdict
from helpers.simulated_sweeps import QK, Outcomes, simulate

from stability.analysis.claims import registry
from stability.analysis.claims.claim import DOES_NOT_HOLD, HOLDS, UNDECIDED
from stability.analysis.claims.evidence import Evidence

CASES = claim_cases.CASES | extension_cases.CASES
RATE, WIDTH, QK_NORM = 'optimizer.learning_rate', 'model.width', 'model.qk_norm'
FINE = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
AT_THE_HIGHEST = ['1d', '2a', '2d', '3b', '3c', '4a', '4b', '5d', '11c', 'C.1b', 'C.1c', 'E.11a',
                  'E.13b']  # fmt: skip


def without_rate(results, curves, is_of_row, rate):
  """The results without the runs of some sizes or interventions at a learning rate."""
  kept = ~(is_of_row(results.runs) & (results.runs['learning_rate'] == rate))
  results = dataclasses.replace(results, runs=results.runs[kept])
  return results, curves[curves['run'].isin(results.runs['run'])]


def of_size(largest):
  """Whether runs have the largest parameters, or the smallest."""
  ends = {True: 'max', False: 'min'}
  return lambda runs: runs['parameters'] == getattr(runs['parameters'], ends[largest])()


@pytest.mark.parametrize(
    'name, largest',
    [(name, largest) for name in AT_THE_HIGHEST for largest in (True, False)
     if largest or name != 'C.1c'],  # its smallest size is not one of those scaled in depth
)  # fmt: skip
def test_every_size_must_reach_the_highest_rate(name, largest):
  points, holds, _ = CASES[name]
  results, curves = simulate(points, holds)
  found = verdict(name, *without_rate(results, curves, of_size(largest), 1.0))
  assert found.verdict == UNDECIDED
  assert 'different highest learning rates, 0.1 to 1' in found.reason


def test_every_size_must_reach_the_lowest_rate():
  points, holds, _ = CASES['C.1b']
  found = verdict('C.1b', *without_rate(*simulate(points, holds), of_size(True), 1e-3))
  assert found.verdict == UNDECIDED and 'different lowest learning rates' in found.reason


def test_grids_of_other_interventions_may_end_elsewhere():
  """Figure 2 is on runs without qk-layernorm alone."""
  points, holds, _ = CASES['2a']
  results, curves = simulate(points, holds)

  def is_other(runs):
    return runs[QK_NORM] == 'layernorm'

  found = verdict('2a', *without_rate(results, curves, is_other, 1.0))
  assert (found.verdict, found.effect) == (HOLDS, 1.0)


def test_a_size_with_a_single_rate_has_no_grid():
  alone = [{WIDTH: 128, QK_NORM: 'none', RATE: 1e-2}]
  for name in ('2a', '1d'):
    points, holds, _ = CASES[name]
    found = verdict(name, *simulate(points + alone, holds))
    assert (found.verdict, found.reason) == (HOLDS, '')


def test_shares_of_unstable_runs_are_compared_at_the_same_rates():
  points, holds, _ = CASES['E.2a']
  found = verdict('E.2a', *without_rate(*simulate(points, holds), of_size(True), 1e-3))
  assert found.verdict == UNDECIDED and 'different learning rates' in found.reason


def untrained(outcomes, is_untrained):
  """The same outcomes, but with the initial loss where a condition on the fields is true."""

  def loss(c):
    return sim.INITIAL_LOSS if is_untrained(c) else outcomes.loss(c)

  return dataclasses.replace(outcomes, loss=loss)


# Claims on LR sensitivity and on stability.
SENSITIVITY = ['1a', '1b', '3a', '3d', '5a', '5b', '5e', '6a', '7a', '8b', 'E.4a', 'E.6a', 'E.6b',
               'E.7a', 'E.9a', *(f'extension_{letter}' for letter in 'abcdefghjlx')]  # fmt: skip
STABILITY = ['1c', '1d', '2a', '2b', '3b', '3c', '5d', '9a', '9d', 'E.2a']
LARGEST = 64  # width


@pytest.mark.parametrize('name', [*SENSITIVITY, *STABILITY])
@pytest.mark.parametrize('which', ['all', 'largest'])
def test_undecided_where_no_run_trains(name, which):
  points, holds, _ = CASES[name]
  largest = max(point.get(WIDTH, LARGEST) for point in points)

  def is_untrained(c):
    return which == 'all' or c[WIDTH] == largest

  found = verdict(name, *simulate(points, untrained(holds, is_untrained)))
  assert found.verdict == UNDECIDED and found.n > 0
  assert found.reason.startswith('no run of parameters=') and found.reason.endswith(' trains')


@pytest.mark.parametrize('name, width', [('3d', 16), ('5b', 32), ('E.6b', 32)])
def test_other_sizes_need_not_train(name, width):
  """Of claims on the largest size, or on that and the smallest."""
  points, holds, _ = CASES[name]
  whole = verdict(name, *simulate(points, holds))
  found = verdict(name, *simulate(points, untrained(holds, lambda c: c[WIDTH] == width)))
  assert (found.verdict, found.effect, found.reason) == (HOLDS, whole.effect, '')


def test_undecided_where_a_row_is_flat():
  """A ratio to an LR sensitivity of 0 is no number, and would drop out of the lowest ratio."""

  def loss(c):
    is_flat = c[WIDTH] == LARGEST and c[QK_NORM] != 'none'
    return 2.0 if is_flat else sim.bowl(c, 0.2 if c[QK_NORM] == 'none' else 0.1)

  found = verdict('1a', *simulate(QK, Outcomes(loss)))
  assert (found.verdict, found.reason) == (
      UNDECIDED,
      'the LR sensitivity of parameters=147,456, model.width=64, model.qk_norm=layernorm is 0',
  )


def test_the_flattest_arm_may_have_no_sensitivity():
  """Without qk-layernorm, every loss is the same: that is lower than with it."""
  found = verdict('1a', *simulate(QK, sim.steep(sim.where(QK_NORM, 'none', 0.0, 0.1))))
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, 0.0)


@pytest.mark.parametrize('loss', [sim.INITIAL_LOSS, 9.0, np.nan, 2.0])
@pytest.mark.parametrize('seeds', [1, 2])
def test_no_warning_where_losses_do_not_depend_on_the_rate(loss, seeds):
  points = [point | {'seed': seed} for point in QK for seed in range(seeds)]
  results, _ = simulate(points, Outcomes(lambda c: loss))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    judged = registry.judge(results)
  of_figure_1 = judged[(judged['figure'] == '1') & (judged['n'] > 0)]
  assert len(of_figure_1) == 4
  if loss != 2.0:
    assert (of_figure_1['verdict'] == UNDECIDED).all()


def test_a_draw_of_seeds_without_a_ratio_counts_for_no_row():
  """One seed of a row is flat: draws of that seed alone say nothing of the other rows either."""
  points = [point | {'seed': seed} for point in QK for seed in (0, 1)]

  def loss(c):
    if c['seed'] and c[WIDTH] == LARGEST and c[QK_NORM] != 'none':
      return 2.0
    return sim.bowl(c, 0.2 if c[QK_NORM] == 'none' else 0.1)

  results, curves = simulate(points, Outcomes(loss))
  evidence = Evidence.from_results(results, curves).with_common_seeds()
  is_flat = (evidence.weights.loc[0] == 0).to_numpy()
  ratios = NAMED['1a'].statistic(evidence.with_variants({QK_NORM: 'layernorm'}))
  assert is_flat.any() and (np.isnan(ratios.to_numpy()) == is_flat).all()


def smallest_and_largest(rates, unstable_from):
  """Runs at some rates of two sizes, unstable from a rate on (None: at none)."""
  rows = [
      {WIDTH: width, QK_NORM: 'none', RATE: rate}
      for width, rates_of in zip((16, 64), rates)
      for rate in rates_of
  ]
  limits = {16: unstable_from[0], 64: unstable_from[1]}

  def loss(c):
    limit = limits[c[WIDTH]]
    return 4.0 if limit is not None and c[RATE] >= limit else sim.flat(c)

  return verdict('1c', *simulate(rows, Outcomes(loss)))


@pytest.mark.parametrize(
    'rates, unstable_from, expected, reason',
    [
        ((FINE, FINE), (1.0, 0.1), HOLDS, ''),
        ((FINE, FINE), (None, 1.0), HOLDS, ''),  # the smallest size's is above 1
        ((FINE, FINE), (1.0, None), DOES_NOT_HOLD, ''),  # the largest size's is above 1
        ((FINE, FINE[:4]), (1.0, None), UNDECIDED, 'largest'),  # above 0.1
        ((FINE[:4], FINE), (None, 1.0), UNDECIDED, 'smallest'),
    ],
)
def test_a_grid_that_ends_below_instability_bounds_one_side(rates, unstable_from, expected, reason):
  found = smallest_and_largest(rates, unstable_from)
  assert found.verdict == expected
  assert bool(reason) == bool(found.reason) and reason in found.reason
