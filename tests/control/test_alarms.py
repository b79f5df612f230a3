"""The monitor that raises alarms, in this package's runs and in any training loop."""

import decimal
import inspect
import json
import math
import pickle
import re
import time
import tracemalloc

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
    probability=0.98,
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


@pytest.mark.parametrize('given', ['attention_logit', ['attention_logit'], LOGIT_RULE])
def test_rules_by_name(given):
  monitor = Monitor(given)
  assert list(monitor.lacking) == ['attention_logit']
  assert raised(monitor, LIMIT + 1) == [(10, LIMIT)]


@pytest.mark.parametrize('given', ['spike', ['loss_spike', 'spike'], [3], 3])
def test_unknown_rules_are_refused(given):
  with pytest.raises(BadInput, match=r"^rules: ('spike'|3): is no rule; rules are non_finite, "):
    Monitor(given)


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


@pytest.mark.parametrize('first', [0, 1, 7])
@pytest.mark.parametrize('interval', [1, 3, 50])
def test_quiet_run_raises_nothing_at_any_interval(first, interval):
  """A pretrained model: its residual stream is large, and its loss and logits only scatter."""
  random, monitor = np.random.default_rng(0), Monitor()
  for step in range(first, first + 400 * interval, interval):
    row = {
        'step': step,
        'loss': 10.8 * (1 + 0.01 * random.standard_normal()),
        'block_0/attention_logit_max': 3 + random.random(),
        'block_0/output_rms': 50 + random.random(),
        'log_z': 11 + random.random(),
    }
    assert monitor.observe(row) == []
  assert set(monitor.lacking) == {'gradient_under_eps', 'update_collapse'}


def test_lacking():
  """Each rule says what it needs until a row has it."""
  monitor = Monitor()
  assert monitor.lacking == {rule.name: rule.needs for rule in rules.RULES}
  assert monitor.lacking['loss_spike'] == 'loss in 9 rows'
  for step in range(9):
    monitor.observe({'step': step, 'loss': 3.0 - step / 10})
  monitor.observe({'step': 20, 'block_1/attention_logit_max': 1e3, 'block_1/output_rms': 2.0})
  assert set(monitor.lacking) == {
      *('attention_logit_course', 'residual_growth', 'log_z_drift'),
      *('gradient_under_eps', 'update_collapse'),
  }


def _bytes_kept(rows):
  """The memory that a monitor holds after so many rows."""
  tracemalloc.start()
  monitor = Monitor()
  for step in range(rows):
    row = {'step': step, 'loss': 3 + math.sin(step), 'block_0/attention_logit_max': 2.0 + step % 7}
    monitor.observe(row | ({'update_rms/a': 1.0, 'log_z': 1.0} if step % 10 == 0 else {}))
  kept, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  return kept


def test_memory_does_not_grow():
  _bytes_kept(100)  # fills the interpreter's own caches
  assert _bytes_kept(10_000) < _bytes_kept(1_000) + 500


@pytest.mark.slow
def test_a_million_rows():
  """In bounded memory, and in less time than any training step takes."""
  start = time.process_time()
  monitor = Monitor()
  for step in range(1_000_000):
    monitor.observe({'step': step, 'loss': 3 + math.sin(step), 'block_0/attention_logit_max': 2.0})
  assert time.process_time() - start < 400  # 0.4 ms a row; 0.07 ms on an idle core
  assert len(pickle.dumps(monitor._history)) < 1_000


def test_numpy_values():
  monitor = Monitor([LOGIT_RULE])
  row = {'step': np.int32(3), 'block_0/attention_logit_max': np.float32(600)}
  (alarm,) = monitor.observe(row)
  assert alarm.value == 600


class Tensor:
  """A number with `item`, as in other libraries."""

  def __init__(self, *values):
    self.values = values

  def item(self):
    if len(self.values) > 1:
      raise RuntimeError('a Tensor with 2 elements cannot be converted to Scalar')
    return self.values[0]


@pytest.mark.parametrize(
    'make', [int, float, np.int64, np.float64, np.array, Tensor, decimal.Decimal]
)
def test_kinds_of_numbers(make):
  monitor = Monitor([LOGIT_RULE])
  row = {'step': make(3), 'loss': make(2), 'block_0/attention_logit_max': make(600)}
  (alarm,) = monitor.observe(row)
  assert (type(alarm.step), alarm.step, type(alarm.value), alarm.value) == (int, 3, float, 600)


class NoRepr:
  def __repr__(self):
    raise ValueError('the tensor was deleted')


