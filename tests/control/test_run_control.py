"""Which actions a RunControl returns, on files alone, without a run that trains."""

import json
import tracemalloc

import pytest

from configs import base
from stability import config as config_lib
from stability.control import limits, records, requests, rules
from stability.control.actions import Action
from stability.control.alarms import read_alarms
from stability.control.limits import Limits
from stability.control.run_control import RunControl
from stability.storage import files

RATE = 'optimizer.learning_rate'


def config(**fields):
  flat = config_lib.flatten(base.get_config().to_dict())
  return config_lib.unflatten(config_lib.resolve(flat | fields))


@pytest.fixture
def run(tmp_path):
  """The folder of a run with two requests, in this order."""
  requests.write_request(tmp_path, Action('pause'), 'ann', 'lunch')
  requests.write_request(tmp_path, Action('set', changes={RATE: 1e-3}), 'bob', '')
  return tmp_path


def opened(run, step=10, taken=0, saved=(), **fields):
  return RunControl(run, config(**fields), step, taken, lambda: list(saved))


def take_all(control, step=10):
  found = []
  while record := control.next(step, False):
    found.append(record)
  return found


def test_requests_are_taken_in_order_and_once(run):
  control = opened(run)
  assert control.has_work(10, False)
  assert [record.by for record in take_all(control)] == ['ann', 'bob']
  assert not control.has_work(10, False)
  assert requests.request_files(run) == []
  assert control.config['optimizer']['learning_rate'] == 1e-3


def test_records_have_the_run_before_the_action(run):
  control = opened(run)
  take_all(control)
  first, second = records.read_records(run)
  assert (first.why, first.before['paused']) == ('lunch', False)
  assert second.before == {
      'step': 10,
      'loss': None,
      'paused': True,
      'skipped': 0,
      'hyperparameters': control.taken[0].before['hyperparameters'],
  }


def test_pause_outlives_the_control(run):
  take_all(opened(run))
  control = opened(run, taken=2)
  assert control.is_paused and control.paused_by == 'ann'


def test_actions_after_the_checkpoint_are_taken_again(run):
  taken = take_all(opened(run))
  control = opened(run, step=6)
  assert not control.has_work(8, False) and control.next(8, False) is None
  assert [control.next(10, False) for _ in range(2)] == taken
  with pytest.raises(RuntimeError, match='an action at step 10, which has already passed'):
    opened(run, step=6).next(12, False)


@pytest.fixture
def undeletable(monkeypatch):
  """Requests that cannot be deleted, as in another user's folder."""

  def refuse(*_, **__):
    raise PermissionError

  with monkeypatch.context() as patch:
    patch.setattr('pathlib.Path.unlink', refuse)
    yield patch


def test_undeletable_requests_are_answered_once(run, undeletable):
  control = opened(run)
  assert len(take_all(control)) == 2
  assert not control.has_work(10, False)
  assert len(requests.request_files(run)) == 2 and requests.unanswered(run) == []
  control.refuse_all(20, 'the run has ended')
  assert len(records.read_records(run)) == 2
  undeletable.undo()
  requests.write_request(run, Action('continue'), 'ann', '')
  assert len(requests.unanswered(run)) == 1
  opened(run, taken=2)  # removes those answered, as after a crash between record and removal
  assert len(requests.request_files(run)) == 1


def test_second_request_is_refused_with_a_reason(run):
  for kind in ('pause', 'continue', 'continue'):
    requests.write_request(run, Action(kind), 'cid', '')
  take_all(opened(run))
  assert [record.refused for record in records.read_records(run)] == [
      *('', ''),
      'pause: the run is paused already',
      '',
      'continue: the run is not paused',
  ]


def test_refused_request_cannot_imitate_a_record(run):
  asked = {'action': 'boom', 'step': 'x', 'by': 'eve', 'request': 'y', 'before': {}}
  files.write_json(run / 'requests' / '0.json', asked)
  opened(run).refuse_all(30, 'the run has ended: done')
  first = records.read_records(run)[0]
  assert (first.step, first.request, first.by) == (30, '0.json', 'eve')
  assert first.refused == 'the run has ended: done'
  assert records.read_taken(run) == []


def test_rewind_needs_a_checkpoint(tmp_path):
  for to in (7, 20):
    requests.write_request(tmp_path, Action('rewind', to=to), 'ann', '')
  (record,) = take_all(opened(tmp_path, step=40, saved=[20, 30]), step=40)
  assert (record.action.to, record.cut) == (20, 'metrics.before_action_1.jsonl')
  refused = records.read_records(tmp_path)[0].refused
  assert refused == 'rewind: to 7: no such checkpoint; there are 0, 20, 30'


def test_rewind_of_a_fork_has_a_name_of_its_own_for_its_rows(tmp_path):
  """The records of a fork are those of its run without some, with the names of that run."""
  first = records.Record(8, Action('rewind'), 'ann', '', cut='metrics.before_action_2.jsonl')
  records.write_taken(tmp_path, [first])
  requests.write_request(tmp_path, Action('rewind'), 'ann', '')
  (record,) = take_all(opened(tmp_path, taken=1))
  assert record.cut == 'metrics.before_action_3.jsonl'


def test_forks_are_named_by_number(tmp_path):
  run = tmp_path / 'runs' / 'a'
  (tmp_path / 'runs' / 'a+fork1').mkdir(parents=True)
  requests.write_request(run, Action('fork'), 'ann', '')
  (record,) = take_all(opened(run))
  assert record.action.name == 'a+fork2'


