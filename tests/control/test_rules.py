"""The measures of instability on hand-written rows, and the rules after a rescue."""

import dataclasses
import math

import numpy as np
import pytest

from stability.control import rules
from stability.control.alarms import Monitor

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


def test_what_may_be_undefined_counts_as_finite():
  names = ('critical_sharpness', 'critical_sharpness_ratio', 'effective_learning_rate/head')
  row = dict.fromkeys(names, math.nan) | {'effective_learning_rate/block_0/mlp/up': None}
  assert rules.non_finite(history(row)) == 0
  (alarm,) = Monitor().observe({'step': 1, 'loss': None, **row})
  assert alarm.message == 'values that are not finite: 1 (loss)'


def test_limits_and_odds():
  """The published recall, false alarms and probabilities rest on these numbers."""
  assert {rule.name: (rule.limit, rule.odds) for rule in rules.RULES} == {
      'non_finite': (0, 100),
      'loss_spike': (8, 1.7),
      'loss_above_past': (0.3, 7.7),
      'attention_logit': (500, 6),
      'attention_logit_course': (4000, 7.6),
      'residual_growth': (4.5, 5.2),
      'log_z_drift': (6.5, 3.1),
      'gradient_under_eps': (1, 0.51),
      'update_collapse': (12, 5.4),
  }
  assert rules.AFTER_RESCUE == {'attention_logit': {'limit': 100, 'odds': 10}}


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
  rows = [4.0, 3.0, 1.0, 1.0, 1.0, 2.5, 2.5, 2.5, 2.5]
  assert rules.loss_above_past(history(*rows)) == pytest.approx(1.5 / 3)
  assert rules.loss_above_past(history(*rows[:5])) <= 0


def test_loss_above_past_without_decrease():
  assert rules.loss_above_past(history(1.0, 1.0, 2.0, 3.0)) == 0


def test_loss_above_past_is_not_noise():
  """A decrease of 0.1 of 10 nats is scatter, and counts as 2 nats; among few losses, as 10."""
  rows = [10.0, 9.9, 9.9, 9.9, 10.0, 10.0, 10.0]
  assert rules.loss_above_past(history(*rows)) == pytest.approx(0.1 / 10)
  assert rules.loss_above_past(history(*rows, 10.0, 10.0)) == pytest.approx(0.1 / 2)


def test_loss_above_past_measures_noise():
  """Losses that go up and down by 1 scatter by 1.4826 * sqrt(2)."""
  rows = [4.0, 3.0] * 10
  found = rules.loss_above_past(history(*rows, 6.0, 6.0, 6.0))
  assert found == pytest.approx((6 - 10 / 3) / (10 * 1.4826 * math.sqrt(2)))


@pytest.mark.parametrize('noise', [0.05, 0.1, 0.2])
def test_noisy_fine_tuning_is_mostly_quiet(noise):
  alarms = 0
  for seed in range(20):
    factors = np.exp(np.random.default_rng(seed).normal(0, noise, 300))
    losses = (1.5 + 0.5 * np.exp(-np.arange(300) / 50)) * factors
    alarms += bool(raised({'step': step, 'loss': loss} for step, loss in enumerate(losses)))
  assert alarms <= 4


@pytest.mark.parametrize('noise', [0.01, 0.1])
@pytest.mark.parametrize(
    'rise',
    [
        lambda step: 0.2 * step,
        lambda step: math.exp(step / 4) / 20,
        lambda step: 4.0 * (step > 0),
        lambda step: 3.0 * min(step, 5) / 5,
    ],
    ids=['steady', 'exponential', 'jump', 'steep'],
)
def test_a_rise_is_no_noise(rise, noise):
  """Losses that were 2 nats for long rise, and raise an alarm before they are back at the first."""
  random = np.random.default_rng(0)
  rows = []
  for step in range(240):
    loss = 2 + 5 * math.exp(-step / 10) + min(rise(max(step - 200, 0)), 5)
    rows.append({'step': step, 'loss': loss * math.exp(random.normal(0, noise))})
  found = dict(raised(rows))
  assert 200 < found['loss_above_past'] < 220


def test_lowest_loss_is_kept():
  rows = [4.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0]
  assert rules.loss_above_past(history(*rows)) == pytest.approx(1 / 3)


def test_attention_logit_over_blocks():
  row = {'block_0/attention_logit_max': 5.0, 'block_10/attention_logit_max': 7.0}
  assert rules.attention_logit(history(row)) == 7
  assert math.isnan(rules.attention_logit(history(2.0)))


