"""Actions on a run in training: effects, records, refusals, replays and resumes."""

import os
from pathlib import Path

import pytest
from helpers.training import (
    RATE,
    Killed,
    Training,
    TwoProcesses,
    asks,
    by_step,
    kill,
    numbers,
    taken,
)

from stability.control import limits, records, requests
from stability.control.actions import Action
from stability.control.limits import Limits
from stability.storage import checkpoints, files, results_csv, run_files, sweeps

pytestmark = pytest.mark.slow
LIMITED = {'control.limits': 'mine.json'}


def test_no_actions(sweep, train):
  (run,) = sweep()
  assert train(run).deadlines == {}
  assert run_files.read_result(run).status == 'done'
  assert not (run / 'actions.jsonl').exists()


def test_set(sweep, train, replayed):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  train.at(run, 8, asks(run, 'set', changes={RATE: 1e-3}))
  train(run)
  ours, theirs = by_step(run), by_step(plain)
  for step in (2, 4, 6, 8):
    assert ours[step]['loss'] == theirs[step]['loss']
  assert ours[10]['learning_rate'] == pytest.approx(theirs[10]['learning_rate'] / 10, rel=0.05)
  assert ours[12]['loss'] != theirs[12]['loss']
  (record,) = records.read_records(run)
  assert taken(run) == [('set', 8, 'ann')] and record.why == 'to see'
  assert record.before['hyperparameters'][RATE] == 1e-2 and record.before['step'] == 8
  assert requests.request_files(run) == []
  assert numbers(replayed(run)) == numbers(run)


def test_skip(sweep, train, replayed):
  """At a learning rate close to zero the loss identifies the batch."""
  still = {'schedule.min_learning_rate': 1e-12, 'optimizer.weight_decay': 0.0}
  plain, run = sweep([1e-12], **still)[0], sweep([1e-12], **still)[0]
  train(plain)
  train.at(run, 8, asks(run, 'skip', steps=6))
  train(run)
  ours, theirs = by_step(run), by_step(plain)
  assert ours[8]['loss'] == theirs[8]['loss']
  for step in (10, 14, 18):
    assert ours[step]['loss'] == pytest.approx(theirs[step + 6]['loss'], abs=1e-5)
    assert ours[step]['loss'] != pytest.approx(theirs[step]['loss'], abs=1e-4)


def test_pause_and_continue(sweep, train):
  plain, (run, other) = sweep()[0], sweep([1e-2, 1e-3])
  train(plain)
  train.at(run, 8, asks(run, 'pause'))
  paused = train(run, other)
  assert list(paused.deadlines) == [run.name] and run_files.read_result(run) is None
  assert run_files.read_result(other).status == 'done'
  assert train(run).deadlines == paused.deadlines  # as a new worker does
  asks(run, 'continue')()
  assert train(run, paused=paused).deadlines == {}
  assert numbers(run) == numbers(plain)
  assert taken(run) == [('pause', 8, 'ann'), ('continue', 8, 'ann')]


def test_stop(sweep, train):
  (run,) = sweep()
  train.at(run, 8, asks(run, 'stop'))
  train(run)
  result = run_files.read_result(run)
  assert (result.status, result.steps) == ('stopped', 8)
  assert 0 < result.final_loss < result.initial_loss
  assert max(by_step(run)) == 8


def test_stop_while_paused(sweep, train):
  (run,) = sweep()
  train.at(run, 8, asks(run, 'pause'))
  paused = train(run)
  asks(run, 'stop')()
  assert train(run, paused=paused).deadlines == {}
  assert run_files.read_result(run).steps == 8


def test_rewind(sweep, train, replayed):
  """Without changes it repeats the same steps and keeps the rows that it cuts."""
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  train.at(run, 16, asks(run, 'rewind', to=6))
  train(run)
  assert numbers(run) == numbers(plain)
  (record,) = records.read_records(run)
  cut = files.read_lines(run / record.cut)
  assert [line['step'] for line in cut] == [8, 10, 12, 14, 16]
  assert cut[0]['loss'] == by_step(plain)[8]['loss']
  assert numbers(replayed(run)) == numbers(run)


