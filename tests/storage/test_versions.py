"""Versions of the code and the libraries that train runs."""

import json
import pathlib
import shutil

from helpers import made_up

import stability
from launch.common import start
from stability import settings
from stability.storage import files, sweeps, versions


def test_code_hash_depends_on_sources_alone(tmp_path):
  code = tmp_path / 'code'
  shutil.copytree(
      pathlib.Path(stability.__file__).parent, code, ignore=shutil.ignore_patterns('__pycache__')
  )
  before = versions._hash_sources(code)
  assert before == versions.current()['stability code'] and len(before) == 12
  (code / '__pycache__').mkdir()
  (code / '__pycache__' / 'train.cpython-311.pyc').write_bytes(b'compiled')
  (code / 'notes.txt').write_text('not code')
  assert versions._hash_sources(code) == before
  hashes = {before}
  batches = code / 'data' / 'batches.py'
  batches.write_text(batches.read_text().replace('_ROUNDS = 6', '_ROUNDS = 4'))
  hashes.add(versions._hash_sources(code))
  batches.rename(code / 'batches.py')
  hashes.add(versions._hash_sources(code))
  assert len(hashes) == 3


def test_changes():
  before = {'jax': '0.10.2', 'numpy': '2.0', 'gone': '1'}
  now = {'jax': '0.11.0', 'numpy': '2.0', 'new': '3'}
  assert versions.changes(before, now) == [
      'jax 0.10.2 -> 0.11.0', 'gone 1 -> none', 'new unknown -> 3'
  ]  # fmt: skip
  assert versions.changes(now, now) == []


def test_record(tmp_path):
  def resume(step, jax):
    versions.record(tmp_path, step, {'jax': jax})
    lines = (tmp_path / 'versions.jsonl').read_text().splitlines()
    return [(line['step'], line['versions']['jax']) for line in map(json.loads, lines)]

  assert resume(0, 'a') == [(0, 'a')]
  assert resume(10, 'a') == [(0, 'a')]
  assert resume(20, 'b') == [(0, 'a'), (20, 'b')]
  assert resume(30, 'c') == [(0, 'a'), (20, 'b'), (30, 'c')]
  # Resumed from an earlier checkpoint: the updates of c, then of b, are made again.
  assert resume(20, 'c') == [(0, 'a'), (20, 'c')]
  assert resume(10, 'a') == [(0, 'a')]
  assert resume(0, 'b') == [(0, 'b')]


def test_record_of_options(tmp_path):
  def resume(step, **options):
    versions.record(tmp_path, step, {'jax': 'a'}, options)
    lines = (tmp_path / 'versions.jsonl').read_text().splitlines()
    return [(line['step'], line.get('options')) for line in map(json.loads, lines)]

  assert resume(0) == [(0, None)]
  assert resume(10, log=5) == [(0, None), (10, {'log': 5})]
  assert resume(20, log=5) == [(0, None), (10, {'log': 5})]
  assert resume(30) == [(0, None), (10, {'log': 5}), (30, None)]


def test_record_of_device(tmp_path, monkeypatch):
  """A resume on another device adds a line; lines from before it was recorded are kept."""
  assert settings.device() == {'platform': 'cpu', 'kind': 'cpu'}

  def resume(step, platform):
    monkeypatch.setattr(settings, 'device', lambda: {'platform': platform, 'kind': 'x'})
    versions.record(tmp_path, step, {'jax': 'a'})
    lines = files.read_lines(tmp_path / 'versions.jsonl')
    return [(line['step'], line.get('device', {}).get('platform')) for line in lines]

  versions.record(tmp_path, 0, {'jax': 'a'}, trained_on={})
  assert resume(10, 'gpu') == [(0, None), (10, 'gpu')]
  assert resume(20, 'gpu') == [(0, None), (10, 'gpu')]
  assert resume(20, 'cpu') == [(0, None), (10, 'gpu'), (20, 'cpu')]


def test_record_of_runs(tmp_path):
  """The number that a run began with counts, and is unknown in older lines."""
  assert versions.runs(tmp_path) is None
  versions.record(tmp_path, 0, {'jax': 'a'})
  assert versions.runs(tmp_path) is None
  for step, runs, expected in ((0, 7, 7), (10, 2, 7), (0, 2, 2)):
    versions.record(tmp_path, step, {'jax': 'b'}, runs=runs)
    assert versions.runs(tmp_path) == expected
  versions.record(tmp_path, 5, {'jax': 'b'}, runs=2)
  versions.record(tmp_path, 10, {'jax': 'b'}, runs=7)
  lines = files.read_lines(tmp_path / 'versions.jsonl')
  assert [(line['step'], line['runs']) for line in lines] == [(0, 2), (10, 7)]
  assert versions.runs(tmp_path) == 2


def to_record(workdir, unfinished):
  """The versions that a start of the sweep in a folder records."""
  return start._versions(workdir, sweeps.find_sweep(workdir), unfinished)


def test_start_with_other_versions(tmp_path, capsys):
  now = versions.current()
  assert to_record(tmp_path / 'new', ['a run']) == now
  made_up.write_sweep(tmp_path)
  path = tmp_path / 'sweep.json'
  sweep = json.loads(path.read_text())
  sweep['versions'] = now | {'jax': '0.0.1', 'stability code': 'abc'}
  path.write_text(json.dumps(sweep))
  # Nothing is left to train: the versions that trained the sweep stay.
  assert to_record(tmp_path, []) == sweep['versions']
  assert not capsys.readouterr().err
  assert to_record(tmp_path, ['a run', 'another']) == now
  said = capsys.readouterr().err
  assert said.startswith('warning: ') and said.count('\n') == 1
  assert f'stability code abc -> {now["stability code"]}, jax 0.0.1 -> {now["jax"]}' in said
  path.write_text(json.dumps(sweep | {'versions': now}))
  assert to_record(tmp_path, ['a run']) == now and not capsys.readouterr().err


def test_start_with_other_settings(tmp_path, capsys, monkeypatch):
  made_up.write_sweep(tmp_path)
  path = tmp_path / 'sweep.json'
  sweep = json.loads(path.read_text())
  path.write_text(json.dumps(sweep | {'versions': versions.current()}))
  assert to_record(tmp_path, ['a run']) and not capsys.readouterr().err
  monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '0')
  assert to_record(tmp_path, ['a run'])['NVIDIA_TF32_OVERRIDE'] == '0'
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert 'with other versions or settings: NVIDIA_TF32_OVERRIDE unset -> 0;' in said
