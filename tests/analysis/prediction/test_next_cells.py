"""Which cells are next: critical rates of draws, and what a choice depends on."""

import dataclasses

import numpy as np
import pytest

from stability.analysis import instability
from stability.analysis.prediction import loss_surface, next_cells
from stability.analysis.prediction.loss_surface import Covariance
from stability.analysis.prediction.next_cells import Curves

RATES = np.linspace(-3, 0, 7)
INITIAL = 5.5
# Two arms at one size that share nothing, so that a run says nothing of the other arm.
CURVES = Curves(
    np.array([0, 1]), np.array([4.0, 4.0]), np.full(2, INITIAL), RATES, np.ones((2, 7), bool)
)
COVARIANCE = Covariance(0.3, 0.8, 2.0, 0.02, 0.005, 0.0)
STABLE = np.array([2.6, 2.3, 2.1, 2.0, 2.05, 2.1, 4.0])  # its critical rate is in the last step
COST = np.ones(2)


def surface(*cells: int) -> loss_surface.LossSurface:
  """The posterior given these cells, each of STABLE in either arm."""
  loss = np.log(np.tile(STABLE, 2))
  which = list(cells)
  return loss_surface.LossSurface(COVARIANCE, CURVES.cells[which], loss[which], mean=0.9)


def choose(given, count=1, *, curves=CURVES, cost=COST, width=0.25, candidates=None, **options):
  now = next_cells.posterior(given, curves, options.get('target'))
  candidates = np.ones(len(curves.cells), bool) if candidates is None else candidates
  return next_cells.choose(given, now, curves, cost, candidates, count, width, **options)


def test_critical_rates_and_sensitivities():
  """As of one curve at a time; a rate above the grid is given as half a step beyond it."""
  rng = np.random.default_rng(0)
  loss = 2 + rng.normal(0, 1, (200, 2, 7)).cumsum(axis=2) ** 2
  loss[:3] = INITIAL + 1  # no rate trains
  found, beyond = next_cells.critical_rates(loss, CURVES)
  kinds = set()
  for d in range(200):
    for k in range(2):
      counted = np.minimum(loss[d, k], INITIAL)
      log_rate, censored = instability.log_critical_rate(RATES, counted, INITIAL)
      kinds.add(censored)
      assert beyond[d, k] == censored
      assert found[d, k] == pytest.approx(log_rate + (0.25 if censored == 1 else 0))
  assert kinds == {-1, 0, 1}
  in_window = dataclasses.replace(CURVES, in_window_KxL=np.arange(7) < [[3], [5]])
  for k, count in enumerate((3, 5)):
    counted = np.minimum(loss, INITIAL)[:, k, :count]
    np.testing.assert_allclose(
        next_cells.sensitivities(loss, in_window)[:, k], counted.mean(axis=1) - counted.min(axis=1)
    )
  outside = dataclasses.replace(CURVES, in_window_KxL=np.arange(7) < [[0], [5]])
  assert (next_cells.sensitivities(loss, outside)[:, 0] == 0).all()


def test_next_is_where_the_critical_rate_is_uncertain():
  """The first arm is known; of the second one, all but the rates around the crossing are."""
  (choice,) = choose(surface(*range(7), 7, 8, 9, 10, 13))
  assert choice.curve == choice.about == 1 and choice.rate in (4, 5)
  assert choice.width > 0.25 and choice.width_after < choice.width


def test_next_is_cheap():
  given = surface(0, 3, 7, 10)
  cheap = choose(given, cost=np.array([1.0, 100.0]))[0]
  assert cheap.curve == 0
  assert choose(given, cost=np.array([100.0, 1.0]))[0].curve == 1


def test_next_is_wanted_and_a_candidate():
  given = surface(0, 3, 7, 10)
  wanted = np.array([False, True])
  is_second = np.arange(14) >= 7
  (choice,) = choose(given, wanted_Q=wanted, candidates=is_second)
  assert choice.curve == choice.about == 1
  assert choose(given, candidates=np.zeros(14, bool)) == []


def test_count():
  """No cell twice, and each choice takes those before it as trained: the arms share the runs."""
  chosen = choose(surface(0, 3, 7, 10), count=4)
  assert len({(choice.curve, choice.rate) for choice in chosen}) == 4
  assert {choice.curve for choice in chosen} == {0, 1}