GOOD_ROW = {'step': 10, 'loss': 2.0}


@pytest.mark.parametrize(
    ('row', 'words'),
    [
        ({'loss': 2.0}, 'step is missing'),
        ({'step': None}, 'step=None: must be a whole number, 0 or more'),
        ({'step': 10.5}, 'step=10.5: must be a whole number'),
        ({'step': math.nan}, 'step=nan: must be a whole number'),
        ({'step': math.inf}, 'step=inf: must be a whole number'),
        ({'step': -1}, 'step=-1: must be a whole number'),
        ({'step': '11'}, "step='11': must be a number"),
        ({'step': 9}, 'step=9: must not be below the step of the last row, 10; after a return'),
        ({'step': 11, 'loss': '2.0'}, "loss='2.0': must be a number or None"),
        ({'step': 11, 'phase': 'train'}, "phase='train': must be a number or None"),
        ({'step': 11, 'loss': 1 + 2j}, 'must be a number or None'),
        ({'step': 11, 'loss': np.ones(2)}, 'must be a number or None'),
        ({'step': 11, 'loss': Tensor(1, 2)}, 'must be a number or None'),
        ({'step': 11, 3: 2.0}, 'the name 3: must be a string'),
        ({'step': 11, 'loss': NoRepr()}, 'loss=(a NoRepr): must be a number or None'),
        ({'step': 11, NoRepr(): 2.0}, 'the name (a NoRepr): must be a string'),
        ({'step': [11]}, 'step=[11]: must be a number'),
        (5, 'row: must map names to numbers, is of type int'),
    ],
)
def test_rows_refused_in_one_line(row, words):
  """The monitor stays as it was, and can be used further."""
  monitor = Monitor()
  monitor.observe(GOOD_ROW)
  with pytest.raises(BadInput, match=re.escape(words)) as error:
    monitor.observe(row)
  assert '\n' not in str(error.value) and monitor.last_row == GOOD_ROW
  assert monitor.observe({'step': 11, 'loss': 2.0}) == []


def test_rows_of_one_step():
  """A loop may log training and evaluation separately."""
  monitor = Monitor()
  for step in (0, 0, 10, 10, 10):
    assert monitor.observe({'step': step, 'block_0/attention_logit_max': 1.0}) == []


@pytest.mark.parametrize('loss', [0.0, -3.0, 1e308, 10**400, False])
def test_unusual_losses_do_not_raise(loss):
  """Losses of 0 have no scatter, huge ones overflow a sum."""
  monitor = Monitor()
  for step in range(40):
    found = monitor.observe({'step': step, 'loss': loss})
    assert [a.rule for a in found] == (['non_finite'] if loss == 10**400 and not step else [])
  monitor.observe({'step': 40, 'loss': 1.0})


@pytest.mark.parametrize('value', [0.0, -1.0, 1e-300, 1e300])
def test_unusual_probes_do_not_raise(value):
  names = ('block_0/attention_logit_max', 'block_0/output_rms', 'update_rms/a', 'log_z')
  for other in (0.0, -1.0, 1e-300, 1e300):
    monitor = Monitor()
    for step in range(6):
      row = dict.fromkeys([*names, 'gradient_over_eps/a'], value if step % 2 else other)
      for alarm in monitor.observe({'step': step, **row}):
        assert alarm.value > alarm.limit and alarm.message


def test_diverged_loss():
  for value in (None, math.nan, math.inf):
    alarms = Monitor().observe({'step': 5, 'loss': value})
    assert [alarm.rule for alarm in alarms] == ['non_finite']
    assert alarms[0].message == 'values that are not finite: 1 (loss)'
  row = dict.fromkeys('abcd', math.nan)
  (alarm,) = Monitor().observe({'step': 5, 'loss': 2.0, **row})
  assert alarm.message == 'values that are not finite: 4 (a, b, c, ...)'


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
  assert math.isnan(alarm.probability) and alarm.suggestions == ()


@pytest.mark.parametrize(
    'change',
    [{'step': 'x'}, {'seen': None}, {'sure': 'high'}, {'suggested': [3]}, {'suggested': [{}]}],
)
def test_damaged_alarm_is_refused(tmp_path, change):
  files.write_lines(tmp_path / 'alarms.jsonl', [ALARM.to_json(), ALARM.to_json() | change])
  with pytest.raises(BadInput, match=r'alarms.jsonl, line 2: damaged: '):
    read_alarms(tmp_path)
