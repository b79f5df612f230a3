"""Faults of stepping in: whatever is asked for, whoever dies, a run goes on or stays paused."""

import json
import os
import time

import pytest
from helpers import steered
from helpers.steered import RATE, Killed, asks, killed, numbers, told, train

from stability.control import actions, run_control
from stability.storage import run_files, sweeps
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


@pytest.fixture(scope='module')
def plain(tmp_path_factory, data):
  """What a run gives that nobody steps in to."""
  (run,) = steered.write_sweep(tmp_path_factory.mktemp('plain') / 'sweep', data)
  with pytest.MonkeyPatch.context() as m:
    steered.share_layouts(m)
    train(run)
  return numbers(run)


HOSTILE = {
    'binary': b'\x00\xff\xfe\x80' * 40,
    'half': b'{"action": "set", "chan',
    'empty': b'',
    'number': b'7',
    'deep': b'[' * 100_000,
    'deep enough to parse': b'{"action":"set","changes":' + b'[' * 300 + b']' * 300 + b'}',
    'large': b'{"action": "stop", "why": "' + b'x' * 70_000 + b'"}',
    'huge number': b'{"action":"set","changes":{"optimizer.learning_rate":1' + b'0' * 400 + b'}}',
    'infinite': b'{"action":"set","changes":{"optimizer.learning_rate":1e999}}',
    'list of changes': b'{"action":"set","changes":["optimizer.eps"]}',
    'null': b'{"action":"set","changes":{"optimizer.eps":null}}',
    'true': b'{"action":"skip","steps":true}',
    'past 31 bits': b'{"action":"skip","steps":4294967296}',
    'all of the data': b'{"action":"skip","steps":2000000000}',
    'negative': b'{"action":"rewind","to":-6}',
    'name of a fork': b'{"action":"fork","name":"../../elsewhere"}',
    'file of a rewind': b'{"action":"rewind","to":0,"cut":"../config.json"}',
    'step of its own': b'{"action":"stop","step":"x","before":{}}',
    'steps as a step': b'{"action":"boom","step":"x","refused":"no"}',
    'who is no string': b'{"action":"stop","by":["root"]}',
}


def test_no_request_can_hurt_a_run(sweep, at, plain):
  (run,) = sweep()
  names = [f'{number:02}.json' for number in range(len(HOSTILE))]

  def write():
    (run / 'requests').mkdir()
    for name, content in zip(names, HOSTILE.values(), strict=True):
      (run / 'requests' / name).write_bytes(content)

  at(run, 8, write)
  train(run)
  assert numbers(run) == plain
  records = actions.read(run)
  assert [record['request'] for record in records] == names
  assert all(record['refused'] and record['step'] == 8 for record in records)
  assert actions.requests(run) == []
  assert (run / 'actions.jsonl').stat().st_size < 60_000
  assert all(isinstance(record['by'], str) for record in records)


def test_what_is_no_file_of_a_request_is_left_alone(sweep, at, plain):
  (run,) = sweep()
  strange = ['a folder.json', 'a pipe.json', 'nowhere.json']

  def write():
    folder = run / 'requests'
    (folder / strange[0]).mkdir(parents=True)
    os.mkfifo(folder / strange[1])
    (folder / strange[2]).symlink_to(run / 'no such file')
    (folder / '.half-written.json').write_text('{"action": "stop"}')
    (folder / 'notes.txt').write_text('stop')

  at(run, 8, write)
  train(run)
  assert numbers(run) == plain and not (run / 'actions.jsonl').exists()
  assert len(os.listdir(run / 'requests')) == 5


@pytest.mark.parametrize('content', [b'not a folder', None])
def test_no_folder_of_requests(sweep, plain, content):
  (run,) = sweep()
  if content is not None:
    (run / 'requests').write_bytes(content)
  train(run)
  assert numbers(run) == plain


def test_names_of_requests_may_be_anything(sweep, at, plain):
  (run,) = sweep()
  names = ['\n\x1b[31m.json', '-rf *.json', 'é\udcff.json', '$(touch x).json']

  def write():
    (run / 'requests').mkdir()
    for name in names:
      (run / 'requests' / name).write_text('{"action": "exec"}')

  at(run, 8, write)
  train(run)
  assert numbers(run) == plain
  assert {record['request'] for record in actions.read(run)} == set(names)


def test_a_request_that_cannot_be_removed_is_taken_once(sweep, at, monkeypatch):
  """The folder may be that of the person who asked first."""
  (run,) = sweep()
  at(run, 8, asks(run, 'skip', steps=3))
  monkeypatch.setattr(run_control.Path, 'unlink', lambda *a, **k: (_ for _ in ()).throw(OSError(1)))
  train(run)
  assert told(run) == [('skip', 8, 'ann')]
  assert run_files.read_result(run).status == 'done'
  assert len(actions.requests(run)) == 1 and actions.unanswered(run) == []


def test_two_requests_of_one_moment_are_taken_in_the_order_of_their_names(
    sweep, at, monkeypatch
):
  (run,) = sweep()
  monkeypatch.setattr(actions.time, 'time_ns', lambda: 7)
  paths = []

  def ask(rate, by):
    action = {'action': 'set', 'changes': {RATE: rate}}
    return lambda: paths.append((actions.request(run, action, by, ''), by, rate))

  at(run, 8, ask(3e-3, 'ann'), ask(5e-3, 'bob'), ask(7e-3, 'cid'))
  train(run)
  order = sorted(paths)
  assert [record['by'] for record in actions.read(run)] == [by for _, by, _ in order]
  before = [record['before']['hyperparameters'][RATE] for record in actions.read(run)]
  assert before == [1e-2, *(rate for _, _, rate in order[:2])]


