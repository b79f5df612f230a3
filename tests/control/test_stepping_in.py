"""Stepping in: each action on a run that trains, its records, its refusals, replays and resumes."""

import json
import os
import time

import pytest
from helpers import steered
from helpers.steered import RATE, Killed, asks, by_step, killed, numbers, told, train

from stability.control import actions, alarms, run_control
from stability.storage import checkpoints, files, results_csv, run_files, sweeps
from stability.trainer import run as run_lib
from stability.trainer import trainer


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of token files, shared by the sweeps."""
  return steered.prepare(tmp_path_factory.mktemp('data'))


@pytest.fixture(autouse=True)
def one_layout_for_all(monkeypatch):
  """One layout, compiled once."""
  steered.share_layouts(monkeypatch)


@pytest.fixture
def sweep(tmp_path, data):
  """A function that writes a sweep of one run, or of the given rates -> its runs' folders."""

  def write(rates=(1e-2,), **fields):
    workdir = tmp_path / f'sweep-{len(list(tmp_path.iterdir()))}'
    return steered.write_sweep(workdir, data, rates, **fields)

  return write


@pytest.fixture
def at(monkeypatch):
  """A function that does something when a run comes to a step, `killed` after its actions."""
  return steered.doing_at(monkeypatch)


@pytest.fixture
def replayed(sweep):
  """A function that trains a run's config and actions anew -> its folder."""

  def again(run, **fields):
    (copy,) = sweep(**fields)
    files.write_lines(copy / 'actions.jsonl', actions.done(actions.read(run)))
    train(copy)
    return copy

  return again


def test_a_run_left_alone_writes_no_actions(sweep):
  (run,) = sweep()
  assert train(run) == {}
  assert run_files.read_result(run).status == 'done'
  assert not (run / 'actions.jsonl').exists()


def test_set_changes_the_course_from_its_step_on(sweep, at, replayed):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 8, asks(run, 'set', changes={RATE: 1e-3}))
  train(run)
  ours, theirs = by_step(run), by_step(plain)
  for step in (2, 4, 6, 8):
    assert ours[step]['loss'] == theirs[step]['loss']
  assert ours[10]['learning_rate'] == pytest.approx(theirs[10]['learning_rate'] / 10, rel=0.05)
  assert ours[12]['loss'] != theirs[12]['loss']
  (record,) = actions.read(run)
  assert told(run) == [('set', 8, 'ann')] and record['why'] == 'to see'
  assert record['before']['hyperparameters'][RATE] == 1e-2 and record['before']['step'] == 8
  assert actions.requests(run) == []
  assert numbers(replayed(run)) == numbers(run)


def test_skip_gives_the_batches_that_come_later(sweep, at, replayed):
  """With a learning rate of next to nothing, a loss is that of its batch."""
  still = {'schedule.min_learning_rate': 1e-12, 'optimizer.weight_decay': 0.0}
  plain, run = sweep([1e-12], **still)[0], sweep([1e-12], **still)[0]
  train(plain)
  at(run, 8, asks(run, 'skip', steps=6))
  train(run)
  ours, theirs = by_step(run), by_step(plain)
  assert ours[8]['loss'] == theirs[8]['loss']
  for step in (10, 14, 18):
    assert ours[step]['loss'] == pytest.approx(theirs[step + 6]['loss'], abs=1e-5)
    assert ours[step]['loss'] != pytest.approx(theirs[step]['loss'], abs=1e-4)


def test_pause_frees_the_slot_and_continue_goes_on_bit_for_bit(sweep, at):
  plain, (run, other) = sweep()[0], sweep([1e-2, 1e-3])
  train(plain)
  at(run, 8, asks(run, 'pause'))
  paused = train(run, other)
  assert list(paused) == [run.name] and run_files.read_result(run) is None
  assert run_files.read_result(other).status == 'done'
  assert train(run) == paused  # a worker started anew leaves it as it is
  asks(run, 'continue')()
  assert train(run, paused=paused) == {}
  assert numbers(run) == numbers(plain)
  assert told(run) == [('pause', 8, 'ann'), ('continue', 8, 'ann')]