def at_steps(measure, key, values, rate=None):
  """The measure after rows of a key: {step: value}; with a learning rate of rate(step), if any."""
  found = rules.History()
  for step, value in values.items():
    found.add({'step': step, key: value} | ({'learning_rate': rate(step)} if rate else {}))
  return measure(found)


LOGIT, OUTPUT = 'block_0/attention_logit_max', 'block_1/output_rms'


@pytest.mark.parametrize('scale', [1, 25, 1000])
def test_growth_is_a_power_of_the_steps(scale):
  """The same at any interval and length of rows."""
  steps = [scale * step for step in (4, 10, 11, 30)]
  of_logits = at_steps(
      rules.attention_logit_course, LOGIT, {step: (step / scale) ** 1.5 for step in steps}
  )
  assert of_logits == pytest.approx(60**1.5)
  growth = at_steps(rules.residual_growth, OUTPUT, {step: step**1.5 for step in steps})
  assert growth == pytest.approx(1.5)
  drift = at_steps(rules.log_z_drift, 'log_z', {step: -2 * math.log(step) for step in steps})
  assert drift == pytest.approx(2)


def test_growth_is_over_half_an_e_fold():
  """Values that are closer differ by chance."""
  close = {100: 1.0, 110: 5.0, 164: 2.0}
  assert math.isnan(at_steps(rules.residual_growth, OUTPUT, close))
  assert at_steps(rules.residual_growth, OUTPUT, close | {165: 2.0}) == pytest.approx(
      math.log(2) / math.log(1.65)
  )


@pytest.mark.parametrize('interval', [1, 7, 40])
def test_the_value_half_an_e_fold_ago_is_kept(interval):
  values = {step: float(step**2) for step in range(interval, 4000, interval)}
  assert at_steps(rules.residual_growth, OUTPUT, values) == pytest.approx(2)


def test_time_is_the_sum_of_learning_rates():
  """Warm-up and decay do not count as growth: the residual stream grows like the sum of rates."""
  steps = range(10, 1000, 10)

  def rate(step):
    return 3e-2 * min(step / 400, 1, max(1000 - step, 0) / 200)

  total, rms, before = 0.0, {}, rate(10)
  for step in steps:
    total += 10 * (before + rate(step)) / 2
    rms[step], before = total**2, rate(step)
  for last in (100, 400, 600, 990):
    known = {step: value for step, value in rms.items() if step <= last}
    assert at_steps(rules.residual_growth, OUTPUT, known, rate) == pytest.approx(2)


def test_learning_rate_in_some_rows():
  """The last one stands for rows without, and the first one for the steps before it."""
  found = rules.History()
  for step, rate in ((10, None), (20, 0.5), (30, None), (40, 1.5)):
    found.add({'step': step} | ({} if rate is None else {'learning_rate': rate}))
  assert math.exp(found.log_time) == pytest.approx(10 * 0.5 + 10 * 0.5 + 10 * 0.5 + 10 * 1.0)


@pytest.mark.parametrize('logged', ['first', 'last', 'late'])
def test_alarms_do_not_depend_on_the_rows_of_the_learning_rate(logged):
  """The rate before or after the losses of its step, or only from step 100 on."""
  one, other = Monitor(), Monitor()
  expected, found = [], []
  for step in range(1, 200):
    values = {OUTPUT: step**5.0, 'log_z': 7 * math.log(step), LOGIT: float(step**2)}
    rows = [{'learning_rate': 1e-3}, values]
    expected += one.observe({'step': step, **rows[0], **values})
    for row in reversed(rows) if logged == 'last' or step == 1 else rows:
      if row is values or logged != 'late' or step >= 100:
        found += other.observe({'step': step, **row})
  assert [(alarm.step, alarm.rule) for alarm in found] == [(a.step, a.rule) for a in expected]
  assert len({alarm.rule for alarm in expected}) == 4


def test_first_learning_rate_may_be_zero():
  found = rules.History()
  found.add({'step': 1, 'log_z': 1.0})
  found.add({'step': 1, 'learning_rate': 0.0})
  found.add({'step': 3, 'log_z': 2.0, 'learning_rate': 1.0})
  assert math.isnan(rules.log_z_drift(found))


@pytest.mark.parametrize('steps', [(0, 10, 11), (10, 10, 10), (0,)])
def test_growth_needs_distinct_steps(steps):
  found = rules.History()
  for step in steps:
    found.add({'step': step, LOGIT: 2.0, OUTPUT: 2.0, 'log_z': 2.0})
  for measure in (rules.attention_logit_course, rules.residual_growth, rules.log_z_drift):
    assert math.isnan(measure(found))


def test_attention_logits_in_a_row_for_each_block():
  found = rules.History()
  for step in (10, 20):
    for block in (1, 0, 2):
      found.add({'step': step, f'block_{block}/attention_logit_max': step * (1.0 + block)})
  assert rules.attention_logit_course(found) == pytest.approx(120)