def test_one_stops_what_another_would_change(sweep, at):
  """Both are answered: the one who comes second reads why nothing was done."""
  (run,) = sweep()
  at(
      run,
      8,
      lambda: actions.request(run, {'action': 'stop'}, 'ann', ''),
      lambda: actions.request(run, {'action': 'set', 'changes': {RATE: 1.0}}, 'bob', ''),
  )
  train(run)
  first, second = actions.read(run)
  assert (first['action'], first['by']) == ('stop', 'ann')
  assert (second['by'], second['refused']) == ('bob', 'the run has ended: stopped')
  assert actions.requests(run) == []


def test_two_who_pause_and_one_who_continues(sweep, at, plain):
  (run,) = sweep()
  at(run, 8, asks(run, 'pause'), asks(run, 'pause'))
  paused = train(run)
  assert train(run, paused=dict(paused)) == paused  # the second was refused while it was paused
  asks(run, 'continue')()
  asks(run, 'continue')()
  assert train(run, paused=paused) == {}
  assert numbers(run) == plain
  assert [record['action'] for record in actions.done(actions.read(run))] == ['pause', 'continue']
  refused = [record['refused'] for record in actions.read(run) if 'refused' in record]
  assert refused == ['pause: the run is paused already', 'continue: the run is not paused']


@pytest.mark.parametrize('ended', ['done', 'stopped', 'diverged'])
def test_an_action_for_a_run_that_has_ended(sweep, at, ended):
  (run,) = sweep([1e30] if ended == 'diverged' else [1e-2])
  if ended == 'stopped':
    at(run, 8, asks(run, 'stop'))
  finish = trainer.Trainer._finish

  def late(self):
    if any(member.is_over() for member in self._runs.values()):
      asks(run, 'set', changes={RATE: 1e-3})()
    finish(self)

  with pytest.MonkeyPatch.context() as m:
    m.setattr(trainer.Trainer, '_finish', late)
    train(run)
  refused = [record['refused'] for record in actions.read(run) if 'refused' in record]
  assert set(refused) == {f'the run has ended: {ended}'}
  assert run_files.read_result(run).status == ended
  assert actions.requests(run) == []


def test_a_worker_that_dies_while_its_run_is_paused(sweep, at, plain):
  """The run is paused at its next start, in its own right and for as long again."""
  paused_run, other = sweep([1e-2, 1e-3], **{'control.timeout_seconds': 1000})
  at(paused_run, 8, asks(paused_run, 'pause'))
  at(other, 12, killed)
  with pytest.raises(Killed):
    train(paused_run, other)
  assert run_files.read_result(paused_run) is None
  paused = train(paused_run, other)  # a new worker
  assert list(paused) == [paused_run.name]
  assert run_files.read_result(other).status == 'done'
  asks(paused_run, 'continue')()
  train(paused_run, paused=paused)
  assert numbers(paused_run) == plain
  assert told(paused_run) == [('pause', 8, 'ann'), ('continue', 8, 'ann')]


@pytest.mark.parametrize('moment', ['save', 'close'])
def test_killed_in_the_middle_of_a_pause(sweep, at, plain, moment):
  """The record is there, the checkpoint or what follows it is not."""
  (run,) = sweep()
  at(run, 8, asks(run, 'pause'))
  with pytest.MonkeyPatch.context() as m:
    if moment == 'save':
      save = run_lib.checkpoint.save
      m.setattr(run_lib.checkpoint, 'save', lambda *a: killed() if a[1] == 8 else save(*a))
    else:
      m.setattr(run_lib.MetricsWriter, 'close', lambda self, *rest: killed())
    with pytest.raises(Killed):
      train(run)
  paused = train(run)
  assert list(paused) == [run.name] and told(run) == [('pause', 8, 'ann')]
  asks(run, 'continue')()
  train(run, paused=paused)
  assert numbers(run) == plain


def test_while_it_waits_nothing_is_trained_and_the_files_stay(sweep, at):
  (run,) = sweep()
  at(run, 8, asks(run, 'pause'))
  paused = train(run)
  before = {path: path.read_bytes() for path in run.glob('*.jsonl')}
  workdir = run.parent.parent
  assert not trainer.is_answered(workdir, run.name, paused)
  assert before == {path: path.read_bytes() for path in run.glob('*.jsonl')}
  assert trainer.is_answered(workdir, run.name, {run.name: time.monotonic() - 1})
  asks(run, 'continue')()
  assert trainer.is_answered(workdir, run.name, paused)


def test_a_damaged_record_fails_its_run_alone_and_nothing_is_lost(sweep, at, plain):
  run, other = sweep([1e-2, 1e-3])
  at(run, 8, asks(run, 'pause'))
  train(run, other)
  whole = (run / 'actions.jsonl').read_bytes()
  (run / 'actions.jsonl').write_bytes(b'{"junk\n' + whole)
  workdir = run.parent.parent
  trainer.train_runs(workdir, sweeps.read_sweep(workdir), run.name, lambda: None, {})
  result = run_files.read_result(run)
  assert result.status == 'failed'
  (run / 'actions.jsonl').write_bytes(whole)
  waiting = sweeps.runs_to_train(workdir, {run.name: run_files.read_config(run)})
  assert list(waiting) == [run.name]
  assert list(train(run)) == [run.name]  # paused as it was


def test_half_a_record_was_never_done(sweep, at, plain):
  """It was being written when the machine went down: its request, if it is still there, counts."""
  (run,) = sweep()
  record = json.dumps({'action': 'stop', 'step': 8, 'by': 'ann', 'why': '', 'time': ''})
  (run / 'actions.jsonl').write_text(record[:30])
  train(run)
  assert numbers(run) == plain