def test_stop_ends_with_a_result_that_counts_nowhere(sweep, at):
  (run,) = sweep()
  at(run, 8, asks(run, 'stop'))
  train(run)
  result = run_files.read_result(run)
  assert (result.status, result.steps) == ('stopped', 8)
  assert 0 < result.final_loss < result.initial_loss
  assert max(by_step(run)) == 8


def test_stop_of_a_paused_run(sweep, at):
  (run,) = sweep()
  at(run, 8, asks(run, 'pause'))
  paused = train(run)
  asks(run, 'stop')()
  assert train(run, paused=paused) == {}
  assert run_files.read_result(run).steps == 8


def test_a_rewind_goes_back_and_keeps_what_it_cuts(sweep, at, replayed):
  """With nothing changed, the same steps come again."""
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 16, asks(run, 'rewind', to=6))
  train(run)
  assert numbers(run) == numbers(plain)
  (record,) = actions.read(run)
  cut = files.read_lines(run / record['cut'])
  assert [line['step'] for line in cut] == [8, 10, 12, 14, 16]
  assert cut[0]['loss'] == by_step(plain)[8]['loss']
  assert numbers(replayed(run)) == numbers(run)


def test_a_rewind_and_a_fork_are_on_the_disk_with_their_actions_at_once(sweep, at):
  """Killed before the next checkpoint, a run repeats no rewind and a fork loses no action."""
  (run,) = sweep()
  seen = []

  def look():
    step, _, about = checkpoints.restore(run)
    seen.append((step, about['actions']))

  at(run, 8, asks(run, 'skip', steps=1), asks(run, 'fork'))
  at(run, 16, asks(run, 'rewind', to=6), lambda: at(run, 8, look))
  train(run)
  assert seen == [(6, 3)]
  (fork,) = (run_files.run_dir(run.parent.parent, n) for n in os.listdir(run.parent) if '+' in n)
  step, _, about = checkpoints.restore(fork)
  assert [record['action'] for record in actions.read(fork)] == ['skip']
  assert (step, about['actions']) == (8, 1)


def test_a_rewind_keeps_what_was_set_and_skipped_before(sweep, at):
  """With a learning rate of next to nothing, a loss is that of its batch."""
  still = {'schedule.min_learning_rate': 1e-12, 'optimizer.weight_decay': 0.0}
  plain, run = sweep([1e-12], **still)[0], sweep([1e-12], **still)[0]
  train(plain)
  at(run, 8, asks(run, 'skip', steps=4), asks(run, 'set', changes={RATE: 2e-12}))
  at(run, 12, asks(run, 'rewind', to=6, skip=2))
  train(run)
  ours, theirs = by_step(run), by_step(plain)
  for step in (8, 12, 18):
    assert ours[step]['loss'] == pytest.approx(theirs[step + 6]['loss'], abs=1e-5)
  assert ours[8]['learning_rate'] > 1.5 * theirs[8]['learning_rate']


def test_a_rewind_with_the_recipe(sweep, at, replayed):
  (run,) = sweep()
  changes = {RATE: 3e-3}
  at(run, 16, asks(run, 'rewind', to=0, skip=16, changes=changes))
  at(run, 20, asks(run, 'set', changes={'optimizer.clip_norm': 0.5}))
  train(run)
  rates = [line['learning_rate'] for line in run_files.read_metrics(run)]
  assert max(rates) == pytest.approx(3e-3)
  assert [step for step in by_step(run)] == list(range(2, 25, 2))
  assert numbers(replayed(run)) == numbers(run)


def test_a_rewind_without_its_checkpoint_is_refused(sweep, at):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 16, asks(run, 'rewind', to=7), asks(run, 'rewind', to=20))
  train(run)
  reasons = [record['refused'] for record in actions.read(run)]
  assert reasons[0] == 'rewind: to 7: no such checkpoint; there are 0, 6, 12'
  assert 'must not be above the present step, 16' in reasons[1]
  assert numbers(run) == numbers(plain)