def test_checkpoints_of_rewind_and_fork(sweep, train):
  """Both save a checkpoint at once: a kill repeats no rewind and loses no action of a fork."""
  (run,) = sweep()
  seen = []

  def look():
    step, _, about = checkpoints.restore(run)
    seen.append((step, about['actions']))

  train.at(run, 8, asks(run, 'skip', steps=1), asks(run, 'fork'))
  train.at(run, 16, asks(run, 'rewind', to=6), lambda: train.at(run, 8, look))
  train(run)
  assert seen == [(6, 3)]
  (fork,) = (run_files.run_dir(run.parents[1], n) for n in os.listdir(run.parent) if '+' in n)
  step, _, about = checkpoints.restore(fork)
  assert [record.action.kind for record in records.read_records(fork)] == ['skip', 'checkpoint']
  assert (step, about['actions']) == (8, 2)


def test_rewind_keeps_changes(sweep, train):
  """At a learning rate close to zero the loss identifies the batch."""
  still = {'schedule.min_learning_rate': 1e-12, 'optimizer.weight_decay': 0.0}
  plain, run = sweep([1e-12], **still)[0], sweep([1e-12], **still)[0]
  train(plain)
  train.at(run, 8, asks(run, 'skip', steps=4), asks(run, 'set', changes={RATE: 2e-12}))
  train.at(run, 12, asks(run, 'rewind', to=6, skip=2))
  train(run)
  ours, theirs = by_step(run), by_step(plain)
  for step in (8, 12, 18):
    assert ours[step]['loss'] == pytest.approx(theirs[step + 6]['loss'], abs=1e-5)
  assert ours[8]['learning_rate'] > 1.5 * theirs[8]['learning_rate']


def test_rewind_with_changes(sweep, train, replayed):
  (run,) = sweep()
  changes = {RATE: 3e-3}
  train.at(run, 16, asks(run, 'rewind', to=0, skip=16, changes=changes))
  train.at(run, 20, asks(run, 'set', changes={'optimizer.clip_norm': 0.5}))
  train(run)
  rates = [line['learning_rate'] for line in run_files.read_metrics(run)]
  assert max(rates) == pytest.approx(3e-3)
  assert [step for step in by_step(run)] == list(range(2, 25, 2))
  assert numbers(replayed(run)) == numbers(run)


@pytest.mark.parametrize('other', [{}, {'checkpoint.every_steps': 2, 'checkpoint.keep': 1}])
def test_rewind_to_the_checkpoint_of_a_pause(sweep, train, replayed, other):
  """A replay does not pause, and keeps what the rewind needs however many it saves."""
  (run,) = sweep()
  train.at(run, 8, asks(run, 'pause'))
  paused = train(run)
  asks(run, 'continue')()
  train.at(run, 16, asks(run, 'rewind', to=8, skip=3))
  train(run, paused=paused)
  assert [kind for kind, *_ in taken(run)] == ['pause', 'continue', 'rewind']
  assert numbers(replayed(run, **other)) == numbers(run)


def test_rewind_without_checkpoint(sweep, train):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  train.at(run, 16, asks(run, 'rewind', to=7), asks(run, 'rewind', to=20))
  train(run)
  reasons = [record.refused for record in records.read_records(run)]
  assert reasons[0] == 'rewind: to 7: no such checkpoint; there are 0, 6, 12'
  assert 'must not be above the current step, 16' in reasons[1]
  assert numbers(run) == numbers(plain)


def test_fork(sweep, train, replayed):
  plain, run = sweep()[0], sweep(**LIMITED)[0]
  limits.write(run / 'limits.json', Limits({}, {'digests': []}))
  train(plain)
  train.at(run, 8, asks(run, 'fork', changes={RATE: 1e-3}))
  train(run)
  assert numbers(run) == numbers(plain)
  workdir = run.parents[1]
  (name,) = sweeps.read_forks(workdir)
  assert name == f'{run.name}+fork1'
  fork = run_files.run_dir(workdir, name)
  assert limits.read(fork / 'limits.json') == limits.read(run / 'limits.json')
  train(fork)
  same = sweep()[0]
  train.at(same, 8, asks(same, 'set', changes={RATE: 1e-3}))
  train(same)
  assert numbers(fork) == numbers(same) != numbers(plain)
  assert numbers(replayed(fork)) == numbers(fork)  # from step 0
  results_csv.write_results(workdir)
  assert name in (workdir / 'results.csv').read_text()
  assert [row['run'] for row in results_csv.read_results(workdir)] == [run.name]