@pytest.mark.parametrize('log_z', [6.0, -4.0])
def test_log_z_drift_in_both_directions(log_z):
  found = history(probed(log_z=1.0), probed(log_z=log_z))
  assert rules.log_z_drift(found) == pytest.approx(5 / math.log(2))


@pytest.mark.parametrize('first', [math.inf, math.nan, None])
def test_log_z_drift_from_a_finite_value(first):
  rows = [probed(log_z=value) for value in (first, 1.0, 2.0, 4.0)]
  assert rules.log_z_drift(history(*rows)) == pytest.approx(3 / math.log(2))


def test_smallest_gradient_counts():
  row = {'gradient_over_eps/a': 100.0, 'gradient_over_eps/b': 0.25}
  assert rules.gradient_under_eps(history(row)) == 4


GRADIENT, UPDATE = 'gradient_over_eps/', 'update_rms/'


def test_zeros_before_any_other_value_are_ignored():
  """LoRA's A has no gradient while B is 0, and an unused parameter never has one."""
  row = {f'{GRADIENT}A': 0.0, f'{GRADIENT}B': 50.0, f'{UPDATE}A': 0.0, f'{UPDATE}B': 0.5}
  assert rules.gradient_under_eps(history(row)) == 1 / 50
  assert rules.update_collapse(history(row, row)) == pytest.approx(2)
  unused = {f'{GRADIENT}A': 0.0, f'{UPDATE}A': 0.0}
  for measure in (rules.gradient_under_eps, rules.update_collapse):
    assert math.isnan(measure(history(unused)))
    assert measure(history(row | {f'{GRADIENT}A': 9.0, f'{UPDATE}A': 0.5}, 2.0, row)) > 1e12


def test_a_step_without_updates_is_no_collapse():
  """As with optax.MultiSteps, which accumulates gradients."""
  row = {f'{UPDATE}A': 0.5, f'{UPDATE}B': 0.5}
  assert math.isnan(rules.update_collapse(history(row, dict.fromkeys(row, 0.0))))


@pytest.mark.parametrize('name', ['block_2/mlp/expert_{}/up', 'layers.2.mlp.experts.{}.w1'])
def test_experts_that_die_raise_no_alarm_while_others_learn(name):
  """Their gradients and updates fade before they are zero. A layer without any expert is dead."""
  first, second = name.format(0), name.format(11)
  healthy = {f'{GRADIENT}{first}': 9.0, f'{GRADIENT}{second}': 8.0, f'{GRADIENT}B': 50.0}
  healthy |= {f'{UPDATE}{first}': 0.5, f'{UPDATE}{second}': 0.5, f'{UPDATE}B': 0.5}
  for dead in (1e-9, 0.0):
    one = healthy | {f'{GRADIENT}{first}': dead, f'{UPDATE}{first}': dead}
    assert rules.gradient_under_eps(history(healthy, one)) == 1 / 8
    assert rules.update_collapse(history(healthy, one)) == pytest.approx(2)
    both = one | {f'{GRADIENT}{second}': dead, f'{UPDATE}{second}': dead}
    assert rules.gradient_under_eps(history(healthy, both)) > 1e8
    assert rules.update_collapse(history(healthy, both)) > 1e4


def test_experts_of_other_layers_are_other_parameters():
  row = {f'{GRADIENT}block_{i}/mlp/expert_{i}/up': value for i, value in enumerate((8.0, 0.25))}
  assert rules.gradient_under_eps(history(row)) == 4


def test_update_collapse_is_the_geometric_mean():
  rows = [{'update_rms/a': 1.0, 'update_rms/b': 0.5}, {'update_rms/a': 0.1, 'update_rms/b': 0.001}]
  assert rules.update_collapse(history(*rows)) == pytest.approx(100)


def test_updates_that_are_not_normalised():
  """Those of SGD are gradients, and are small from the start."""
  assert math.isnan(rules.update_collapse(history({'update_rms/a': 0.09}, {'update_rms/a': 1e-4})))


def test_update_collapse_does_not_depend_on_the_schedule():
  """A decaying learning rate leaves updates, which do not contain it, as they are."""
  updates = {'update_rms/a': 0.2, 'update_rms/b': 0.15}
  rows = [updates | {'learning_rate': 1e-2 * 0.5**n} for n in range(30)]
  assert rules.update_collapse(history(*rows)) == pytest.approx(1 / math.sqrt(0.2 * 0.15))


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
    found = rules.History()
    found.add({'step': 1})
    for n in range(rows):
      row = {key: value * (2 - n / 10) for key, value in READ[rule.reads].items()}
      found.add({'step': 2 ** (n + 1), **row})
    assert math.isnan(rule.measure(found)) != applies


