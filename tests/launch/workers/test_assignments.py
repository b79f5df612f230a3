"""What surrounds workers: their environment, who gets which run, what a person sees."""

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
  """No accelerator, no settings of the user's, an empty cache."""
  for name in ('XLA_FLAGS', 'JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'GLIBC_TUNABLES'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(environment, 'has_accelerator', lambda: False)


@pytest.mark.parametrize('works', [True, False])
def test_flags_are_tried_once_and_used_if_they_work(fresh, works, monkeypatch):
  tried = []
  monkeypatch.setattr(environment, '_works', lambda flags: tried.append(flags) or works)
  for _ in range(2):
    variables = environment.worker_environment()
    assert variables['XLA_FLAGS'] == (environment.CPU_FLAGS if works else '')
  assert tried == [environment.CPU_FLAGS]


def test_a_flag_that_xla_lacks_does_not_work():
  assert not environment._works('--xla_no_such_flag=1')


def test_what_the_user_sets_stays(fresh, monkeypatch):
  monkeypatch.setattr(environment, '_works', lambda flags: True)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/mine')
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  variables = environment.worker_environment()
  assert variables['JAX_COMPILATION_CACHE_DIR'] == '/mine'
  assert variables['XLA_FLAGS'] == f'{environment.CPU_FLAGS} --xla_cpu_enable_fast_math=false'
  assert variables['GLIBC_TUNABLES'] == environment.MALLOC
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  assert environment.worker_environment()['GLIBC_TUNABLES'] == 'glibc.malloc.check=1'


def test_no_cpu_flags_on_an_accelerator(fresh, monkeypatch):
  monkeypatch.setattr(environment, 'has_accelerator', lambda: True)
  assert not {'XLA_FLAGS', 'GLIBC_TUNABLES'} & environment.worker_environment().keys()


@pytest.mark.parametrize(('wanted', 'has'), [('cpu', False), ('cuda,cpu', True), ('tpu', True)])
def test_the_wanted_platform_decides(wanted, has, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', wanted)
  assert environment.has_accelerator() is has


def test_the_cache_is_for_one_jaxlib_and_one_cpu(fresh, monkeypatch):
  here = environment.cache_folder()
  monkeypatch.setattr(environment.importlib.metadata, 'version', lambda name: '99.0')
  elsewhere = environment.cache_folder()
  monkeypatch.setattr(environment, '_cpu_digest', lambda: 'another')
  assert len({here, elsewhere, environment.cache_folder()}) == 3


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system cannot pin')
def test_pinning():
  before = environment.cores()
  try:
    environment.pin(before[:1])
    assert environment.cores() == before[:1]
  finally:
    environment.pin(before)


@pytest.fixture
def waiting():
  runs = hyper.expand(quickstart.get_config().to_dict(), quickstart.get_sweep())
  return assignments.Waiting(runs.configs)


def test_the_largest_work_is_begun_first(waiting):
  first = waiting.take('a', None)
  assert first == 'width=64,qk_norm=layernorm,learning_rate=0.001,seed=0'
  assert waiting.take('b', None).startswith('width=64,qk_norm=none')


def test_no_two_workers_compile_the_same_while_there_is_other_work(waiting):
  """Six kinds of executables: the seventh worker is the first to join another."""
  kinds = [waiting.take(worker, None).split(',learning_rate')[0] for worker in range(7)]
  assert len(set(kinds[:6])) == 6
  assert kinds[6] == kinds[0]  # the most work left


def test_what_a_worker_left_is_open_to_others(waiting):
  for worker in range(6):
    waiting.take(worker, None)
  waiting.release(3)  # it had width 32 without qk-layernorm
  assert waiting.take('new', None).startswith('width=32,qk_norm=none')


def test_a_worker_keeps_its_executables_while_they_serve(waiting):
  first = waiting.take('a', None)
  row = [waiting.take('a', first) for _ in range(7)]
  assert all(name.startswith('width=64,qk_norm=layernorm') for name in row[:6])
  assert row[6] is None
  assert len(waiting) == 35


def test_every_run_is_given_once(waiting):
  names = [waiting.take(n % 2, None) for n in range(43)]
  assert len(set(names)) == 43 and names[-1] is None  # 42 and None


def test_progress_counts_what_the_files_say(tmp_path, capsys):
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
    progress.show(names[:1])
    assert not progress.is_over()
  said = capsys.readouterr().err
  assert '40/42 runs over' in said and '1 running' in said and '1 failed' in said
  assert '12,345 tokens/s' in said
  assert f'{names[3]} failed: ValueError: [bold]no' in said.replace('\n', '')
