"""Files: atomic writes, valid JSON, and JSON lines of which the last may be torn."""

import json
import math
import os
import re
import tracemalloc

import pytest

from stability.errors import BadInput
from stability.storage import files


def test_write_is_atomic(tmp_path):
  path = tmp_path / 'file.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(path, {'a': object()})
  with pytest.raises(TypeError):
    files.write_atomic(path, None)
  assert json.loads(path.read_text()) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['file.json']


def test_only_temporaries_are_removed(tmp_path, monkeypatch):
  written = ['metrics.jsonl', 'metrics.before_action_2.jsonl', 'config.json']
  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', lambda old, new: None)  # the process is killed before it
    for name in written:
      files.write_atomic(tmp_path / name, 'x')
  left = [path.name for path in tmp_path.iterdir()]
  assert len(left) == 3 and all(files.is_temporary(tmp_path / name) for name in left)
  others = [
      *('.config.json.20261130', '.metrics.jsonl.tmp', '.metrics.jsonl.12345678.tmp2'),
      *('metrics.jsonl', '.notes.12345678.tmp', '.metrics.jsonl.1234567g.tmp'),
  ]
  for name in others:
    (tmp_path / name).touch()
  (tmp_path / '.metrics.jsonl.12345678.tmp').mkdir()
  (tmp_path / '.metrics.jsonl.87654321.tmp').symlink_to(tmp_path / 'metrics.jsonl')
  kept = {path.name for path in tmp_path.iterdir()} - {
      name for name in left if name.startswith('.metrics')
  }
  files.remove_temporaries(tmp_path, 'metrics*.jsonl', 'result.json')
  assert {path.name for path in tmp_path.iterdir()} == kept and len(kept) == len(others) + 3
  files.remove_temporaries(tmp_path / 'missing', '*')


@pytest.mark.parametrize('mask, mode', [(0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask(tmp_path, mask, mode):
  before = os.umask(mask)
  try:
    files.write_atomic(tmp_path / 'folder' / 'file', 'text')
  finally:
    os.umask(before)
  assert (tmp_path / 'folder' / 'file').stat().st_mode & 0o777 == mode
  assert (tmp_path / 'folder').stat().st_mode & 0o777 == mode | (mode & 0o444) >> 2


def test_lone_surrogates_are_escaped(tmp_path):
  files.write_atomic(tmp_path / 'x', 'a\ud800')
  assert (tmp_path / 'x').read_text() == 'a\\ud800'


def test_nonfinite_numbers_become_null(tmp_path):
  files.write_json(tmp_path / 'x', {'a': [math.nan, 1.5], 'b': {'c': -math.inf}})
  assert files.read_json(tmp_path / 'x') == {'a': [None, 1.5], 'b': {'c': None}}


def test_deep_values_are_refused():
  value = []
  for _ in range(101):
    value = [value]
  with pytest.raises(ValueError, match='nested too deeply'):
    files.nonfinite_to_null(value)


@pytest.mark.parametrize('content', ['{"a"', '[1]', '[' * 100_000, None])
def test_unreadable_json(tmp_path, content):
  if content:
    (tmp_path / 'x').write_text(content)
  with pytest.raises(BadInput, match='x: cannot be read: '):
    files.read_json(tmp_path / 'x')


def test_check_types():
  types = {'a': int, 'b': str, 'c': dict}
  files.check_types({'a': 1, 'b': '', 'c': {}, 'd': None}, types)
  for change in ({'a': True}, {'a': 1.0}, {'b': None}, {'c': []}):
    with pytest.raises(BadInput, match=f'{next(iter(change))} must be '):
      files.check_types({'a': 1, 'b': '', 'c': {}} | change, types)


def test_timestamp():
  assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', files.timestamp())


# JSON lines.


def test_torn_last_line_is_ignored(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"step": 10}\n{"step": 20}\n{"step": 3')
  assert files.read_lines(path) == [{'step': 10}, {'step': 20}]
  assert files.read_last_line(path) == {'step': 20}


@pytest.mark.parametrize('before', [0, 1, 300])
@pytest.mark.parametrize('after', ['', '{"st', '{"step": "' + 300_000 * 'y'])
def test_last_line_that_is_long(tmp_path, before, after):
  """Such as a row with the probes of many blocks."""
  last = {'probes': 400_000 * 'x'}
  files.write_lines(tmp_path / 'x.jsonl', [*({'step': n} for n in range(before)), last])
  with (tmp_path / 'x.jsonl').open('a') as file:
    file.write(after)
  assert files.read_last_line(tmp_path / 'x.jsonl') == last


def test_no_lines(tmp_path):
  path = tmp_path / 'x.jsonl'
  assert files.read_lines(path) == [] and files.read_last_line(path) is None
  files.filter_lines(path, lambda line: True)
  assert not path.exists()
  path.write_text('{"st')
  assert files.read_lines(path) == [] and files.read_last_line(path) is None


def test_write_and_append(tmp_path):
  path = tmp_path / 'x.jsonl'
  files.write_lines(path, [{'a': 1}, {'a': math.nan}])
  files.append_line(path, {'a': 3})
  assert path.read_text() == '{"a": 1}\n{"a": null}\n{"a": 3}\n'


def test_filter_drops_torn_line(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"st')
  files.filter_lines(path, lambda line: line['step'] <= 20)
  assert path.read_text() == '{"step": 10}\n{"step": 20}\n'


def test_filter_takes_memory_for_one_line(tmp_path):
  path = tmp_path / 'x.jsonl'
  files.write_lines(path, ({'step': step, 'text': 'x' * 1_000} for step in range(3_000)))
  tracemalloc.start()
  files.filter_lines(path, lambda line: line['step'] < 2_000)
  steps = [line['step'] for line in files.iterate_lines(path)]
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert steps == list(range(2_000)) and peak < path.stat().st_size / 4


def test_damaged_line_is_named(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"step": 10}\n[3]\n')
  with pytest.raises(BadInput, match=r'x.jsonl, line 2: damaged: is not a JSON object'):
    files.read_lines(path)

  def parse(line):
    raise BadInput('no such step')

  path.write_text('{"step": 10}\n')
  with pytest.raises(BadInput, match=r'x.jsonl, line 1: damaged: no such step'):
    files.parse_lines(path, parse)
