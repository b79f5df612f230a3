"""Requests and records on disk, and which actions are taken, without a run that trains."""

import os

import pytest

from configs import base
from stability import config as config_lib
from stability.control import actions, run_control
from stability.data.batches import MAX_EXAMPLES
from stability.errors import BadInput
from stability.storage import files

RATE = 'optimizer.learning_rate'
CONFIG = config_lib.unflatten(config_lib.resolve(config_lib.flatten(base.get_config().to_dict())))
STEP = 100

REFUSED = {
    'no such action': ({'action': 'exec'}, 'must be one of pause'),
    'no name at all': ({}, 'action None'),
    'name of a fork': ({'action': 'fork', 'name': '../x'}, "fork: takes no 'name'"),
    'field of another': ({'action': 'stop', 'to': 3}, "stop: takes no 'to'"),
    'bool as a number': ({'action': 'skip', 'steps': True}, 'steps True: must be a whole number'),
    'float': ({'action': 'skip', 'steps': 1.0}, 'steps 1.0: must be a whole number'),
    'negative': ({'action': 'skip', 'steps': -1}, 'steps -1: must be a whole number'),
    '32 bits': ({'action': 'rewind', 'to': 0, 'skip': 2**31}, 'skip 2147483648: must be'),
    'missing': ({'action': 'skip'}, 'steps None: must be a whole number'),
    'rewind ahead': ({'action': 'rewind', 'to': STEP + 1}, 'must not be above the present step'),
    'all data': ({'action': 'skip', 'steps': MAX_EXAMPLES // 16}, 'no data would be left'),
    'no changes': ({'action': 'set', 'changes': {}}, 'names no field'),
    'changes no dict': ({'action': 'fork', 'changes': [1]}, 'must be fields with their values'),
    'seed': ({'action': 'set', 'changes': {'seed': 1}}, 'config.seed: cannot be set'),
    'steps': ({'action': 'set', 'changes': {'schedule.steps': 9}}, 'cannot be set'),
    'turned on': ({'action': 'set', 'changes': {'objective.mu_loss': 0.1}}, 'without this term'),
    'infinite': ({'action': 'set', 'changes': {RATE: float('inf')}}, RATE),
    'huge': ({'action': 'set', 'changes': {RATE: 10**400}}, RATE),
    'null': ({'action': 'set', 'changes': {RATE: None}}, RATE),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_refused(case):
  asked, told = REFUSED[case]
  with pytest.raises(BadInput) as error:
    actions.check(asked, CONFIG, STEP, 0)
  assert told in str(error.value)


def test_a_term_that_is_there_cannot_be_turned_off():
  capped = actions.changed(CONFIG, {'model.attention_soft_cap': 30.0})
  asked = {'action': 'set', 'changes': {'model.attention_soft_cap': 0.0}}
  with pytest.raises(BadInput, match='built with this term'):
    actions.check(asked, capped, STEP, 0)


def test_what_is_taken_is_complete():
  check = lambda **asked: actions.check(asked, CONFIG, STEP, 0)  # noqa: E731
  assert check(action='rewind', to=STEP, by='ann') == {
      'action': 'rewind',
      'to': STEP,
      'changes': {},
  }
  assert check(action='skip', steps=0) == {'action': 'skip', 'steps': 0}
  assert check(action='fork') == {'action': 'fork', 'changes': {}}
  assert check(action='set', changes={RATE: 1})['changes'] == {RATE: 1.0}


def test_skips_add_up():
  asked = {'action': 'rewind', 'to': 0, 'skip': MAX_EXAMPLES // 32}
  assert actions.check(asked, CONFIG, STEP, 0)['skip'] == MAX_EXAMPLES // 32
  with pytest.raises(BadInput, match='no data would be left'):
    actions.check(asked, CONFIG, STEP, MAX_EXAMPLES // 32)
  assert actions.skipped([{'steps': 3}, {'skip': 4}, {'skip': None}, {'action': 'stop'}]) == 7


@pytest.mark.parametrize(
    ('names', 'paused'),
    [
        ('', False),
        ('pause', True),
        ('pause set fork', True),
        ('pause continue', False),
        ('pause rewind', False),
        ('pause stop', False),
        ('pause continue pause', True),
    ],
)
def test_who_is_paused(names, paused):
  assert actions.is_paused([{'action': name} for name in names.split()]) is paused


@pytest.fixture
def run(tmp_path):
  """The folder of a run that is asked for two things, in this order."""
  actions.request(tmp_path, {'action': 'pause'}, 'ann', 'lunch')
  actions.request(tmp_path, {'action': 'set', 'changes': {RATE: 1e-3}}, 'bob', '')
  return tmp_path


def opened(run, taken=0):
  return run_control.Control(run, CONFIG, 10, taken, lambda: [])


def test_requests_are_taken_in_order_and_once(run):
  one = opened(run)
  assert one.has_work(10, False)
  assert [one.next(10, False)['by'] for _ in range(2)] == ['ann', 'bob']
  assert one.next(10, False) is None and not one.has_work(10, False)
  assert actions.requests(run) == [] and one.is_paused
  assert [record['why'] for record in actions.read(run)] == ['lunch', '']
  before = [record['before'] for record in actions.read(run)]
  assert [b['paused'] for b in before] == [False, True]
  assert opened(run, 2).is_paused


def test_what_cannot_be_removed_is_answered_once(run, monkeypatch):
  with monkeypatch.context() as m:
    m.setattr(run_control.Path, 'unlink', lambda *a, **k: (_ for _ in ()).throw(PermissionError()))
    one = opened(run)
    assert [bool(one.next(10, False)) for _ in range(3)] == [True, True, False]
    assert not one.has_work(10, False)
    assert len(actions.requests(run)) == 2 and actions.unanswered(run) == []
    one.refuse_all(20, 'the run has ended')
    assert len(actions.read(run)) == 2
  actions.request(run, {'action': 'continue'}, 'ann', '')
  assert len(actions.unanswered(run)) == 1
  opened(run, 2)  # as after a crash between a record and the removal of its request
  assert len(actions.requests(run)) == 1


def test_who_comes_second_is_told_why(run):
  actions.request(run, {'action': 'pause'}, 'cid', '')
  actions.request(run, {'action': 'continue'}, 'cid', '')
  actions.request(run, {'action': 'continue'}, 'cid', '')
  one = opened(run)
  while one.next(10, False):
    pass
  refused = [record.get('refused') for record in actions.read(run)]
  assert refused == [
      *(None, None),
      'pause: the run is paused already',
      None,
      'continue: the run is not paused',
  ]


def test_a_refused_request_cannot_pass_for_another_record(run):
  asked = {'action': 'boom', 'step': 'x', 'by': 'eve', 'request': 'y', 'before': {}}
  files.write_json(run / 'requests' / '0.json', asked)
  one = opened(run)
  one.refuse_all(30, 'the run has ended: done')
  first = actions.read(run)[0]
  assert (first['step'], first['request'], first['by']) == (30, '0.json', 'eve')
  assert first['refused'] == 'the run has ended: done'
  assert actions.done(actions.read(run)) == []


def test_only_files_are_requests(run):
  folder = run / 'requests'
  (folder / 'a.json').mkdir()
  os.mkfifo(folder / 'b.json')
  (folder / 'c.json').symlink_to(run / 'nothing')
  for name in ('.d.json', 'e.txt'):
    (folder / name).write_text('{}')
  assert len(actions.requests(run)) == 2
  (run / 'other').mkdir()
  (run / 'other' / 'requests').write_text('no folder')
  assert actions.requests(run / 'other') == [] == actions.requests(run / 'none')


def test_a_request_must_say_what_it_is(tmp_path):
  path = tmp_path / 'x.json'
  for content, words in (
      (b'{"action": 1', 'not a request: Expecting'),
      (b'[]', 'must be a JSON object'),
      (b'{"by": 1}', 'by must be a string'),
      (b'{"a": [[[[1]]]]}', 'too many levels'),
      (b'"' + b'x' * 70_000 + b'"', 'larger than 65,536 bytes'),
  ):
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words):
      actions.read_request(path)
  path.write_bytes(b'{"changes": {"a": [1]}}')
  assert actions.read_request(path) == {'changes': {'a': [1]}}
