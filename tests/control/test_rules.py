"""The measures of instability on hand-written rows, and the rules after a rescue."""

import math

import pytest

from stability.control import rules

LOSSES = [3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.3]


def history(*rows):
  """A history of rows ten steps apart; a number is a row with this loss alone."""
  found = rules.History()
  for number, row in enumerate(rows, 1):
    found.add({'step': 10 * number} | ({'loss': row} if isinstance(row, float) else row))
  return found


def probed(**values):
  return {'loss': 2.0, 'log_z': 0.0} | values


def logit(value):
  return {'block_0/attention_logit_max': value}


def test_non_finite():
  row = {'loss': None, 'gradient_norm': math.nan, 'learning_rate': math.inf}
  assert rules.non_finite(history(row)) == 3
  assert rules.non_finite(history(2.0)) == 0


def test_loss_spike():
  # The median of LOSSES is 2.65; the median distance from it is 0.2.
  assert rules.loss_spike(history(*LOSSES, 4.0)) == pytest.approx(1.35 / (1.4826 * 0.2))
  assert rules.loss_spike(history(*LOSSES, 1.0)) < 0


def test_loss_spike_needs_losses():
  assert math.isnan(rules.loss_spike(history(*LOSSES[1:], 9.0)))


def test_loss_spike_exceeds_noise():
  assert rules.loss_spike(history(*[2.0] * 8, 2.1)) == pytest.approx(0.1 / (0.02 * 2))


def test_loss_above_past():
  # The loss, smoothed over three, falls from 4 to 1 nats and rises to 2.5.
  rows = [4.0, 3.0, 1.0, 1.0, 1.0, 2.5, 2.5, 2.5]
  assert rules.loss_above_past(history(*rows)) == pytest.approx(1.5 / 3)
  assert rules.loss_above_past(history(*rows[:5])) <= 0


def test_loss_above_past_without_decrease():
  assert rules.loss_above_past(history(1.0, 1.0, 2.0, 3.0)) == 0


def test_loss_above_past_is_not_noise():
  """A decrease of 0.1 of 10 nats is scatter, and counts as 2 nats."""
  rows = [10.0, 9.9, 9.9, 9.9, 10.0, 10.0, 10.0]
  assert rules.loss_above_past(history(*rows)) == pytest.approx(0.1 / 2)


def test_lowest_loss_is_kept():
  rows = [4.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0]
  assert rules.loss_above_past(history(*rows)) == pytest.approx(1 / 3)


def test_attention_logit_over_blocks():
  row = {'block_0/attention_logit_max': 5.0, 'block_10/attention_logit_max': 7.0}
  assert rules.attention_logit(history(row)) == 7
  assert math.isnan(rules.attention_logit(history(2.0)))


def test_attention_logit_course_is_a_power_law():
  rows = [logit(float(n**2)) for n in (1, 2, 3)]
  assert rules.attention_logit_course(history(*rows)) == pytest.approx(36)
  assert math.isnan(rules.attention_logit_course(history(*rows[:2])))
  assert math.isnan(rules.attention_logit_course(history(*rows, 2.0)))  # between probes


def test_attention_logit_course_at_changing_intervals():
  found = rules.History()
  for step in (5, 40, 50, 300):
    found.add({'step': step} | logit(step**1.5))
  assert rules.attention_logit_course(found) == pytest.approx(600**1.5)


@pytest.mark.parametrize('steps', [(0, 10, 20), (10, 10, 10)])
def test_attention_logit_course_needs_distinct_steps(steps):
  found = rules.History()
  for step in steps:
    found.add({'step': step} | logit(2.0))
  assert math.isnan(rules.attention_logit_course(found))


def test_residual_growth_is_per_step():
  row = {'block_0/output_rms': 3.0, 'block_1/output_rms': 40.0}
  assert rules.residual_growth(history(2.0, row)) == 2.0


def test_attention_logits_of_adjacent_steps_are_no_trend():
  found = rules.History()
  for step in (100, 101, 102, 103, 104, 105):
    found.add({'step': step} | logit(float(step)))
  assert list(found.logits) == [(100, 100.0), (102, 102.0), (105, 105.0)]
  assert rules.attention_logit_course(found) == pytest.approx(210)
  found.add({'step': 106} | logit(1e4))
  assert math.isnan(rules.attention_logit_course(found))


