"""The statistics of curves whose true answers are known: valleys that end at a cliff."""

import numpy as np
import pytest

from stability.analysis.leaderboard import curve

RATES = np.array([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0])
LOGS = np.log10(RATES)
INITIAL = 6.0


def statistics(losses, rates=RATES, **options):
  return curve.statistics(np.asarray(rates), np.asarray(losses, float), INITIAL, **options)


def valley(slope=0.2, best_rate=1e-2, cliff=np.inf, best=2.0, rates=RATES):
  """Rises by `slope` per decade on both sides, and to the initial loss from `cliff` on."""
  losses = best + slope * abs(np.log10(np.asarray(rates) / best_rate))
  return np.where(np.asarray(rates) >= cliff, INITIAL, losses)


def test_straight_valley():
  """Interpolation in the logarithm of the rate is exact, whatever the grid."""
  found = statistics(valley())
  values = found.values
  assert values['best_loss'] == 2.0
  # The middle of the grid's two unequal neighbours: 3e-3 and 3e-2 are not the same factor away.
  assert np.log10(values['best_learning_rate']) == pytest.approx(-2, abs=0.03)
  for name, excess in (('width_02', 0.02), ('width_05', 0.05), ('width_10', 0.1)):
    assert values[name] == pytest.approx(2 * excess / 0.2)
  # 5 % of 6 - 2 is 0.2, one decade from the optimum.
  assert values['critical_learning_rate'] == pytest.approx(1e-1)
  assert values['headroom'] == pytest.approx(1e-1 / values['best_learning_rate'])
  log_best = np.log10(values['best_learning_rate'])
  assert values['loss_at_3x'] == pytest.approx(2 + 0.2 * (log_best + np.log10(3) + 2))
  assert values['loss_at_10x'] == pytest.approx(2 + 0.2 * (log_best + 1 + 2))
  assert found.censored == {} and found.edge == curve.EXACT
  assert np.isnan(values['regret'])


def test_lr_sensitivity_is_over_three_decades():
  losses = valley()
  losses[[0, -1]] = 5.9  # outside of 3e-4 to 3e-1
  values = statistics(losses).values
  assert values['lr_sensitivity'] == pytest.approx(losses[1:-1].mean() - 2)


def test_cliff():
  values = statistics(valley(cliff=1e-1)).values
  # From 2.095 at 3e-2 to 6 at 1e-1.
  at = np.log10(3e-2) + (0.2 - 0.2 * np.log10(3)) / (4 - 0.2 * np.log10(3)) * np.log10(10 / 3)
  assert np.log10(values['critical_learning_rate']) == pytest.approx(at)
  assert values['loss_at_10x'] > 4


def test_losses_are_held_against_the_own_best():
  """A worse arm with the same shape has the same widths."""
  good, bad = statistics(valley(best=2.0)).values, statistics(valley(best=3.0)).values
  for name in ('width_02', 'width_10', 'best_learning_rate', 'lr_sensitivity'):
    assert good[name] == pytest.approx(bad[name])
  # Its margin is 5 % of what it learned, 0.15.
  assert bad['critical_learning_rate'] == pytest.approx(10**-1.25)


def test_censored_where_the_grid_ends():
  found = statistics(valley(slope=0.03))
  assert found.values['width_10'] == pytest.approx(4.0)  # the whole grid
  assert found.values['width_05'] == pytest.approx(2 * 0.05 / 0.03)
  assert found.values['critical_learning_rate'] == 1.0
  assert found.censored == {
      'width_10': curve.ABOVE,
      'critical_learning_rate': curve.ABOVE,
      'headroom': curve.ABOVE,
  }
  short = statistics(valley(rates=RATES[2:7]), rates=RATES[2:7])
  assert np.isnan(short.values['lr_sensitivity'])


def test_loss_between_and_outside_of_the_rates():
  logs, losses = np.array([-3.0, -2.0, -1.0]), np.array([2.0, 1.0, 5.0])
  assert curve.at(logs, losses, -2.25) == pytest.approx(1.25)
  assert [curve.at(logs, losses, log) for log in (-3, -1)] == [2, 5]  # the ends belong to the grid
  assert np.isnan([curve.at(logs, losses, log) for log in (-3.01, -0.99)]).all()


def test_optimum_at_an_end():
  low = statistics(valley(best_rate=1e-5))
  assert low.edge == curve.BELOW and low.censored['best_learning_rate'] == curve.BELOW
  high = statistics(valley(best_rate=10.0))
  assert high.edge == curve.ABOVE and high.censored['best_learning_rate'] == curve.ABOVE
  for found in (low, high):
    assert found.censored['best_loss'] == curve.BELOW
    for name in set(curve.COLUMNS) - {'best_loss', 'best_learning_rate'}:
      assert np.isnan(found.values[name]), name


def test_nothing_learned_and_nothing_run():
  flat = statistics(np.full(9, INITIAL))
  assert flat.values['best_loss'] == INITIAL and np.isnan(flat.values['headroom'])
  assert flat.edge == curve.BELOW  # lower rates may learn something
  none = statistics(np.full(9, np.nan))
  assert np.isnan(list(none.values.values())).all()


def test_regret():
  found = statistics(valley(), reference_rate=1e-1)
  assert found.values['regret'] == pytest.approx(0.2)
  own = statistics(valley(cliff=3e-2), reference_rate=found.grid_rate)
  assert own.values['regret'] == 0
  assert np.isnan(statistics(valley(), reference_rate=10.0).values['regret'])


def test_missing_rates_are_left_out():
  losses = valley()
  losses[5] = np.nan
  assert statistics(losses).values['width_10'] == pytest.approx(1.0)


def test_headroom_is_at_least_1():
  """The vertex between steep neighbours lies above the crossing of the margin."""
  losses = np.array([6, 6, 6, 5.9, 2.0, 3.0, 6, 6, 6])
  assert statistics(losses).values['headroom'] == 1.0