def test_known_critical_rates():
  """If all are as narrow as asked, runs are chosen for LR sensitivity."""
  for choice in choose(surface(0, 3, 6, 7, 10, 13), width=9.0):
    assert choice.about is None and np.isnan(choice.width)
  now = next_cells.posterior(surface(*range(14)), CURVES)
  assert next_cells.is_known(now, 0.25)
  assert not next_cells.is_known(now, 1e-4)
  assert next_cells.is_known(now, 1e-4, np.zeros(2, bool))


def test_first_runs():
  """Without any run: every second learning rate of the smallest size, inside the grid."""
  curves = Curves(
      np.array([0, 0]),
      np.array([4.0, 5.0]),
      np.full(2, INITIAL),
      np.array([-3.5, *RATES, 0.5]),
      np.array([[False, *[True] * 7, False]] * 2),
  )
  empty = loss_surface.fit(curves.cells[:0], np.zeros(0))
  chosen = choose(empty, 99, curves=curves)
  assert [(each.curve, each.rate) for each in chosen] == [(0, 1), (0, 3), (0, 5), (0, 7)]
  assert len(choose(empty, 2, curves=curves)) == 2


def flat(*cells):
  """The posterior given these cells, in which nothing is unstable."""
  loss = np.log(np.tile(np.linspace(2.1, 2.0, 7), 2))
  which = list(cells)
  return loss_surface.LossSurface(COVARIANCE, CURVES.cells[which], loss[which], mean=0.75)


def test_critical_rates_above_the_grid_are_not_known():
  """The run at the end of each curve is next, once; then others are, for LR sensitivity."""
  now = next_cells.posterior(flat(*range(14)), CURVES)
  assert list(now.censored_K) == [1, 1] and np.isposinf(now.critical_3xQ[0]).all()
  assert np.isinf(now.widths_Q).all() and not next_cells.is_known(now, 9.0)
  *ends, last = choose(flat(*range(14)), count=3)
  assert {(each.curve, each.rate, each.about) for each in ends} == {(0, 6, 0), (1, 6, 1)}
  assert np.isinf(ends[0].width) and last.about is None


def test_critical_rates_below_the_grid_are_not_known():
  loss = np.log(np.full(14, INITIAL + 1))
  nothing = loss_surface.LossSurface(COVARIANCE, CURVES.cells, loss, mean=1.8)
  now = next_cells.posterior(nothing, CURVES)
  assert list(now.censored_K) == [-1, -1] and np.isinf(now.widths_Q).all()
  (choice,) = choose(nothing)
  assert choice.rate == 0


def test_curve_with_one_rate_has_no_sensitivity():
  """It is 0 in every draw: a run says nothing of it, and the choice is by worth."""
  one = dataclasses.replace(CURVES, in_window_KxL=np.array([[True] * 7, [False] * 6 + [True]]))
  wanted = np.array([True, False])
  (choice,) = choose(surface(0, 3, 7, 10), curves=one, wanted_Q=wanted)
  (same,) = choose(surface(0, 3, 7, 10), wanted_Q=wanted)
  assert choice == same and choice.about == 0


def test_target():
  """It has an interval only where two sizes have a critical rate within the grid."""
  sizes = np.array([4.0, 4.5, 5.0] * 2)
  arms = np.repeat([0, 1], 3)
  curves = Curves(arms, sizes, np.full(6, INITIAL), RATES, np.ones((6, 7), bool))
  loss = np.concatenate([np.tile(STABLE, 3), np.tile(np.linspace(2.1, 2.0, 7), 3)])
  given = loss_surface.LossSurface(COVARIANCE, curves.cells, np.log(loss), mean=0.75)
  now = next_cells.posterior(given, curves, target=6.0)
  assert now.log_critical_DxQ.shape[1] == 2 and list(now.wanted_K) == [0, 0, 0, 1, 1, 1]
  assert list(now.censored_K) == [0, 0, 0, 1, 1, 1]
  low, middle, high = now.critical_3xQ[:, 0]
  assert low < middle < high and 0.2 < now.widths_Q[0] < 1.5
  assert np.isnan(now.critical_3xQ[:, 1]).all() and np.isinf(now.widths_Q[1])
  assert next_cells.is_known(now, 2.0, np.array([True, False]))
  assert not next_cells.is_known(now, 2.0)
  (choice,) = choose(given, curves=curves, cost=np.ones(6), width=2.0, target=6.0)
  assert (choice.about, choice.rate) == (1, 6) and choice.curve >= 3
