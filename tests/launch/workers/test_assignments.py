"""The environment of workers, the assignment of runs, and the progress of a sweep."""

import json
import os

import pytest
from helpers import made_up

from configs import quickstart
from launch.common import environment
from launch.common.progress import Progress
from launch.workers import assignments
from stability import hyper
from stability.storage import run_files, sweeps


@pytest.fixture
def fresh(tmp_path, monkeypatch):
  """No accelerator, no user settings, an empty cache."""
  for name in ('XLA_FLAGS', 'JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'GLIBC_TUNABLES'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(environment, 'has_accelerator', lambda: False)


@pytest.mark.parametrize('works', [True, False])
def test_cpu_flags_are_tried_once(fresh, works, monkeypatch):
  tried = []
  monkeypatch.setattr(environment, '_works', lambda flags: tried.append(flags) or works)
  for _ in range(2):
    variables = environment.worker_environment()
    assert variables['XLA_FLAGS'] == (environment.CPU_FLAGS if works else '')
  assert tried == [environment.CPU_FLAGS]


def test_unknown_xla_flag_does_not_work():
  assert not environment._works('--xla_no_such_flag=1')


def test_user_settings_are_kept(fresh, monkeypatch):
  monkeypatch.setattr(environment, '_works', lambda flags: True)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/mine')
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  variables = environment.worker_environment()
  assert variables['JAX_COMPILATION_CACHE_DIR'] == '/mine'
  assert variables['XLA_FLAGS'] == f'{environment.CPU_FLAGS} --xla_cpu_enable_fast_math=false'
  assert variables['GLIBC_TUNABLES'] == environment.GLIBC_TUNABLES
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  assert environment.worker_environment()['GLIBC_TUNABLES'] == 'glibc.malloc.check=1'


def test_accelerator_has_no_cpu_flags(fresh, monkeypatch):
  monkeypatch.setattr(environment, 'has_accelerator', lambda: True)
  assert not {'XLA_FLAGS', 'GLIBC_TUNABLES'} & environment.worker_environment().keys()


@pytest.mark.parametrize(('wanted', 'has'), [('cpu', False), ('cuda,cpu', True), ('tpu', True)])
def test_jax_platforms_decides(wanted, has, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', wanted)
  assert environment.has_accelerator() is has


def test_cache_depends_on_jaxlib_and_cpu(fresh, monkeypatch):
  here = environment.cache_folder()
  monkeypatch.setattr(environment.importlib.metadata, 'version', lambda name: '99.0')
  elsewhere = environment.cache_folder()
  monkeypatch.setattr(environment, '_cpu_digest', lambda: 'another')
  assert len({here, elsewhere, environment.cache_folder()}) == 3


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system cannot pin')
def test_pin():
  before = environment.cores()
  try:
    environment.pin(before[:1])
    assert environment.cores() == before[:1]
  finally:
    environment.pin(before)


@pytest.fixture
def queue():
  runs = hyper.expand(quickstart.get_config().to_dict(), quickstart.get_sweep())
  return assignments.RunQueue(runs.configs)


def test_most_work_comes_first(queue):
  first = queue.take('a', None)
  assert first == 'width=64,qk_norm=layernorm,learning_rate=0.001,seed=0'
  assert queue.take('b', None).startswith('width=64,qk_norm=none')


def test_workers_get_different_executables(queue):
  """Of six groups, the seventh worker shares that with the most work left."""
  groups = [queue.take(worker, None).split(',learning_rate')[0] for worker in range(7)]
  assert len(set(groups[:6])) == 6
  assert groups[6] == groups[0]  # the most work left


def test_ended_worker_frees_its_executables(queue):
  for worker in range(6):
    queue.take(worker, None)
  queue.forget(3)  # it had width 32 without qk-layernorm
  assert queue.take('new', None).startswith('width=32,qk_norm=none')


def test_worker_keeps_its_executables(queue):
  first = queue.take('a', None)
  row = [queue.take('a', first) for _ in range(7)]
  assert all(name.startswith('width=64,qk_norm=layernorm') for name in row[:6])
  assert row[6] is None
  assert len(queue) == 35


def test_every_run_is_taken_once(queue):
  names = [queue.take(n % 2, None) for n in range(43)]
  assert len(set(names)) == 43 and names[-1] is None  # 42 and None


def test_progress(tmp_path, capsys):
  names = made_up.write_sweep(
      tmp_path,
      seeds=(0,),
      leave_out=(0, 1),
      results={3: {'status': 'failed', 'error': 'Traceback\nValueError: [bold]no'}},
  )
  configs = sweeps.read_sweep(tmp_path).runs
  folder = run_files.run_dir(tmp_path, names[0])
  folder.mkdir(parents=True, exist_ok=True)
  line = {'step': 150, 'tokens_per_second': 12_345.0}
  (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  with Progress(tmp_path, configs) as progress:
    progress.update(names[:1])
    assert not progress.is_finished()
  said = capsys.readouterr().err
  assert '40/42 runs finished' in said and '1 running' in said and '1 failed' in said
  assert '12,345 tokens/s' in said
  assert f'{names[3]} failed: ValueError: [bold]no' in said.replace('\n', '')
