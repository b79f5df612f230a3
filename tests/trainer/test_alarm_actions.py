"""Alarms in a training run: what they record, and the actions that they lead to."""

import json
import time

import pytest
from helpers.training import (
    POPULATION,
    RATE,
    Killed,
    Training,
    asks,
    by_step,
    kill,
    numbers,
    preempt,
    taken,
)

from stability.control import policy, records
from stability.control.actions import Action
from stability.control.alarms import read_alarms
from stability.control.rules import LEARNING_RATE, Rule
from stability.storage import checkpoints, files, run_files

pytestmark = pytest.mark.slow


def step(history):
  return history.row['step']


def rising(limit, odds=1.0):
  """A rule that fires at the first row whose step is above a limit."""
  return Rule(step, 'step', limit, odds, 'step {value}', (LEARNING_RATE,))


def fires_at(first):
  """Training with an alarm that fires at the first row from a step on."""
  return Training(rules=lambda rescued: [rising(first - 1)])


def lower_limit_after_rescue(rescued):
  return [rising(3, 0.25) if rescued else rising(11)]


def test_alarm_without_action(sweep, train):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  train = fires_at(7)
  train(run)
  (alarm,) = read_alarms(run)
  assert (alarm.rule, alarm.step, alarm.value) == ('step', 8, 8)
  assert alarm.suggestions[1] == Action('set', changes={RATE: pytest.approx(1e-2 / 3)})
  assert numbers(run) == numbers(plain)
  assert not (run / 'actions.jsonl').exists()


def test_ask(sweep, train):
  plain, run = sweep()[0], sweep(**{'control.on_alarm': 'ask'})[0]
  train(plain)
  train = fires_at(7)
  paused = train(run)
  assert taken(run) == [('pause', 10, 'alarm')] and max(by_step(run)) == 10
  assert time.perf_counter() < paused.deadlines[run.name] < time.perf_counter() + 3600
  assert train(run).deadlines == pytest.approx(paused.deadlines, abs=60)
  asks(run, 'continue')()
  train(run, paused=paused)
  assert numbers(run) == numbers(plain)  # the same alarm does not pause it again


@pytest.mark.parametrize(
    ('default', 'expected', 'status'),
    [
        ('continue', [('continue', 10, 'timeout')], 'done'),
        ('stop', [('stop', 10, 'timeout')], 'stopped'),
        ('policy', [('rewind', 10, 'policy'), ('pause', 10, 'alarm')], None),
    ],
)
def test_timeout(sweep, default, expected, status):
  (run,) = sweep(**{'control.on_alarm': 'ask', 'control.default_action': default})
  train = fires_at(7)
  paused = train(run)
  paused.deadlines[run.name] = time.perf_counter() - 1
  train(run, paused=paused)
  assert taken(run) == [('pause', 10, 'alarm'), *expected]
  result = run_files.read_result(run)
  assert (result and result.status) == status


def test_policy_tries(sweep, replayed):
  policy = {'control.on_alarm': 'policy', 'control.tries': 2}
  (run,) = sweep(**policy)
  train = fires_at(7)
  train(run)
  assert taken(run) == [('rewind', 10, 'policy'), ('rewind', 10, 'policy')]
  first, second = records.read_records(run)
  assert (first.action.to, first.action.skip) == (0, 10)
  assert first.action.changes[RATE] == pytest.approx(1e-2 / 3)
  assert second.action.changes[RATE] == pytest.approx(1e-2 / 9)
  assert run_files.read_result(run).steps == 24
  assert len(read_alarms(run)) == 3
  assert numbers(replayed(run)) == numbers(run)  # its actions suffice
  assert numbers(replayed(run, **policy)) == numbers(run)


