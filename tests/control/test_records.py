"""Records of actions on disk, and what they amount to."""

import pytest

from stability.control import records
from stability.control.actions import Action
from stability.control.records import Record
from stability.errors import BadInput
from stability.storage import files

RATE = 'optimizer.learning_rate'


def record(kind, step=10, **arguments):
  return Record(step, Action(kind, **arguments), by='ann', why='')


JSON = [
    {
        'step': 10,
        'action': 'rewind',
        'to': 0,
        'changes': {RATE: 0.1},
        'cut': 'metrics.before_action_1.jsonl',
        'by': 'policy',
        'why': 'a spike',
        'time': '2024-01-01T00:00:00Z',
        'before': {'step': 10, 'loss': 2.0},
    },
    {
        'step': 12,
        'action': 'stop',
        'by': 'ann',
        'why': '',
        'time': '2024-01-01T00:00:00Z',
        'request': '1.json',
        'before': {},
    },
    {
        'action': 'boom',
        'name': ['anything'],
        'by': 'eve',
        'why': '',
        'time': '',
        'step': 14,
        'request': '2.json',
        'refused': 'no such action',
    },
]


@pytest.mark.parametrize('found', JSON, ids=['automatic', 'requested', 'refused'])
def test_json(found):
  assert Record.from_json(found).to_json() == found


def test_read_and_append(tmp_path):
  assert records.read_records(tmp_path) == []
  written = [Record.from_json(found) for found in JSON]
  for one in written:
    records.append_record(tmp_path, one)
  assert records.read_records(tmp_path) == written
  assert records.read_taken(tmp_path) == written[:2]
  assert [str(one) for one in written] == [
      f'rewind 0 {RATE}=0.1',
      'stop',
      'boom, refused: no such action',
  ]


@pytest.mark.parametrize(
    'change',
    [
        {'step': 'x'},
        {'step': True},
        {'by': None},
        {'time': []},
        {'action': 'exec'},
        {'to': -1},
        {'changes': {RATE: 'high'}},
        {'cut': '../config.json'},
        {'cut': None},
        {'action': 'fork', 'name': '..'},
        {'action': 'fork'},
    ],
    ids=str,
)
def test_damaged_record_is_refused(tmp_path, change):
  files.write_lines(tmp_path / records.FILE, [JSON[0], JSON[0] | change])
  with pytest.raises(BadInput, match=r'actions.jsonl, line 2: damaged: '):
    records.read_records(tmp_path)


@pytest.mark.parametrize(
    ('kinds', 'paused'),
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
def test_is_paused(kinds, paused):
  assert records.is_paused([record(kind) for kind in kinds.split()]) is paused


def test_skipped_steps():
  taken = [record('skip', steps=3), record('rewind', skip=4), record('rewind'), record('stop')]
  assert records.skipped_steps(taken) == 7


def test_current_config():
  config = {'optimizer': {'learning_rate': 1.0}}
  taken = [record('set', changes={RATE: 0.5}), record('fork', changes={RATE: 0.1})]
  assert records.current_config(config, taken) == {'optimizer': {'learning_rate': 0.5}}


def test_saved_steps():
  saved = [record('checkpoint', step=step) for step in (20, 40, 60)]
  assert records.saved_steps(saved) == {20, 40, 60}
  assert records.saved_steps([*saved, record('rewind', step=70, to=30)]) == {20, 30}
