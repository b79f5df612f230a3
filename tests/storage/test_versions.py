"""What trained a run is known: its code, by its sources, and the libraries."""

import json
import pathlib
import shutil

from helpers import made_up

import stability
from launch.common import start
from stability.storage import versions


def test_the_hash_of_the_code_follows_its_sources_alone(tmp_path):
  code = tmp_path / 'code'
  shutil.copytree(
      pathlib.Path(stability.__file__).parent, code, ignore=shutil.ignore_patterns('__pycache__')
  )
  before = versions._code(code)
  assert before == versions.current()['stability code'] and len(before) == 12
  (code / '__pycache__').mkdir()
  (code / '__pycache__' / 'train.cpython-311.pyc').write_bytes(b'compiled')
  (code / 'notes.txt').write_text('not code')
  assert versions._code(code) == before
  hashes = {before}
  batches = code / 'data' / 'batches.py'
  batches.write_text(batches.read_text().replace('_ROUNDS = 6', '_ROUNDS = 4'))
  hashes.add(versions._code(code))
  batches.rename(code / 'batches.py')
  hashes.add(versions._code(code))
  assert len(hashes) == 3


def test_what_differs_is_named():
  before = {'jax': '0.10.2', 'numpy': '2.0', 'gone': '1'}
  now = {'jax': '0.11.0', 'numpy': '2.0', 'new': '3'}
  assert versions.changes(before, now) == [
      'jax 0.10.2 -> 0.11.0', 'gone 1 -> none', 'new unknown -> 3'
  ]  # fmt: skip
  assert versions.changes(now, now) == []


def test_a_run_has_a_line_wherever_its_versions_change(tmp_path, monkeypatch):
  def goes_on(step, jax):
    monkeypatch.setattr(versions, 'current', lambda: {'jax': jax})
    versions.note(tmp_path, step)
    lines = (tmp_path / 'versions.jsonl').read_text().splitlines()
    return [(line['step'], line['versions']['jax']) for line in map(json.loads, lines)]

  assert goes_on(0, 'a') == [(0, 'a')]
  assert goes_on(10, 'a') == [(0, 'a')]
  assert goes_on(20, 'b') == [(0, 'a'), (20, 'b')]
  assert goes_on(30, 'c') == [(0, 'a'), (20, 'b'), (30, 'c')]
  # Back at an earlier checkpoint: what b and c trained is gone.
  assert goes_on(20, 'c') == [(0, 'a'), (20, 'c')]
  assert goes_on(10, 'a') == [(0, 'a')]
  assert goes_on(0, 'b') == [(0, 'b')]


def test_a_start_with_other_versions_is_warned_of_once_and_recorded(tmp_path, capsys):
  now = versions.current()
  assert start._versions(tmp_path / 'new', ['a run']) == now
  made_up.write_sweep(tmp_path)
  path = tmp_path / 'sweep.json'
  sweep = json.loads(path.read_text())
  sweep['versions'] = now | {'jax': '0.0.1', 'stability code': 'abc'}
  path.write_text(json.dumps(sweep))
  # Nothing is left to train: those that trained it stay.
  assert start._versions(tmp_path, []) == sweep['versions']
  assert not capsys.readouterr().err
  assert start._versions(tmp_path, ['a run', 'another']) == now
  said = capsys.readouterr().err
  assert said.startswith('warning: ') and said.count('\n') == 1
  assert f'stability code abc -> {now["stability code"]}, jax 0.0.1 -> {now["jax"]}' in said
  path.write_text(json.dumps(sweep | {'versions': now}))
  assert start._versions(tmp_path, ['a run']) == now and not capsys.readouterr().err
