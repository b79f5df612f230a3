"""Faults around actions: hostile requests, deaths of the worker, damaged records."""

import json
import os
import time
from pathlib import Path

import pytest
from helpers import training
from helpers.training import RATE, Killed, Training, asks, kill, numbers, taken
from orbax.checkpoint import v1 as ocp
from tensorboardX.event_file_writer import EventsWriter

from stability.control import records, requests
from stability.control.actions import Action
from stability.storage import run_files, sweeps
from stability.trainer.paused import PausedRuns

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def plain(tmp_path_factory, data):
  """The numbers of a run without actions."""
  (run,) = training.write_sweep(tmp_path_factory.mktemp('plain') / 'sweep', data)
  Training()(run)
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


def test_hostile_requests(sweep, train, plain):
  (run,) = sweep()
  names = [f'{number:02}.json' for number in range(len(HOSTILE))]

  def write():
    (run / 'requests').mkdir()
    for name, content in zip(names, HOSTILE.values(), strict=True):
      (run / 'requests' / name).write_bytes(content)

  train.at(run, 8, write)
  train(run)
  assert numbers(run) == plain
  answers = records.read_records(run)
  assert [record.request for record in answers] == names
  assert all(record.refused and record.step == 8 for record in answers)
  assert requests.request_files(run) == []
  assert (run / 'actions.jsonl').stat().st_size < 60_000
  assert all(isinstance(record.by, str) for record in answers)


def test_files_that_are_not_requests(sweep, train, plain):
  (run,) = sweep()
  strange = ['a folder.json', 'a pipe.json', 'nowhere.json']

  def write():
    folder = run / 'requests'
    (folder / strange[0]).mkdir(parents=True)
    os.mkfifo(folder / strange[1])
    (folder / strange[2]).symlink_to(run / 'no such file')
    (folder / '.half-written.json').write_text('{"action": "stop"}')
    (folder / 'notes.txt').write_text('stop')

  train.at(run, 8, write)
  train(run)
  assert numbers(run) == plain and not (run / 'actions.jsonl').exists()
  assert len(os.listdir(run / 'requests')) == 5


@pytest.mark.parametrize('content', [b'not a folder', None])
def test_no_requests_folder(sweep, plain, content, train):
  (run,) = sweep()
  if content is not None:
    (run / 'requests').write_bytes(content)
  train(run)
  assert numbers(run) == plain


def test_strange_names(sweep, train, plain):
  (run,) = sweep()
  names = ['\n\x1b[31m.json', '-rf *.json', 'é\udcff.json', '$(touch x).json']

  def write():
    (run / 'requests').mkdir()
    for name in names:
      (run / 'requests' / name).write_text('{"action": "exec"}')

  train.at(run, 8, write)
  train(run)
  assert numbers(run) == plain
  assert {record.request for record in records.read_records(run)} == set(names)


def test_irremovable_request(sweep, train, monkeypatch):
  """The folder may belong to another user."""
  (run,) = sweep()
  train.at(run, 8, asks(run, 'skip', steps=3))

  def refused(*arguments, **options):
    raise PermissionError

  monkeypatch.setattr(Path, 'unlink', refused)
  train(run)
  assert taken(run) == [('skip', 8, 'ann')]
  assert run_files.read_result(run).status == 'done'
  assert len(requests.request_files(run)) == 1 and requests.unanswered(run) == []


def test_simultaneous_requests(sweep, train, monkeypatch):
  """Requests of one moment are applied in the order of their names."""
  (run,) = sweep()
  monkeypatch.setattr(time, 'time_ns', lambda: 7)
  paths = []

  def ask(rate, by):
    action = Action('set', changes={RATE: rate})
    return lambda: paths.append((requests.write_request(run, action, by, ''), by, rate))

  train.at(run, 8, ask(3e-3, 'ann'), ask(5e-3, 'bob'), ask(7e-3, 'cid'))
  train(run)
  order = sorted(paths)
  assert [record.by for record in records.read_records(run)] == [by for _, by, _ in order]
  before = [record.before['hyperparameters'][RATE] for record in records.read_records(run)]
  assert before == [1e-2, *(rate for _, _, rate in order[:2])]


def test_request_after_stop(sweep, train):
  """Both are answered; the second record says why nothing was done."""
  (run,) = sweep()
  train.at(
      run,
      8,
      lambda: requests.write_request(run, Action('stop'), 'ann', ''),
      lambda: requests.write_request(run, Action('set', changes={RATE: 1.0}), 'bob', ''),
  )
  train(run)
  first, second = records.read_records(run)
  assert (first.action.kind, first.by) == ('stop', 'ann')
  assert (second.by, second.refused) == ('bob', 'the run has ended: stopped')
  assert requests.request_files(run) == []