def test_limits_after_policy(sweep):
  """The first alarm uses the usual limit and later ones the lower limit, also after a resume."""
  train = Training(rules=lower_limit_after_rescue)
  (run,) = sweep(**{'control.on_alarm': 'policy', 'control.tries': 2})
  train.at(run, 12, kill)
  with pytest.raises(Killed):
    train(run)
  train(run)
  found = [(alarm.step, alarm.limit) for alarm in read_alarms(run)]
  assert found == [(12, 11), (4, 3), (4, 3)]
  assert taken(run) == [('rewind', 14, 'policy'), ('rewind', 6, 'policy')]


def test_limits_after_manual_rewind(sweep):
  train = Training(rules=lower_limit_after_rescue)
  (run,) = sweep()
  train.at(run, 8, asks(run, 'rewind', to=0))
  train(run)
  assert [alarm.step for alarm in read_alarms(run)] == [12]


@pytest.mark.parametrize('step', [10, 12])
def test_resume_with_policy(sweep, step):
  policy = {'control.on_alarm': 'policy', 'control.tries': 1}
  twin, run = sweep(**policy)[0], sweep(**policy)[0]
  train = fires_at(7)
  train(twin)
  train.at(run, step, kill)
  with pytest.raises(Killed):
    train(run)
  train(run)
  assert numbers(run) == numbers(twin) and taken(run) == taken(twin)


@pytest.mark.parametrize('interruption', [preempt, 'pause'])
def test_policy_does_not_go_back_to_an_interruption(sweep, monkeypatch, interruption):
  """The checkpoint of a preemption or a pause shortens no rescue and displaces no other one."""
  monkeypatch.setattr(policy, 'REWIND_STEPS', 10)
  fields = {'control.on_alarm': 'policy', 'control.tries': 1, 'checkpoint.keep': 3}
  twin, run = sweep(**fields)[0], sweep(**fields)[0]
  train = fires_at(19)
  train(twin)
  train.at(run, 8, preempt if interruption is preempt else asks(run, 'pause'))
  paused = train(run)
  assert run_files.checkpoint_steps(run) == [6, 8]
  if interruption == 'pause':
    asks(run, 'continue')()
  train(run, paused=paused)
  (rescue,) = (r for r in records.read_records(run) if r.by == 'policy')
  assert (rescue.step, rescue.action.to) == (22, 6)
  assert numbers(run) == numbers(twin)
  assert run_files.checkpoint_steps(run) == run_files.checkpoint_steps(twin)


def test_policy_goes_back_to_the_start_of_a_fork(sweep, monkeypatch):
  monkeypatch.setattr(policy, 'REWIND_STEPS', 10)
  (run,) = sweep(**{'control.on_alarm': 'policy', 'control.tries': 1})
  train = Training(rules=lambda rescued: [rising(99)])
  train.at(run, 8, asks(run, 'fork'))
  train(run)
  fork = run_files.run_dir(run.parents[1], f'{run.name}+fork1')
  fires_at(19)(fork)
  (rescue,) = (r for r in records.read_records(fork) if r.by == 'policy')
  assert (rescue.step, rescue.action.to) == (22, 8)


def test_policy_rescues_diverged(sweep, train):
  (run,) = sweep([1e25], **{'control.on_alarm': 'policy', 'control.tries': 60})
  plain = sweep([1e25])[0]
  train(plain)
  assert run_files.read_result(plain).status == 'diverged'
  train(run)
  assert {r.action.kind for r in records.read_records(run)} == {'rewind'}
  assert run_files.read_result(run).status == 'done'


# The update of step 6 is not made, and the row that says so is read at step 8, the next stop.
BETWEEN_STOPS = {'log.every_steps': 5, 'probe.every_steps': 4, 'checkpoint.every_steps': 0}


def diverging(sweep, train, **fields):
  """A run that a change at step 4 makes diverge between two stops."""
  (run,) = sweep(**BETWEEN_STOPS | fields)
  train.at(run, 4, asks(run, 'set', changes={RATE: 1e30}))
  return run


