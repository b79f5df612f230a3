"""Limits and odds of the rules, chosen on courses written by hand."""

import dataclasses
import math

import pandas as pd
import pytest

from stability.analysis import alarm_calibration
from stability.control.rules import RULES

RULE = next(rule for rule in RULES if rule.name == 'attention_logit')
OTHER = next(rule for rule in RULES if rule.name == 'update_collapse')


def courses(stable, unstable, others=None):
  """Courses of runs s0, s1 ... and u0, u1 ... that reach these values of RULE; their outcomes."""
  found, outcomes = {}, {}
  for kind, values in (('s', stable), ('u', unstable)):
    for number, value in enumerate(values):
      name = f'{kind}{number}'
      other = (others or {}).get(name)
      found[name] = {
          RULE.name: [(10, value / 2), (20, value)],
          OTHER.name: [] if other is None else [(30, other)],
      }
      outcomes[name] = kind == 'u'
  return found, outcomes


def limit_of(stable, unstable):
  rule, _ = alarm_calibration.choose(*courses(stable, unstable), (RULE, OTHER))
  return rule.limit


def test_limit_is_halfway_between_stable_and_unstable_runs():
  assert limit_of([1.0, 10.0], [5.0, 20.0, 900.0]) == pytest.approx(math.sqrt(200), rel=0.01)


@pytest.mark.parametrize('unstable', [[5.0], [5.0, 1e6]])
def test_limit_stays_near_stable_runs(unstable):
  assert limit_of([1.0, 10.0], unstable) == 15


@pytest.mark.parametrize('top', [12.344, 12.339, 123.46])
def test_no_stable_run_raises_an_alarm_because_of_rounding(top):
  limit = limit_of([top] * 20, [top * 1.0001] * 5)
  assert top <= limit <= top * 1.01 and float(f'{limit:.3g}') == limit


def test_limit_is_kept_without_values_in_stable_runs():
  chosen = alarm_calibration.choose(*courses([1.0], [2.0], {'u0': 100.0}), (RULE, OTHER))
  assert chosen[1].limit == OTHER.limit


def test_a_limit_makes_sense():
  """Gradients far above eps in all runs are no reason to say that they are below it."""
  rule = next(rule for rule in RULES if rule.name == 'gradient_under_eps')
  for top, expected in ((1e-3, 1.0), (4.0, 6.0)):
    found = {'s0': {rule.name: [(10, top)]}, 'u0': {rule.name: [(10, 50 * top)]}}
    (chosen,) = alarm_calibration.choose(found, {'s0': False, 'u0': True}, [rule])
    assert chosen.limit == expected


def test_one_of_twenty_stable_runs_is_left_aside():
  """The one that hides most unstable runs; of nineteen, none is."""
  stable, unstable = [1.0] * 18 + [100.0], [10.0] * 5
  assert limit_of(stable, unstable) == 150
  assert limit_of([1.0, *stable], unstable) == 1.5


def test_no_stable_run_is_left_aside_in_vain():
  assert limit_of([1.0] * 19 + [3.0], [10.0] * 5) == 4.5


def with_onset(outcomes, step=math.nan):
  """The outcomes as a table, with the step at which all unstable runs become unstable."""
  unstable = pd.Series(outcomes)
  return pd.DataFrame({'unstable': unstable, 'onset': unstable.map({True: step, False: math.nan})})


def test_mean_probability_of_alarms():
  """Of 3 alarms 2 are right, so 3 of 5; the one further above the limit has higher odds."""
  rule = dataclasses.replace(RULE, limit=10.0)
  found, outcomes = courses([1.0, 15.0], [18.0, 90.0, 2.0])
  (rule,) = alarm_calibration.with_odds(found, with_onset(outcomes), [rule])
  probabilities = [rule.probability(value) for value in (15, 18, 45)]
  assert sum(probabilities) / 3 == pytest.approx(3 / 5, abs=0.01)
  odds = [p / (1 - p) for p in probabilities]
  assert odds[1] == pytest.approx(1.2 * odds[0]) and odds[2] == pytest.approx(3 * odds[0])


def test_alarms_after_the_onset_do_not_count():
  """Those of the second run are raised at step 10, that of the first at 20."""
  rule = dataclasses.replace(RULE, limit=10.0)
  found, outcomes = courses([15.0], [18.0, 90.0])
  (chosen,) = alarm_calibration.with_odds(found, with_onset(outcomes, step=10), [rule])
  del found['u0'], outcomes['u0']
  assert (chosen,) == alarm_calibration.with_odds(found, with_onset(outcomes), [rule])
  late = with_onset(outcomes, step=5).drop('s0')
  assert alarm_calibration.with_odds(found, late, [rule]) == (rule,)


def test_a_rule_that_never_fires_keeps_its_odds():
  found, outcomes = courses([1.0], [2.0])
  assert alarm_calibration.with_odds(found, with_onset(outcomes), [RULE]) == (RULE,)