def test_a_fork_is_a_run_of_its_own(sweep, at, replayed):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 8, asks(run, 'fork', changes={RATE: 1e-3}))
  train(run)
  assert numbers(run) == numbers(plain)
  workdir = run.parent.parent
  (name,) = sweeps.read_forks(workdir)
  assert name == f'{run.name}+fork1'
  fork = run_files.run_dir(workdir, name)
  train(fork)
  same = sweep()[0]
  at(same, 8, asks(same, 'set', changes={RATE: 1e-3}))
  train(same)
  assert numbers(fork) == numbers(same) != numbers(plain)
  assert numbers(replayed(fork)) == numbers(fork)  # without its parent's state
  results_csv.write_results(workdir)
  assert name in (workdir / 'results.csv').read_text()
  assert [row['run'] for row in results_csv.read_results(workdir)] == [run.name]


def test_checkpoint_now(sweep, at):
  (run,) = sweep()
  at(run, 8, asks(run, 'checkpoint'))
  train(run)
  assert checkpoints.good_steps(run) == [6, 8, 12, 18]


@pytest.mark.parametrize('kill', [8, 10, 12, 14, 22])
def test_killed_after_actions_and_resumed(sweep, at, kill):
  """Whatever came after the last checkpoint is taken again at its step."""
  twin, run = sweep()[0], sweep()[0]
  for each in (twin, run):
    at(each, 8, asks(each, 'set', changes={RATE: 5e-3}))
    at(each, 10, asks(each, 'skip', steps=3))
    at(each, 14, asks(each, 'rewind', to=6, changes={RATE: 2e-3}))
  train(twin)
  at(run, kill, killed)
  with pytest.raises(Killed):
    train(run)
  train(run)
  assert numbers(run) == numbers(twin)
  assert told(run) == told(twin)


def test_killed_between_the_record_and_its_request(sweep, at, monkeypatch):
  """The request that is still there is not taken a second time."""
  twin, run = sweep()[0], sweep()[0]
  for each in (twin, run):
    at(each, 8, asks(each, 'skip', steps=3))
  train(twin)
  with monkeypatch.context() as m:
    m.setattr(run_control.Path, 'unlink', lambda self: killed())
    with pytest.raises(Killed):
      train(run)
  assert len(actions.requests(run)) == 1
  train(run)
  assert numbers(run) == numbers(twin) and len(actions.read(run)) == 1


def test_what_is_no_action_is_refused_and_the_run_goes_on(sweep, at):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  (run / 'requests').mkdir()

  def is_primary(name, content):
    return lambda: (run / 'requests' / name).write_text(content)

  at(
      run,
      8,
      is_primary('1.json', '{"action": "se'),
      is_primary('2.json', '[]'),
      is_primary('3.json', '{"action": "exec", "changes": "rm"}'),
      is_primary('4.json', '{"action": ["set"]}'),
      is_primary('5.json', '{"action": "set", "changes": {"seed": 1}}'),
      is_primary('6.json', '{"action": "set", "changes": {"optimizer.eps": "1"}}'),
      is_primary('7.json', '{"action": "set", "changes": {"optimizer.learning_rate": NaN}}'),
      is_primary('8.json', '{"action": "skip", "steps": 1.5}'),
      is_primary('9.json', '{"action": "stop", "now": true}'),
      asks(run, 'set', changes={'model.attention_soft_cap': 30.0}),
      asks(run, 'continue'),
  )
  train(run)
  assert numbers(run) == numbers(plain)
  reasons = [record['refused'] for record in actions.read(run)]
  for reason, words in zip(
      reasons,
      [
          'built without this term',  # its file's name is the first in order
          'is not paused',
          'not a request',
          'must be a JSON object',
          "action 'exec': must be one of pause",
          'must be one of pause',
          'config.seed: cannot be set',
          'must be a number',
          'must be a number above 0',
          'must be a whole number',
          "takes no 'now'",
      ],
      strict=True,
  ):
    assert words in reason
  assert actions.requests(run) == []


def test_two_people_at_once(sweep, at):
  (run,) = sweep()
  at(
      run,
      8,
      asks(run, 'set', changes={RATE: 5e-3}),
      lambda: actions.request(run, {'action': 'set', 'changes': {RATE: 1e-3}}, 'bob', ''),
  )
  train(run)
  first, second = actions.read(run)
  assert (first['by'], second['by']) == ('ann', 'bob')
  assert second['before']['hyperparameters'][RATE] == 5e-3


