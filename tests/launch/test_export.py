"""launch.export on a made-up sweep, read back with the packages of the tools."""

import collections
import errno
import importlib.util
import json
import math
import os
import pathlib
import struct
import sys
import types

import pytest
from helpers import made_up

from launch import export, import_runs
from launch.common import app
from stability import config as config_lib
from stability.storage import files, run_files

OUTCOMES = ('done', 'diverged', 'failed', 'stopped')


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
  """A sweep with a run of each outcome and one that has not ended."""
  folder = tmp_path / 'sweep'
  names = made_up.write_sweep(folder, widths=(16,), seeds=(0,), rates=(1e-3, 1e-2, 1e-1))[:5]
  for name, status in zip(names, OUTCOMES, strict=False):
    run = run_files.run_dir(folder, name)
    result = json.loads((run / 'result.json').read_text()) | {'status': status}
    if status == 'diverged':
      result['final_loss'] = None
      rows = files.read_lines(run / 'metrics.jsonl')
      rows[-1]['loss'] = None
      files.write_lines(run / 'metrics.jsonl', rows)
    if status == 'failed':
      result |= {'final_loss': None, 'error': 'Traceback\nValueError: no'}
    files.write_json(run / 'result.json', result)
  (run_files.run_dir(folder, names[4]) / 'result.json').unlink()
  return folder


def run(workdir, to, output) -> int:
  arguments = [f'--workdir={workdir}', f'--to={to}', f'--output={output}']
  return app.execute(export.main, export.FLAGS, ['export', *arguments])


def runs_of(workdir) -> dict[str, run_files.Result]:
  paths = sorted(path.parent for path in workdir.glob('runs/*/result.json'))
  return {path.name: run_files.read_result(path) for path in paths}


def same(one: float, other: float | None) -> bool:
  return one == other or (math.isnan(one) and other is None)


@pytest.mark.parametrize('to', ['wandb', 'mlflow'])
@pytest.mark.parametrize('origin', [None, 'folder'])
def test_missing_package(to, origin, workdir, tmp_path, monkeypatch, capsys):
  """Not even a folder of the package's name, which W&B makes, stands for the package."""
  spec = None if origin is None else importlib.util.spec_from_loader(to, None)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
  assert run(workdir, to, tmp_path / 'out') == 2
  error = f"error: --to={to}: needs the package {to}: pip install -e '.[{to}]'\n"
  assert capsys.readouterr().err == error
  assert not (tmp_path / 'out').exists()


def test_bad_input(workdir, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(export, '_check_installed', lambda package: None)
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/file').touch()
  (tmp_path / 'file').touch()
  for to, folder, output, message in (
      ('csv', workdir, 'out', '--to=csv'),
      ('wandb', tmp_path, 'out', 'holds no sweep'),
      ('wandb', workdir, 'full', 'is not an empty folder; choose a new one'),
      ('mlflow', workdir, 'file', 'is not an empty folder; choose a new one'),
  ):
    assert run(folder, to, tmp_path / output) == 2
    assert message in capsys.readouterr().err
  for path in workdir.glob('runs/*/result.json'):
    path.unlink()
  assert run(workdir, 'wandb', tmp_path / 'out') == 2
  assert 'none of its 6 runs has ended' in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'full', 'sweep']


def test_damaged_run(workdir, tmp_path, monkeypatch, capsys):
  """Nothing is left of an export that fails."""

  def write(runs, folder, final):
    (folder / 'first').touch()
    list(runs)

  monkeypatch.setattr(export, '_check_installed', lambda package: None)
  monkeypatch.setattr(export.FORMATS['wandb'], 'write', write)
  metrics = sorted(workdir.glob('runs/*/metrics.jsonl'))[-1]
  metrics.write_text('{\n')
  assert run(workdir, 'wandb', tmp_path / 'out') == 2
  assert str(metrics) in capsys.readouterr().err

  def refuse(path):
    raise PermissionError(errno.EACCES, 'Permission denied', str(metrics))

  monkeypatch.setattr(files, 'read_lines', refuse)
  assert run(workdir, 'wandb', tmp_path / 'out') == 2
  assert capsys.readouterr().err == f'error: {metrics}: cannot be read: Permission denied\n'
  assert [path.name for path in tmp_path.iterdir()] == ['sweep']