def cut_rows(run):
  """The steps and losses of the rows that rewinds have removed, by file."""
  return {
      path.name: [(row['step'], row['loss']) for row in files.read_lines(path)]
      for path in run.glob('metrics.before_action_*.jsonl')
  }


@pytest.mark.parametrize('answer', ['continue', 'stop'])
def test_replay_of_divergence_between_stops(sweep, train, replayed, answer):
  run = diverging(sweep, train, **{'control.on_alarm': 'ask'})
  paused = train(run)
  asks(run, answer)()
  train(run, paused=paused)
  assert taken(run)[1:] == [('pause', 6, 'alarm'), (answer, 6, 'ann')]
  copy = replayed(run, **BETWEEN_STOPS, **{'control.on_alarm': 'ask'})
  assert numbers(copy) == numbers(run) and taken(copy) == taken(run)
  assert by_step(run)[6]['loss'] is None and 'log_z' in by_step(run)[6]  # of the probed step 8


def test_request_at_a_checkpoint_after_divergence(sweep, train, replayed):
  """It is taken at the step at which the run has diverged, once a row says so."""
  run = diverging(sweep, train, **{'checkpoint.every_steps': 7})
  train.at(run, 7, asks(run, 'rewind', to=0, changes={RATE: 1e-3}))
  train(run)
  assert taken(run)[1:] == [('rewind', 6, 'ann')] and run_files.read_result(run).status == 'done'
  copy = replayed(run, **BETWEEN_STOPS | {'checkpoint.every_steps': 7})
  assert numbers(copy) == numbers(run)


@pytest.mark.parametrize(('on_alarm', 'moment'), [('ask', 'save'), ('policy', 'delete_after')])
def test_death_during_action_on_divergence(sweep, train, monkeypatch, on_alarm, moment):
  """The action is recorded; the rows before it are written again, the alarm is raised again."""
  fields = {'control.on_alarm': on_alarm, 'control.tries': 1}
  twin, run = diverging(sweep, train, **fields), diverging(sweep, train, **fields)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, moment, lambda *arguments: kill())
    with pytest.raises(Killed):
      train(run)
  for each in (twin, run):
    paused = train(each)
    if on_alarm == 'ask':
      asks(each, 'continue')()
      train(each, paused=paused)
  assert numbers(run) == numbers(twin) and taken(run) == taken(twin)
  assert read_alarms(run) == read_alarms(twin) != []
  assert cut_rows(run) == cut_rows(twin)


def test_independent_of_neighbours(sweep):
  """Three runs with different actions, on three devices together and each alone."""
  rates = [1e-3, 1e-2, 1e-1]
  wide = POPULATION | {'control.on_alarm': 'policy', 'control.tries': 1}
  together, alone = sweep(rates, **wide), [sweep([rate], **wide)[0] for rate in rates]
  train = fires_at(15)
  for runs in (together, alone):
    train.at(runs[0], 6, asks(runs[0], 'rewind', to=0, skip=2))
    train.at(runs[1], 10, asks(runs[1], 'set', changes={'optimizer.clip_norm': 0.1}))
  train(*together)
  for run in alone:
    train(run)
  for ours, theirs in zip(together, alone, strict=True):
    assert numbers(ours) == numbers(theirs) and taken(ours) == taken(theirs)


def test_tensorboard(sweep):
  (run,) = sweep(**{'control.on_alarm': 'policy', 'control.tries': 1})
  train = fires_at(7)
  train(run)
  from tensorboard.backend.event_processing import event_accumulator

  board = event_accumulator.EventAccumulator(str(run))
  board.Reload()
  assert 8 in [event.step for event in board.Scalars('alarm/step')]
  assert [event.step for event in board.Scalars('action/rewind')] == [10]
  (shown,) = board.Tensors('action/rewind/text_summary')
  assert json.loads(shown.tensor_proto.string_val[0])['by'] == 'policy'