def test_a_request_that_comes_too_late_is_answered(sweep, at, monkeypatch):
  (run,) = sweep()
  finish = trainer.Trainer._finish

  def late(self):
    if any(member.step == 24 for member in self._runs.values()):
      asks(run, 'set', changes={RATE: 1e-3})()
    finish(self)

  monkeypatch.setattr(trainer.Trainer, '_finish', late)
  train(run)
  (record,) = actions.read(run)
  assert record['refused'] == 'the run has ended: done'


# Alarms.


def rising(limit):
  """A rule that fires once the step is above a limit."""
  return alarms.Rule(step, limit, 0.5, 'step {value}', (alarms.LEARNING_RATE,))


def step(history):
  return history.row['step']


@pytest.fixture
def fires_at(monkeypatch):
  """A function that makes a rule fire at the row of a step, and of no step before it."""
  return lambda at_step: monkeypatch.setattr(alarms, 'RULES', (rising(at_step - 1),))


@pytest.mark.parametrize('members', [1, 2])
def test_alarms_are_recorded_and_change_nothing_by_themselves(sweep, fires_at, members):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  fires_at(7)
  train(run)
  (alarm,) = files.read_lines(run / 'alarms.jsonl')
  assert (alarm['rule'], alarm['step'], alarm['value']) == ('step', 8, 8)
  assert alarm['suggested'][1] == {'action': 'set', 'changes': {RATE: pytest.approx(1e-2 / 3)}}
  assert numbers(run) == numbers(plain)
  assert not (run / 'actions.jsonl').exists()


def test_ask_pauses_at_the_next_stop_and_waits(sweep, fires_at):
  plain, run = sweep()[0], sweep(**{'control.on_alarm': 'ask'})[0]
  train(plain)
  fires_at(7)
  paused = train(run)
  assert told(run) == [('pause', 10, 'alarm')] and max(by_step(run)) == 10
  assert time.monotonic() < paused[run.name] < time.monotonic() + 3600
  assert train(run) == pytest.approx(paused, abs=60)
  asks(run, 'continue')()
  train(run, paused=paused)
  assert numbers(run) == numbers(plain)  # and the same alarm does not stop it again


@pytest.mark.parametrize(
    ('default', 'taken', 'status'),
    [
        ('continue', [('continue', 10, 'timeout')], 'done'),
        ('stop', [('stop', 10, 'timeout')], 'stopped'),
        ('policy', [('rewind', 10, 'policy'), ('pause', 10, 'alarm')], None),
    ],
)
def test_after_the_timeout_the_default(sweep, fires_at, default, taken, status):
  (run,) = sweep(**{'control.on_alarm': 'ask', 'control.default_action': default})
  fires_at(7)
  paused = train(run)
  paused[run.name] = time.monotonic() - 1
  train(run, paused=paused)
  assert told(run) == [('pause', 10, 'alarm'), *taken]
  result = run_files.read_result(run)
  assert (result and result.status) == status


def test_the_policy_tries_a_few_times(sweep, fires_at, replayed):
  policy = {'control.on_alarm': 'policy', 'control.tries': 2}
  (run,) = sweep(**policy)
  fires_at(7)
  train(run)
  assert told(run) == [('rewind', 10, 'policy'), ('rewind', 10, 'policy')]
  first, second = actions.read(run)
  assert (first['to'], first['skip']) == (0, 10)
  assert first['changes'][RATE] == pytest.approx(1e-2 / 3)
  assert second['changes'][RATE] == pytest.approx(1e-2 / 9)
  assert run_files.read_result(run).steps == 24
  assert len(files.read_lines(run / 'alarms.jsonl')) == 3
  assert numbers(replayed(run)) == numbers(run)  # by its actions alone
  assert numbers(replayed(run, **policy)) == numbers(run)


def test_a_run_that_the_policy_has_rescued_is_held_to_lower_limits(sweep, monkeypatch, at):
  """The first alarm is of the one limit, those after it of the other; also after a resume."""
  monkeypatch.setattr(alarms, 'RULES', (rising(11),))
  monkeypatch.setattr(alarms, 'AFTER_RESCUE', {'step': {'limit': 3, 'sure': 0.25}})
  (run,) = sweep(**{'control.on_alarm': 'policy', 'control.tries': 2})
  at(run, 12, killed)
  with pytest.raises(Killed):
    train(run)
  train(run)
  raised = files.read_lines(run / 'alarms.jsonl')
  found = [(alarm['step'], alarm['limit'], alarm['sure']) for alarm in raised]
  assert found == [(12, 11, 0.5), (4, 3, 0.25), (4, 3, 0.25)]
  assert told(run) == [('rewind', 14, 'policy'), ('rewind', 6, 'policy')]


