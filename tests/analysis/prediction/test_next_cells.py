"""Which cells are next: critical rates of draws, and what a choice depends on."""

import dataclasses

import numpy as np
import pytest

from stability.analysis import instability
from stability.analysis.prediction import loss_surface, next_cells, power_law
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


def surface(*cells: int) -> loss_surface.Surface:
  """The posterior given these cells, each of STABLE in either arm."""
  loss = np.log(np.tile(STABLE, 2))
  which = list(cells)
  return loss_surface.Surface(COVARIANCE, CURVES.cells[which], loss[which], mean=0.9)


def choose(given, count=1, *, curves=CURVES, cost=COST, width=0.25, candidates=None, **options):
  now = next_cells.known(given, curves, options.get('target'))
  candidates = np.ones(len(curves.cells), bool) if candidates is None else candidates
  return next_cells.choose(given, now, curves, cost, candidates, count, width, **options)


def test_critical_rates_and_sensitivities():
  """As of one curve at a time, if a rate above the grid is taken as half a step beyond it."""
  rng = np.random.default_rng(0)
  loss = 2 + rng.normal(0, 1, (200, 2, 7)).cumsum(axis=2) ** 2
  loss[:3] = INITIAL + 1  # no rate trains
  found = next_cells.critical_rates(loss, CURVES)
  kinds = set()
  for d in range(200):
    for k in range(2):
      counted = np.minimum(loss[d, k], INITIAL)
      rate, censored = instability.critical_rate(10**RATES, counted, INITIAL)
      kinds.add(censored)
      assert found[d, k] == pytest.approx(np.log10(rate) + (0.25 if censored == 1 else 0))
  assert kinds == {-1, 0, 1}
  in_window = dataclasses.replace(CURVES, in_window_KxL=np.arange(7) < [[3], [5]])
  for k, count in enumerate((3, 5)):
    counted = np.minimum(loss, INITIAL)[:, k, :count]
    np.testing.assert_allclose(
        next_cells.sensitivities(loss, in_window)[:, k], counted.mean(axis=1) - counted.min(axis=1)
    )


def test_next_is_where_the_critical_rate_is_uncertain():
  """The first arm is known; of the second one, all but the rates around the crossing are."""
  (choice,) = choose(surface(*range(7), 7, 8, 9, 10, 11))
  assert choice.curve == choice.about == 1 and choice.rate in (5, 6)
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
  for choice in choose(surface(0, 3, 7, 10), width=9.0):
    assert choice.about is None and np.isnan(choice.width)
  now = next_cells.known(surface(*range(14)), CURVES)
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


def test_target():
  """Critical rates on a line in log-log are continued, with the bend of a power law."""
  sizes = np.array([4.0, 5.0, 4.0, 5.0])
  curves = Curves(np.array([0, 0, 1, 1]), sizes, np.full(4, INITIAL), RATES, np.ones((4, 7), bool))
  lines = np.tile([-1.0, -1.5, -2.0, -2.1], (4000, 1))
  found = next_cells.extrapolated(lines, curves, 7.0)
  np.testing.assert_allclose(found.mean(axis=0), [-2.5, -2.3], atol=0.01)
  np.testing.assert_allclose(found.std(axis=0), power_law.BEND * 2**2 / 2, rtol=0.05)
  np.testing.assert_allclose(next_cells.extrapolated(lines, curves, 4.5), [[-1.25, -2.05]] * 4000)
