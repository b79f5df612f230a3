"""The monitor that raises alarms, in this package's runs and in any training loop."""

import inspect
import json
import math

import numpy as np
import pytest

from stability.control import rules
from stability.control.actions import Action
from stability.control.alarms import Alarm, Monitor, read_alarms
from stability.errors import BadInput
from stability.storage import files

(LOGIT_RULE,) = (rule for rule in rules.RULES if rule.name == 'attention_logit')
LIMIT = LOGIT_RULE.limit
ALARM = Alarm(
    step=60,
    rule='attention_logit',
    value=412.0,
    limit=300,
    message='the highest attention logit is 412; limit 300',
    precision=0.98,
    actions=1,
    suggestions=(Action('set', changes={'optimizer.eps': 1e-9}),),
)


def raised(monitor, *logits):
  """(step, limit) of the alarms that attention logits raise, ten steps apart."""
  found = []
  for number, value in enumerate(logits, 1):
    row = {'step': 10 * number, 'loss': 2.0, 'block_0/attention_logit_max': value}
    for alarm in monitor.observe(row):
      assert alarm.rule == 'attention_logit' and f'{value:,.0f}' in alarm.message
      found.append((alarm.step, alarm.limit))
  return found


def test_rule_fires_once_above_its_limit():
  monitor = Monitor([LOGIT_RULE])
  assert raised(monitor, 10.0, LIMIT, LIMIT + 1, LIMIT + 2) == [(30, LIMIT)]


def test_rearm():
  monitor = Monitor([LOGIT_RULE])
  raised(monitor, LIMIT + 1)
  monitor.rearm()
  assert raised(monitor, LIMIT + 1) == [(10, LIMIT)]


def test_restored_monitor_knows_rows_and_alarms():
  rows = [{'step': step, 'loss': 2.0, 'log_z': 0.0} for step in range(10)]
  one, other = Monitor(), Monitor()
  for row in rows:
    one.observe(row)
  other.restore(rows, fired=['log_z_drift'])
  last = {'step': 10, 'loss': 9.0, 'log_z': 9.0}
  assert {alarm.rule for alarm in one.observe(last)} == {'loss_spike', 'log_z_drift'}
  assert {alarm.rule for alarm in other.observe(last)} == {'loss_spike'}
  assert other.last_row == last


def test_rescued_runs_have_a_lower_limit():
  lower = rules.AFTER_RESCUE['attention_logit']['limit']
  for rescued, expected in ((True, [(20, lower)]), (False, [])):
    assert raised(Monitor(rules.rules_for(rescued)), lower, lower + 1) == expected


# Rows of other training loops.


def test_first_row_at_step_0():
  row = {'step': 0, 'loss': 5.5, 'block_0/output_rms': 1.0, 'block_0/attention_logit_max': 1.0}
  assert Monitor().observe(row) == []


@pytest.mark.parametrize('present', ['loss', 'log_z', 'update_rms/a', 'block_0/output_rms', ''])
def test_missing_probes(present):
  """A row may have any of the probes; a loss below the limits raises nothing."""
  monitor = Monitor()
  for step in range(50):
    row = {'step': step, 'gradient_over_eps/a': 10.0} | ({present: 1.0} if present else {})
    assert monitor.observe(row) == []


def test_changing_intervals():
  monitor = Monitor()
  for step in (0, 1, 2, 3, 10, 100, 101, 150, 2_000, 2_001):
    row = {'step': step, 'loss': 3.0} | ({'log_z': 1.0} if step % 3 else {})
    assert monitor.observe(row) == []
  (alarm,) = monitor.observe({'step': 2_500, 'loss': 8.0})
  assert (alarm.rule, alarm.step) == ('loss_spike', 2_500)


def test_numpy_values():
  monitor = Monitor([LOGIT_RULE])
  row = {'step': np.int32(3), 'block_0/attention_logit_max': np.float32(400)}
  (alarm,) = monitor.observe(row)
  assert alarm.value == 400


def test_diverged_loss():
  for value in (None, math.nan, math.inf):
    alarms = Monitor().observe({'step': 5, 'loss': value})
    assert [alarm.rule for alarm in alarms] == ['non_finite']


def test_documentation_names_every_rule_and_what_it_reads():
  text = inspect.getdoc(Monitor)
  for rule in rules.RULES[1:]:
    assert rule.name in text and rule.reads in text


# Files.


def test_json_keys(tmp_path):
  assert ALARM.to_json() == {
      'step': 60,
      'rule': 'attention_logit',
      'value': 412.0,
      'limit': 300,
      'seen': 'the highest attention logit is 412; limit 300',
      'sure': 0.98,
      'actions': 1,
      'suggested': [{'action': 'set', 'changes': {'optimizer.eps': 1e-9}}],
  }
  assert Alarm.from_json(json.loads(json.dumps(ALARM.to_json()))) == ALARM


def test_shortest_alarm_is_read():
  alarm = Alarm.from_json({'step': 3, 'rule': 'x', 'seen': 'y', 'actions': 0})
  assert math.isnan(alarm.precision) and alarm.suggestions == ()


@pytest.mark.parametrize(
    'change',
    [{'step': 'x'}, {'seen': None}, {'sure': 'high'}, {'suggested': [3]}, {'suggested': [{}]}],
)
def test_damaged_alarm_is_refused(tmp_path, change):
  files.write_lines(tmp_path / 'alarms.jsonl', [ALARM.to_json(), ALARM.to_json() | change])
  with pytest.raises(BadInput, match=r'alarms.jsonl, line 2: damaged: '):
    read_alarms(tmp_path)