def test_repeated_pause_and_continue(sweep, train, plain):
  (run,) = sweep()
  train.at(run, 8, asks(run, 'pause'), asks(run, 'pause'))
  paused = train(run)
  before = dict(paused.deadlines)
  assert train(run, paused=paused).deadlines == before  # the second pause is refused here
  asks(run, 'continue')()
  asks(run, 'continue')()
  assert train(run, paused=paused).deadlines == {}
  assert numbers(run) == plain
  assert [record.action.kind for record in records.read_taken(run)] == ['pause', 'continue']
  refused = [record.refused for record in records.read_records(run) if record.refused]
  assert refused == ['pause: the run is paused already', 'continue: the run is not paused']


@pytest.mark.parametrize('ended', ['done', 'stopped', 'diverged'])
def test_request_after_end(sweep, train, ended):
  (run,) = sweep([1e30] if ended == 'diverged' else [1e-2])
  if ended == 'stopped':
    train.at(run, 8, asks(run, 'stop'))
  train.when_over(asks(run, 'set', changes={RATE: 1e-3}))
  train(run)
  refused = [record.refused for record in records.read_records(run) if record.refused]
  assert set(refused) == {f'the run has ended: {ended}'}
  assert run_files.read_result(run).status == ended
  assert requests.request_files(run) == []


def test_death_while_paused(sweep, train, plain):
  """The next worker finds the run paused."""
  paused_run, other = sweep([1e-2, 1e-3], **{'control.timeout_seconds': 1000})
  train.at(paused_run, 8, asks(paused_run, 'pause'))
  train.at(other, 12, kill)
  with pytest.raises(Killed):
    train(paused_run, other)
  assert run_files.read_result(paused_run) is None
  paused = train(paused_run, other)  # a new worker
  assert list(paused.deadlines) == [paused_run.name]
  assert run_files.read_result(other).status == 'done'
  asks(paused_run, 'continue')()
  train(paused_run, paused=paused)
  assert numbers(paused_run) == plain
  assert taken(paused_run) == [('pause', 8, 'ann'), ('continue', 8, 'ann')]


@pytest.mark.parametrize('moment', ['save', 'close'])
def test_death_during_pause(sweep, train, plain, monkeypatch, moment):
  """The record is on disk; the checkpoint is not, or the files are not closed."""
  (run,) = sweep()
  with monkeypatch.context() as patch:

    def die():
      place = ocp if moment == 'save' else EventsWriter
      patch.setattr(place, moment, lambda *arguments: kill())

    train.at(run, 8, asks(run, 'pause'), die)
    with pytest.raises(Killed):
      train(run)
  paused = train(run)
  assert list(paused.deadlines) == [run.name] and taken(run) == [('pause', 8, 'ann')]
  asks(run, 'continue')()
  train(run, paused=paused)
  assert numbers(run) == plain


def test_ready(sweep, train):
  (run,) = sweep()
  train.at(run, 8, asks(run, 'pause'))
  paused = train(run)
  before = {path: path.read_bytes() for path in run.glob('*.jsonl')}
  assert paused.ready() == []
  assert before == {path: path.read_bytes() for path in run.glob('*.jsonl')}
  past = time.perf_counter() - 1
  assert PausedRuns(paused.workdir, deadlines={run.name: past}).ready() == [run.name]
  asks(run, 'continue')()
  assert paused.ready() == [run.name]


def test_damaged_record(sweep, train):
  run, other = sweep([1e-2, 1e-3])
  train.at(run, 8, asks(run, 'pause'))
  train(run, other)
  whole = (run / 'actions.jsonl').read_bytes()
  (run / 'actions.jsonl').write_bytes(b'{"junk\n' + whole)
  train(run, may_fail=True)
  result = run_files.read_result(run)
  assert result.status == 'failed'
  (run / 'actions.jsonl').write_bytes(whole)
  waiting = sweeps.runs_to_train(run.parents[1], {run.name: run_files.read_config(run)})
  assert list(waiting) == [run.name]
  assert list(train(run).deadlines) == [run.name]


def test_torn_record(sweep, train, plain):
  """An action whose record is incomplete was not applied; its request, if it remains, counts."""
  (run,) = sweep()
  record = json.dumps({'action': 'stop', 'step': 8, 'by': 'ann', 'why': '', 'time': ''})
  (run / 'actions.jsonl').write_text(record[:30])
  train(run)
  assert numbers(run) == plain
