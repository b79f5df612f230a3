"""Each alarm's measure, on rows made by hand, and what the policy would do."""

import math

import pytest

from configs import base
from stability import config as config_lib
from stability.control import alarms, run_control

LOSSES = [3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.3]


def history(*rows):
  """Of rows ten steps apart; a number is a loss."""
  found = alarms.History()
  for number, row in enumerate(rows, 1):
    found.add({'step': 10 * number} | ({'loss': row} if isinstance(row, float) else row))
  return found


def probed(**values):
  return {'loss': 2.0, 'log_z': 0.0} | values


def test_non_finite_counts_the_values():
  row = {'loss': None, 'gradient_norm': math.nan, 'learning_rate': math.inf}
  assert alarms.non_finite(history(row)) == 3
  assert alarms.non_finite(history(2.0)) == 0


def test_a_spike_is_told_in_robust_deviations_of_the_losses_before():
  # Their median is 2.65; the median distance to it is 0.2.
  assert alarms.loss_spike(history(*LOSSES, 4.0)) == pytest.approx(1.35 / (1.4826 * 0.2))
  assert alarms.loss_spike(history(*LOSSES, 1.0)) < 0


def test_a_spike_needs_some_losses_and_more_than_noise():
  assert math.isnan(alarms.loss_spike(history(*LOSSES[1:], 9.0)))
  assert alarms.loss_spike(history(*[2.0] * 8, 2.1)) == pytest.approx(0.1 / (0.02 * 2))


def test_loss_above_past_is_the_part_of_what_was_learned():
  # 4 nats down to 1, smoothed over three; then up to 2.5 on the mean of three.
  rows = [4.0, 3.0, 1.0, 1.0, 1.0, 2.5, 2.5, 2.5]
  assert alarms.loss_above_past(history(*rows)) == pytest.approx(1.5 / 3)
  assert alarms.loss_above_past(history(*rows[:5])) <= 0
  assert math.isnan(alarms.loss_above_past(history(1.0, 1.0, 2.0, 3.0)))  # learned nothing


def test_what_was_lowest_is_not_forgotten():
  rows = [4.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0]
  assert alarms.loss_above_past(history(*rows)) == pytest.approx(1 / 3)


def test_attention_logits_are_the_highest_of_all_blocks():
  row = probed(**{'block_0/attention_logit_max': 5.0, 'block_10/attention_logit_max': 7.0})
  assert alarms.attention_logit(history(row)) == 7
  assert math.isnan(alarms.attention_logit(history(2.0)))


def test_a_course_is_a_power_of_the_step_followed_to_twice_as_many():
  rows = [probed(**{'block_0/attention_logit_max': float(n**2)}) for n in (1, 2, 3)]
  assert alarms.attention_logit_course(history(*rows)) == pytest.approx(36)
  assert math.isnan(alarms.attention_logit_course(history(*rows[:2])))
  assert math.isnan(alarms.attention_logit_course(history(*rows, 2.0)))  # between probes


def test_residual_growth_is_per_step():
  row = probed(**{'block_0/output_rms': 3.0, 'block_1/output_rms': 40.0})
  assert alarms.residual_growth(history(2.0, row)) == 2.0


@pytest.mark.parametrize('log_z', [6.0, -4.0])
def test_log_z_drifts_either_way(log_z):
  assert alarms.log_z_drift(history(probed(log_z=1.0), probed(log_z=log_z))) == 5


def test_the_smallest_gradient_counts_against_eps():
  row = probed(**{'gradient_over_eps/a': 100.0, 'gradient_over_eps/b': 0.25})
  assert alarms.gradient_under_eps(history(row)) == 4
  assert alarms.gradient_under_eps(history(probed(**{'gradient_over_eps/a': 0.0}))) > 1e20


def test_updates_are_held_against_the_largest_of_their_parameter():
  rows = [
      probed(**{'update_rms/a': a, 'update_rms/b': b})
      for a, b in ((1.0, 0.1), (4.0, 0.1), (2.0, 0.1), (0.5, 0.1))
  ]
  assert alarms.update_collapse(history(*rows)) == 8