# Alarms.

HIGH = {'block_0/attention_logit_max': 600.0, 'loss': 2.0}


def write_rows(run, *rows):
  files.write_lines(run / 'metrics.jsonl', rows)


def test_alarm_is_written_with_suggestions(tmp_path):
  """These check no checkpoint, which would stop the training."""
  for step in (100, 140, 200):
    (tmp_path / 'checkpoints' / str(step)).mkdir(parents=True)
  fields = {'checkpoint.every_steps': 100, RATE: 0.3}
  control = RunControl(tmp_path, config(**fields), 10, 0, saved=pytest.fail)
  (alarm,) = control.observe({'step': 250} | HIGH)
  assert read_alarms(tmp_path) == [alarm]
  assert [str(action) for action in alarm.suggestions] == [
      f'rewind 100 skip=150 {RATE}=0.1',
      f'set {RATE}=0.1',
  ]
  assert control.next(260, False) is None  # control.on_alarm is none


def test_alarm_pauses_at_the_next_stop(tmp_path):
  control = opened(tmp_path, **{'control.on_alarm': 'ask'})
  (alarm,) = control.observe({'step': 20} | HIGH)
  assert not control.has_work(20, False) and control.has_work(30, False)
  record = control.next(30, False)
  assert (record.action, record.by, record.why) == (Action('pause'), 'alarm', alarm.message)
  assert control.next(30, False) is None


def test_policy_rescues_a_number_of_times(tmp_path):
  fields = {'control.on_alarm': 'policy', 'control.tries': 1, RATE: 0.3}
  fields['checkpoint.every_steps'] = 100
  control = opened(tmp_path, saved=[100, 200], **fields)
  control.observe({'step': 210} | HIGH)
  record = control.next(220, False)
  assert (record.by, record.action.to, record.action.skip) == ('policy', 100, 120)
  control.load_alarms(100)
  (alarm,) = control.observe({'step': 110} | HIGH | {'block_0/attention_logit_max': 150.0})
  assert alarm.limit == rules.AFTER_RESCUE['attention_logit']['limit'] and alarm.actions == 1
  assert control.next(120, False) is None


@pytest.mark.parametrize('limit', [400.0, 600.0])
def test_limits_of_a_run(tmp_path, limit):
  made = Limits({'attention_logit': {'limit': limit, 'odds': 2.0}}, {'digests': []})
  limits.write(tmp_path / 'limits.json', made)
  control = opened(
      tmp_path,
      saved=[100, 200],
      **{
          'control.on_alarm': 'policy',
          'control.tries': 1,
          'control.limits': 'moved since.json',
          RATE: 0.3,
      },
  )
  row = {'step': 210} | HIGH | {'block_0/attention_logit_max': 550.0}
  raised = control.observe(row)
  assert [alarm.limit for alarm in raised] == ([400.0] if limit == 400.0 else [])
  if raised:  # then the lower limit for a rescued run holds
    assert control.next(220, False).by == 'policy'
    control.load_alarms(100)
    (alarm,) = control.observe({'step': 110} | HIGH | {'block_0/attention_logit_max': 150.0})
    assert alarm.limit == rules.AFTER_RESCUE['attention_logit']['limit']


def test_memory_does_not_grow_with_the_rows(tmp_path):
  probes = {f'block_{i}/attention_logit_max': 600.0 for i in range(50)}
  peaks = []
  for rows in (50, 1_000):
    run = tmp_path / str(rows)
    write_rows(run, *({'step': step, 'loss': 2.0} | probes for step in range(1, rows)))
    tracemalloc.start()
    control = opened(run, step=rows)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert [alarm.rule for alarm in control.observe({'step': rows, 'loss': 20.0})] == ['loss_spike']
  assert peaks[1] < 1.5 * peaks[0]  # of 20 times the rows


def test_resumed_control_raises_no_alarm_twice(tmp_path):
  write_rows(tmp_path, {'step': 10} | HIGH)
  opened(tmp_path).observe({'step': 10} | HIGH)
  control = opened(tmp_path, **{'control.on_alarm': 'ask'})
  assert control.observe({'step': 20} | HIGH) == []
  assert control.next(20, False).action == Action('pause')  # the alarm still is to be acted upon


def test_alarms_after_the_checkpoint_are_dropped(tmp_path):
  control = opened(tmp_path)
  control.observe({'step': 20} | HIGH)
  with (tmp_path / 'alarms.jsonl').open('a') as file:
    file.write(json.dumps({'step': 30})[:5])  # torn
  opened(tmp_path, step=20)
  assert [alarm.step for alarm in read_alarms(tmp_path)] == [20]
  opened(tmp_path, step=10)
  assert read_alarms(tmp_path) == []


@pytest.mark.parametrize(
    ('default', 'kind'), [('continue', 'continue'), ('stop', 'stop'), ('policy', 'continue')]
)
def test_timeout(tmp_path, default, kind):
  """Without an alarm to act upon, the policy continues."""
  requests.write_request(tmp_path, Action('pause'), 'ann', '')
  take_all(opened(tmp_path))
  fields = {'control.default_action': default, 'control.timeout_seconds': 5}
  control = RunControl(tmp_path, config(**fields), 10, 1, lambda: [], timed_out=True)
  (record,) = take_all(control)
  assert (record.action.kind, record.by) == (kind, 'timeout')
  assert record.why == 'no answer within 5 s'