def test_attention_logits_in_a_row_for_each_block():
  found = rules.History()
  for step in (10, 20, 30):
    for block in (1, 0, 2):
      found.add({'step': step, f'block_{block}/attention_logit_max': step * (1.0 + block)})
  assert list(found.logits) == [(10, 30.0), (20, 60.0), (30, 90.0)]
  assert rules.attention_logit_course(found) == pytest.approx(180)


@pytest.mark.parametrize(('first', 'growth'), [(0, 2.0), (1, 2.0), (2, 7.0)])
def test_residual_growth_from_the_model_before_training(first, growth):
  found = rules.History()
  found.add({'step': first, 'block_0/output_rms': 50.0, 'block_1/output_rms': 10.0})
  found.add({'step': 10, 'block_0/output_rms': 70.0})
  assert rules.residual_growth(found) == growth


def test_residual_growth_at_step_0():
  found = rules.History()
  found.add({'step': 0, 'block_0/output_rms': 3.0})
  assert math.isnan(rules.residual_growth(found))


@pytest.mark.parametrize('log_z', [6.0, -4.0])
def test_log_z_drift_in_both_directions(log_z):
  assert rules.log_z_drift(history(probed(log_z=1.0), probed(log_z=log_z))) == 5


@pytest.mark.parametrize('first', [math.inf, math.nan, None])
def test_log_z_drift_from_the_first_finite_value(first):
  rows = [probed(log_z=value) for value in (first, 1.0, 4.0)]
  assert rules.log_z_drift(history(*rows)) == 3


def test_smallest_gradient_counts():
  row = {'gradient_over_eps/a': 100.0, 'gradient_over_eps/b': 0.25}
  assert rules.gradient_under_eps(history(row)) == 4
  assert rules.gradient_under_eps(history({'gradient_over_eps/a': 0.0})) > 1e20


def test_updates_are_compared_per_parameter():
  rows = [
      {'update_rms/a': a, 'update_rms/b': b}
      for a, b in ((1.0, 0.1), (4.0, 0.1), (2.0, 0.1), (0.5, 0.1))
  ]
  assert rules.update_collapse(history(*rows)) == 8


READ = {
    'loss': {'loss': 2.0},
    'block_*/attention_logit_max': logit(5.0),
    'block_*/output_rms': {'block_0/output_rms': 1.0},
    'log_z': {'log_z': 1.0},
    'gradient_over_eps/*': {'gradient_over_eps/a': 5.0},
    'update_rms/*': {'update_rms/a': 1.0},
}


@pytest.mark.parametrize('rule', rules.RULES[1:], ids=lambda rule: rule.name)
def test_rule_reads_what_it_says(rule):
  """With these values alone a measure applies, and with all others it does not."""
  others = {k: v for name, row in READ.items() if name != rule.reads for k, v in row.items()}
  for row, applies in ((READ[rule.reads], True), (others, False)):
    falling = [{key: value * (2 - n / 10) for key, value in row.items()} for n in range(9)]
    assert math.isnan(rule.measure(history(*falling))) != applies


@pytest.mark.parametrize('rule', rules.RULES[1:], ids=lambda rule: rule.name)
def test_rule_needs_as_many_rows_as_it_says(rule):
  for rows, applies in ((rule.rows, True), (rule.rows - 1, False)):
    falling = [{key: v * (2 - n / 10) for key, v in READ[rule.reads].items()} for n in range(rows)]
    assert math.isnan(rule.measure(history({}, *falling))) != applies


def test_history_is_of_fixed_size():
  found = history(*[probed(**logit(5.0), **{'update_rms/a': 1.0})] * 100)
  assert (len(found.losses), len(found.logits), len(found.largest_updates)) == (20, 3, 1)


def test_only_attention_logit_changes_after_a_rescue():
  pairs = list(zip(rules.rules_for(False), rules.rules_for(True), strict=True))
  assert [before.name for before, after in pairs if before != after] == ['attention_logit']
  before, after = pairs[3]
  assert after.limit < before.limit
