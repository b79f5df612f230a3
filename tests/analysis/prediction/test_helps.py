"""Which arm helps: only one whose critical rate is higher beyond doubt."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth

from stability.analysis.prediction import helps, observations, surface

SIZES = tuple(9216 * 4**i for i in range(5))  # 9.2K to 2.4M


def law(at_10k=0.4, power=-0.25):
  return lambda parameters: at_10k * (parameters / 1e4) ** power


def bowls(seed, critical, name, **options):
  """An arm with a law of critical rates; the argument is a generator or its seed."""
  rng = np.random.default_rng(seed)
  options = {'sizes': SIZES, 'noise': 0.002} | options
  return known_truth.bowls(rng, critical, fields={'model.qk_norm': name}, **options)


def found(*arms, **results_options):
  """The pairs of a sweep of several arms."""
  runs = pd.concat([results.runs for results, _ in arms], ignore_index=True)
  results = dataclasses.replace(arms[0][0], runs=runs, **results_options)
  by_arm = observations.by_arm(results, pd.concat([curves for _, curves in arms]))
  return helps.helps(results, by_arm, surface.fit_arms(by_arm))


def test_helps():
  of_none, of_some = found(
      bowls(0, law(0.1), 'none'),
      bowls(1, law(0.15), 'l2', sizes=SIZES[:3]),
      bowls(2, law(0.4), 'layernorm', sizes=SIZES[:4]),
  )
  assert (of_none.arm, of_none.helper) == (('none',), ('layernorm',))
  assert of_none.parameters == SIZES[3]  # the largest size of both
  assert of_none.factor == pytest.approx(4, rel=0.15) and not of_none.at_least
  assert of_some.parameters == SIZES[2] and of_some.factor == pytest.approx(8 / 3, rel=0.15)


@pytest.mark.parametrize('seed', [1, 7])
def test_equal_arms_do_not_help_each_other(seed, monkeypatch):
  """Noise alone makes the measured rates of some differ by more than the least factor."""
  rng = np.random.default_rng(seed)
  arms = [bowls(rng, law(0.3), name, noise=0.02) for name in ('a', 'b', 'c', 'd')]
  assert found(*arms) == []
  monkeypatch.setattr(helps, '_chance', lambda *_: 0.0)
  assert found(*arms)


def test_helper_without_unstable_runs_helps_at_least_so_much():
  (pair,) = found(
      bowls(0, law(0.1, 0.0), 'none', noise=0.0), bowls(1, law(50.0), 'layernorm', headroom=3.0)
  )
  assert pair.at_least and pair.factor == pytest.approx(10, rel=0.1)


def test_headroom_is_compared_where_learning_rates_are_not_comparable():
  arms = [bowls(0, law(), 'none', headroom=0.8), bowls(1, law(), 'l2', headroom=1.6)]
  (pair,) = found(*arms, not_comparable='model.qk_norm')
  assert pair.of_headroom and pair.helper == ('l2',)
  assert pair.factor == pytest.approx(10**0.8, rel=0.3)


def test_headroom_below_a_best_rate_above_the_grid_is_unknown():
  arms = [bowls(0, law(0.05), 'none', headroom=0.1), bowls(1, law(30.0), 'l2', headroom=0.3)]
  assert found(*arms)
  assert found(*arms, not_comparable='model.qk_norm') == []