def test_every_rule_is_among_those_measured_here():
  assert {rule.name for rule in alarms.RULES} == {
      'non_finite',
      'loss_spike',
      'loss_above_past',
      'attention_logit',
      'attention_logit_course',
      'residual_growth',
      'log_z_drift',
      'gradient_under_eps',
      'update_collapse',
  }


def logit(value):
  return probed(**{'block_0/attention_logit_max': value})


def raised(monitor, *values):
  """(step, limit) of the alarms that attention logits raise."""
  found = []
  for number, value in enumerate(values, 1):
    for alarm in monitor.observe({'step': 10 * number} | logit(value)):
      assert alarm['rule'] == 'attention_logit' and f'{value:,.0f}' in alarm['seen']
      found.append((alarm['step'], alarm['limit']))
  return found


@pytest.fixture
def one_rule(monkeypatch):
  """Attention logits above 300, and no other alarm."""
  found = tuple(rule for rule in alarms.RULES if rule.name == 'attention_logit')
  monkeypatch.setattr(alarms, 'RULES', found)
  return found[0]


def test_a_rule_fires_once_above_its_limit_until_it_is_armed_again(one_rule):
  monitor = alarms.Monitor()
  limit = one_rule.limit
  assert raised(monitor, 10.0, limit, limit + 1, limit + 2) == [(30, limit)]
  monitor.fired.clear()
  assert raised(monitor, limit + 1) == [(10, limit)]


def test_a_rescued_run_is_held_to_a_lower_limit_by_the_one_rule_alone(one_rule):
  lower = alarms.AFTER_RESCUE['attention_logit']['limit']
  assert lower < one_rule.limit
  assert raised(alarms.Monitor(rescued=True), lower, lower + 1) == [(20, lower)]
  assert raised(alarms.Monitor(), lower, lower + 1) == []


def test_all_other_rules_stay_after_a_rescue():
  pairs = list(zip(alarms.rules(False), alarms.rules(True), strict=True))
  assert [ours.name for ours, theirs in pairs if ours != theirs] == ['attention_logit']
  assert set(alarms.AFTER_RESCUE) == {'attention_logit'}


# What may help.


def config(**fields):
  flat = config_lib.flatten(base.get_config().to_dict())
  return config_lib.unflatten(config_lib.resolve(flat | fields))


def test_a_remedy_changes_the_present_value_and_only_of_a_term_that_is_there():
  on = config(**{'model.attention_soft_cap': 30.0, 'optimizer.learning_rate': 0.3})
  changes = [s['changes'] for s in alarms.suggestions('attention_logit', on)]
  assert changes == [
      {'model.attention_soft_cap': 15.0},
      {'optimizer.learning_rate': pytest.approx(0.1)},
  ]
  off = alarms.suggestions('attention_logit', config())
  assert [list(s['changes']) for s in off] == [['optimizer.learning_rate']]


def rescue(alarm, step, saved, rate=0.3, lowest=1e-5):
  c = config(**{'optimizer.learning_rate': rate, 'schedule.min_learning_rate': lowest})
  return run_control.rescue(c, alarm, step, saved)


def test_a_rescue_goes_back_a_hundred_steps_before_the_alarm():
  found = rescue(340, 350, [100, 200, 240, 250, 300])
  assert (found['action'], found['to'], found['skip']) == ('rewind', 240, 110)
  assert found['changes'] == {'optimizer.learning_rate': pytest.approx(0.1)}


@pytest.mark.parametrize('saved', [[], [50, 100]])
def test_a_rescue_without_a_checkpoint_so_early_begins_anew(saved):
  found = rescue(140, 150, saved)
  assert (found['to'], found['skip']) == (0, 150)


def test_a_rescue_does_not_go_below_the_lowest_rate():
  assert rescue(10, 20, [], rate=0.3, lowest=0.2)['changes'] == {'optimizer.learning_rate': 0.2}
