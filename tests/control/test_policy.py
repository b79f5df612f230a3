"""Suggestions against alarms, and the policy's rescue."""

import pytest

from configs import base
from stability import config as config_lib
from stability.control import actions, policy, rules
from stability.control.actions import Action

(LOGIT_RULE,) = (rule for rule in rules.RULES if rule.name == 'attention_logit')
RATE = 'optimizer.learning_rate'


def config(**fields):
  flat = config_lib.flatten(base.get_config().to_dict())
  return config_lib.unflatten(config_lib.resolve(flat | fields))


def test_suggestions_change_present_values():
  on = config(**{'model.attention_soft_cap': 30.0, RATE: 0.3})
  assert policy.suggestions(LOGIT_RULE, on) == [
      Action('set', changes={'model.attention_soft_cap': 15.0}),
      Action('set', changes={RATE: pytest.approx(0.1)}),
  ]


def test_no_suggestion_for_an_absent_term():
  assert [list(s.changes) for s in policy.suggestions(LOGIT_RULE, config())] == [[RATE]]


@pytest.mark.parametrize(('rate', 'suggested'), [(3e-3, [1e-3]), (2e-3, [1e-3]), (1e-3, [])])
def test_suggested_learning_rate_is_allowed(rate, suggested):
  c = config(**{RATE: rate, 'schedule.min_learning_rate': 1e-3})
  found = policy.suggestions(LOGIT_RULE, c)
  assert [s.changes[RATE] for s in found] == pytest.approx(suggested)
  for suggestion in found:
    actions.check(suggestion, c, 10, 0)


def rescue(alarm, step, saved, rate=0.3, lowest=1e-5):
  c = config(**{RATE: rate, 'schedule.min_learning_rate': lowest})
  return policy.rescue(c, alarm, step, saved)


def test_rescue_goes_back_a_hundred_steps_before_the_alarm():
  found = rescue(340, 350, [100, 200, 240, 250, 300])
  assert (found.kind, found.to, found.skip) == ('rewind', 240, 110)
  assert found.changes == {RATE: pytest.approx(0.1)}


@pytest.mark.parametrize('saved', [[], [50, 100]])
def test_rescue_without_an_early_checkpoint_restarts(saved):
  found = rescue(140, 150, saved)
  assert (found.to, found.skip) == (0, 150)


def test_rescue_respects_the_lowest_learning_rate():
  assert rescue(10, 20, [], rate=0.3, lowest=0.2).changes == {RATE: 0.2}