def test_history_is_of_fixed_size():
  found = history(*[probed(**logit(5.0), **{OUTPUT: 1.0, 'update_rms/a': 1.0})] * 1000)
  trails = (found.logits, found.output_rms, found.log_z)
  assert len(found.nonzero) == 1
  assert len(found.losses) == 20 and all(len(trail) <= 10 for trail in trails)


def test_only_attention_logit_changes_after_a_rescue():
  pairs = list(zip(rules.rules_for(False), rules.rules_for(True), strict=True))
  assert [before.name for before, after in pairs if before != after] == ['attention_logit']
  before, after = pairs[3]
  assert after.limit < before.limit


def rows_of_a_run(steps, rows, values):
  """Rows of a run with a warm-up of 5 % and cosine decay; `values` are functions of its time.

  The time, a sum of learning rates, is from 0 to 1.
  """
  time, before = 0.0, 0.0
  for number in range(1, rows + 1):
    t = number / rows
    rate = min(t / 0.05, 1) * (1 + math.cos(math.pi * t)) / 2
    time, before = time + (before + rate) / rows, rate
    row = {key: value(time) for key, value in values.items()}
    yield {'step': steps * number // rows, 'learning_rate': 3e-2 * rate, **row}


def broken(time):
  """How far a quantity has grown, in e-folds: after half of the time, ten per e-fold of it."""
  return 10 * math.log(max(time / 0.5, 1))


COURSES = {
    'stable': lambda time: 0.0,
    'broken': broken,
}


def course(steps, kind):
  rise = COURSES[kind]
  values = {
      'loss': lambda time: 2 + 4 * math.exp(-20 * time) + min(rise(time) / 2, 2),
      'log_z': lambda time: 6 + math.log(time) / 2 - rise(time),
      LOGIT: lambda time: 5 + 30 * math.sqrt(time) * math.exp(rise(time)),
      OUTPUT: lambda time: 1 + 20 * time * math.exp(rise(time)),
      'update_rms/a': lambda time: 0.2 * math.exp(-rise(time) / 2),
      'gradient_over_eps/a': lambda time: 1e4 * math.exp(-2 * rise(time)),
  }
  return rows_of_a_run(steps, 100, values)


def raised(rows):
  """(rule, number of the row) of the alarms."""
  monitor = Monitor()
  return [
      (alarm.rule, number) for number, row in enumerate(rows) for alarm in monitor.observe(row)
  ]


@pytest.mark.parametrize('stretch', [5, 25, 1000])
def test_a_stretched_course_raises_the_same_alarms(stretch):
  assert raised(course(1000, 'stable')) == raised(course(1000 * stretch, 'stable')) == []
  found = raised(course(1000, 'broken'))
  names = {name for name, _ in found}
  assert names == {rule.name for rule in rules.RULES} - {'non_finite'}
  assert raised(course(1000 * stretch, 'broken')) == found


@pytest.mark.parametrize('steps', [10_000, 100_000])
def test_a_long_stable_run_raises_nothing(steps):
  """What moves slowly for long is far from its start in the end; losses have heavy tails."""
  random = np.random.default_rng(0)
  values = {
      'loss': lambda time: (1.5 + time**-0.2) * (1 + 0.02 * random.standard_t(5)),
      'log_z': lambda time: 6 - 1.5 * math.log(time) + 0.1 * random.standard_normal(),
      LOGIT: lambda time: 200 * time**0.5 * (1 + 0.1 * random.random()),
      OUTPUT: lambda time: 1e4 * time * (1 + 0.1 * random.random()),
      'update_rms/a': lambda time: 0.2 * (1 + 0.3 * random.random()),
      'gradient_over_eps/a': lambda time: 10 / time * random.uniform(0.5, 1),
  }
  rows = list(rows_of_a_run(steps, steps // 20, values))
  assert rows[0]['log_z'] - rows[-1]['log_z'] > 10
  assert raised(rows) == []


@pytest.mark.parametrize('rule', rules.RULES, ids=lambda rule: rule.name)
def test_probability_rises_with_the_value(rule):
  values = [max(rule.limit, 1) * factor for factor in (1.001, 1.5, 3, 100, 1e30, math.inf)]
  found = [rule.probability(value) for value in values]
  assert found == sorted(found) and len(set(found[:4])) == 4
  assert all(0.3 < p <= 1 for p in found)
  assert dataclasses.replace(rule, limit=2.0, odds=3.0).probability(2.0) == pytest.approx(0.75)