@pytest.mark.parametrize('to, error', [('wandb', 'errors.Error'), ('mlflow', 'MlflowException')])
def test_refusal_of_the_package(to, error, workdir, tmp_path, monkeypatch, capsys):
  """One line, and nothing is left."""
  refused = type(error, (Exception,), {})

  def refuse(*_, **__):
    raise refused('the name is too long')

  stand_in = types.SimpleNamespace(
      errors=types.SimpleNamespace(Error=refused),
      Settings=dict,
      init=refuse,
      teardown=lambda: None,
      exceptions=types.SimpleNamespace(MlflowException=refused),
      MlflowClient=refuse,
      entities=types.SimpleNamespace(Metric=None, Param=None),
  )
  monkeypatch.setitem(sys.modules, to, stand_in)
  monkeypatch.setitem(sys.modules, f'{to}.entities', stand_in.entities)
  monkeypatch.setattr(export, '_check_installed', lambda package: None)
  assert run(workdir, to, tmp_path / 'out') == 2
  assert capsys.readouterr().err == f'error: --to={to}: the name is too long\n'
  assert [path.name for path in tmp_path.iterdir()] == ['sweep']


def test_names_and_times_in_mlflow(workdir, tmp_path, monkeypatch):
  """Names have only characters that MLflow allows and differ; seconds that are unknown are 0."""
  batches = []

  class Client:
    def __init__(self, tracking_uri):
      self.folder = pathlib.Path(tracking_uri.removeprefix('file://'))

    def create_experiment(self, *_, **__):
      (self.folder / '0').mkdir(parents=True)

    def create_run(self, *_, **__):
      return types.SimpleNamespace(info=types.SimpleNamespace(run_id='id'))

    def log_batch(self, _, params=(), metrics=()):
      batches.append((params, metrics))

    def set_terminated(self, *_, **__):
      pass

  entities = types.SimpleNamespace(
      Metric=collections.namedtuple('Metric', 'key value timestamp step'),
      Param=collections.namedtuple('Param', 'key value'),
  )
  exceptions = types.SimpleNamespace(MlflowException=ValueError)
  stand_in = types.SimpleNamespace(MlflowClient=Client, entities=entities, exceptions=exceptions)
  monkeypatch.setitem(sys.modules, 'mlflow', stand_in)
  monkeypatch.setitem(sys.modules, 'mlflow.entities', entities)
  monkeypatch.setattr(export, '_check_installed', lambda package: None)
  names = ['QK norm? (on/off)', 'a?', 'a_', 'a!', '/b', '../c']
  for folder in workdir.glob('runs/*'):
    files.write_json(folder / 'config.json', dict.fromkeys(names, 1))
    row = {'step': 5, 'seconds': None, 'a?': 1.0, 'a!': 2.0}
    files.write_lines(folder / 'metrics.jsonl', [row])
  assert run(workdir, 'mlflow', tmp_path / 'out') == 0
  (params, _), (_, metrics), *_ = batches
  assert [name for name, _ in params] == ['QK norm_ _on/off_', 'a_', 'a__2', 'a__3', '_b', '__c']
  time = metrics[0][2]
  assert [(name, at, step) for name, _, at, step in metrics[:3]] == [
      ('seconds', time, 5), ('a_', time, 5), ('a__2', time, 5)
  ]  # fmt: skip