def test_checkpoint(sweep, train):
  (run,) = sweep()
  train.at(run, 8, asks(run, 'checkpoint'))
  train(run)
  assert checkpoints.good_steps(run) == [6, 8, 12, 18]


@pytest.mark.parametrize('step', [8, 10, 12, 14, 22])
def test_resume_after_actions(sweep, train, step):
  """Actions after the last checkpoint are applied again at their steps."""
  twin, run = sweep()[0], sweep()[0]
  for each in (twin, run):
    train.at(each, 8, asks(each, 'set', changes={RATE: 5e-3}))
    train.at(each, 10, asks(each, 'skip', steps=3))
    train.at(each, 14, asks(each, 'rewind', to=6, changes={RATE: 2e-3}))
  train(twin)
  train.at(run, step, kill)
  with pytest.raises(Killed):
    train(run)
  train(run)
  assert numbers(run) == numbers(twin)
  assert taken(run) == taken(twin)


def test_resume_between_record_and_request(sweep, train, monkeypatch):
  """A recorded request whose file remains is not applied twice."""
  twin, run = sweep()[0], sweep()[0]
  for each in (twin, run):
    train.at(each, 8, asks(each, 'skip', steps=3))
  train(twin)
  with monkeypatch.context() as m:
    m.setattr(Path, 'unlink', lambda self: kill())
    with pytest.raises(Killed):
      train(run)
  assert len(requests.request_files(run)) == 1
  train(run)
  assert numbers(run) == numbers(twin) and len(records.read_records(run)) == 1


def test_invalid_requests(sweep, train):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  (run / 'requests').mkdir()

  def writes(name, content):
    return lambda: (run / 'requests' / name).write_text(content)

  train.at(
      run,
      8,
      writes('1.json', '{"action": "se'),
      writes('2.json', '[]'),
      writes('3.json', '{"action": "exec", "changes": "rm"}'),
      writes('4.json', '{"action": ["set"]}'),
      writes('5.json', '{"action": "set", "changes": {"seed": 1}}'),
      writes('6.json', '{"action": "set", "changes": {"optimizer.eps": "1"}}'),
      writes('7.json', '{"action": "set", "changes": {"optimizer.learning_rate": NaN}}'),
      writes('8.json', '{"action": "skip", "steps": 1.5}'),
      writes('9.json', '{"action": "stop", "now": true}'),
      asks(run, 'set', changes={'model.attention_soft_cap': 30.0}),
      asks(run, 'continue'),
  )
  train(run)
  assert numbers(run) == numbers(plain)
  reasons = [record.refused for record in records.read_records(run)]
  for reason, words in zip(
      reasons,
      [
          'built without this term',  # asks() names its files by time, which sorts first
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
  assert requests.request_files(run) == []


def test_two_requests(sweep, train):
  (run,) = sweep()
  train.at(
      run,
      8,
      asks(run, 'set', changes={RATE: 5e-3}),
      lambda: requests.write_request(run, Action('set', changes={RATE: 1e-3}), 'bob', ''),
  )
  train(run)
  first, second = records.read_records(run)
  assert (first.by, second.by) == ('ann', 'bob')
  assert second.before['hyperparameters'][RATE] == 5e-3


def test_late_request(sweep, train):
  (run,) = sweep()
  train.when_over(asks(run, 'set', changes={RATE: 1e-3}))
  train(run)
  (record,) = records.read_records(run)
  assert record.refused == 'the run has ended: done'


# Several processes that train one run.


def test_multiprocess_refuses_actions(sweep, train):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  shared = Training(processes=TwoProcesses())
  shared.at(run, 8, asks(run, 'stop'))
  shared(run)
  (record,) = records.read_records(run)
  assert record.refused == 'a run on several processes accepts no actions'
  assert numbers(run) == numbers(plain)


def test_multiprocess_refuses_on_alarm(sweep):
  (run,) = sweep(**{'control.on_alarm': 'policy'})
  Training(processes=TwoProcesses())(run, may_fail=True)
  result = run_files.read_result(run)
  assert result.status == 'failed' and 'config.control.on_alarm=policy' in result.error