def test_a_rewind_by_a_person_leaves_the_limits_as_they_are(sweep, monkeypatch, at):
  monkeypatch.setattr(alarms, 'RULES', (rising(11),))
  monkeypatch.setattr(alarms, 'AFTER_RESCUE', {'step': {'limit': 3, 'sure': 0.25}})
  (run,) = sweep()
  at(run, 8, asks(run, 'rewind', to=0))
  train(run)
  assert [alarm['step'] for alarm in files.read_lines(run / 'alarms.jsonl')] == [12]


@pytest.mark.parametrize('kill', [10, 12])
def test_the_policy_after_a_kill(sweep, fires_at, at, kill):
  policy = {'control.on_alarm': 'policy', 'control.tries': 1}
  twin, run = sweep(**policy)[0], sweep(**policy)[0]
  fires_at(7)
  train(twin)
  at(run, kill, killed)
  with pytest.raises(Killed):
    train(run)
  train(run)
  assert numbers(run) == numbers(twin) and told(run) == told(twin)


def test_the_policy_rescues_a_run_that_diverges(sweep):
  (run,) = sweep([1e25], **{'control.on_alarm': 'policy', 'control.tries': 60})
  plain = sweep([1e25])[0]
  train(plain)
  assert run_files.read_result(plain).status == 'diverged'
  train(run)
  assert {r['action'] for r in actions.read(run)} == {'rewind'}
  assert run_files.read_result(run).status == 'done'


def test_actions_do_not_depend_on_neighbours(sweep, at, fires_at):
  """Three runs on three devices, each with a fate of its own, and each of them alone."""
  rates = [1e-3, 1e-2, 1e-1]
  wide = {
      'parallel.layout': 'population',
      'parallel.members': 1,
      'control.on_alarm': 'policy',
      'control.tries': 1,
  }
  together, alone = sweep(rates, **wide), [sweep([rate], **wide)[0] for rate in rates]
  fires_at(15)
  for runs in (together, alone):
    at(runs[0], 6, asks(runs[0], 'rewind', to=0, skip=2))
    at(runs[1], 10, asks(runs[1], 'set', changes={'optimizer.clip_norm': 0.1}))
  train(*together)
  for run in alone:
    train(run)
  for ours, theirs in zip(together, alone, strict=True):
    assert numbers(ours) == numbers(theirs) and told(ours) == told(theirs)


def test_tensorboard_shows_alarms_and_actions_at_their_step(sweep, fires_at):
  (run,) = sweep(**{'control.on_alarm': 'policy', 'control.tries': 1})
  fires_at(7)
  train(run)
  from tensorboard.backend.event_processing import event_accumulator

  board = event_accumulator.EventAccumulator(str(run))
  board.Reload()
  assert 8 in [event.step for event in board.Scalars('alarm/step')]
  assert [event.step for event in board.Scalars('action/rewind')] == [10]
  (shown,) = board.Tensors('action/rewind/text_summary')
  assert json.loads(shown.tensor_proto.string_val[0])['by'] == 'policy'


# Several processes that share a run.


def test_a_shared_run_takes_no_actions(sweep, at, monkeypatch):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 8, asks(run, 'stop'))
  monkeypatch.setattr(run_lib, 'is_shared', lambda: True)
  train(run)
  (record,) = actions.read(run)
  assert record['refused'] == 'a run shared by several processes takes no actions'
  assert numbers(run) == numbers(plain)


def test_a_shared_run_cannot_act_on_alarms(sweep, monkeypatch):
  (run,) = sweep(**{'control.on_alarm': 'policy'})
  monkeypatch.setattr(run_lib, 'is_shared', lambda: True)
  trainer.train_runs(
      run.parent.parent, sweeps.read_sweep(run.parent.parent), run.name, lambda: None
  )
  result = run_files.read_result(run)
  assert result.status == 'failed' and 'config.control.on_alarm=policy' in result.error