def records(path: pathlib.Path):
  """The records of a .wandb file: a header of 7 bytes, then a log in LevelDB's format."""
  from wandb.proto import wandb_internal_pb2

  data, at, record = path.read_bytes(), 7, b''
  while at + 7 <= len(data):
    left = 2**15 - at % 2**15  # in this block
    if left < 7:
      at += left
      continue
    _, size, kind = struct.unpack('<IHB', data[at : at + 7])
    record += data[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (1, 4):  # whole, or the last part
      yield wandb_internal_pb2.Record.FromString(record)
      record = b''


def values(items) -> dict:
  return {
      '/'.join(item.nested_key) or item.key: json.loads(item.value_json) for item in items
  }


@pytest.mark.slow
def test_wandb(workdir, tmp_path, capsys):
  pytest.importorskip('wandb')
  assert run(workdir, 'wandb', tmp_path / 'out') == 0
  assert capsys.readouterr().out == f'{tmp_path / "out"}: 5 runs; left out: 1 without a result\n'
  found = {}
  for path in (tmp_path / 'out').glob('wandb/offline-run-*/*.wandb'):
    kinds: dict[str, list] = {}
    for record in records(path):
      kind = record.WhichOneof('record_type')
      kinds.setdefault(kind, []).append(getattr(record, kind))
    found[kinds['run'][0].display_name] = kinds
  expected = runs_of(workdir)
  assert found.keys() == expected.keys()
  for name, result in expected.items():
    (described,), (end,) = found[name]['run'], found[name]['exit']
    assert (described.run_group, described.project) == ('sweep', 'stability')
    config = values(described.config.update)
    config.pop('_wandb')
    assert config == json.loads((workdir / 'runs' / name / 'config.json').read_text())
    assert end.exit_code == (1 if result.status == 'failed' else 0)
    rows = files.read_lines(workdir / 'runs' / name / 'metrics.jsonl')
    logged = [values(history.item) for history in found[name]['history']]
    assert [row['_step'] for row in logged] == [row['step'] for row in rows]
    for row, log in zip(rows, logged, strict=True):
      assert all(same(log[key], value) for key, value in row.items() if key != 'step')
    summary = {}
    for update in found[name]['summary']:
      summary |= values(update.update)
    assert summary['status'] == result.status
    for key in ('initial_loss', 'final_loss', 'parameters', 'steps'):
      if result.status != 'failed' or key != 'final_loss':
        assert same(summary[key], getattr(result, key))
    assert summary.get('error') == result.error


@pytest.mark.slow
def test_mlflow(workdir, tmp_path):
  mlflow = pytest.importorskip('mlflow')
  assert run(workdir, 'mlflow', tmp_path / 'out') == 0
  os.environ['MLFLOW_ALLOW_FILE_STORE'] = 'true'
  client = mlflow.MlflowClient(tracking_uri=(tmp_path / 'out/mlruns').as_uri())
  (experiment,) = client.search_experiments()
  assert experiment.name == 'sweep'
  found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
  expected = runs_of(workdir)
  assert found.keys() == expected.keys()
  names = {'done': 'FINISHED', 'diverged': 'FINISHED', 'failed': 'FAILED', 'stopped': 'KILLED'}
  for name, result in expected.items():
    read = found[name]
    assert read.info.status == names[result.status]
    assert read.info.artifact_uri.startswith((tmp_path / 'out/mlruns').as_uri())
    config = json.loads((workdir / 'runs' / name / 'config.json').read_text())
    flat = {key: str(value) for key, value in config_lib.flatten(config).items()}
    assert read.data.params == flat
    rows = files.read_lines(workdir / 'runs' / name / 'metrics.jsonl')
    history = client.get_metric_history(read.info.run_id, 'loss')
    assert [metric.step for metric in history] == [row['step'] for row in rows]
    assert all(same(m.value, row['loss']) for m, row in zip(history, rows, strict=True))
    for key in rows[-1].keys() - {'step'}:
      assert same(read.data.metrics[key], rows[-1][key])
    assert same(read.data.metrics.get('final_loss', math.nan), result.final_loss)
    assert read.data.metrics['parameters'] == result.parameters
    assert read.data.tags['status'] == result.status and read.data.tags['sweep'] == 'sweep'
    assert read.data.tags.get('error') == result.error
  # What MLflow exports is imported again.
  mlflow.set_tracking_uri((tmp_path / 'out/mlruns').as_uri())
  mlflow.search_runs([experiment.experiment_id]).to_csv(tmp_path / 'runs.csv', index=False)
  arguments = [f'--runs={tmp_path / "runs.csv"}', f'--workdir={tmp_path / "again"}']
  assert app.execute(import_runs.main, import_runs.FLAGS, ['import_runs', *arguments]) == 0
  for again in runs_of(tmp_path / 'again').values():
    original = next(r for r in expected.values() if r.initial_loss == again.initial_loss)
    assert again.parameters == original.parameters and again.steps == original.steps
  assert {r.final_loss for r in expected.values()} >= {
      r.final_loss for r in runs_of(tmp_path / 'again').values() if r.status == 'done'
  }
