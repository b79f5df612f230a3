"""Multihost training: two processes of four devices against one of eight, and the flags."""

import os
import signal
import time

import pytest
from absl import flags
from helpers.multihost import (
  FIELDS,
  SECONDS,
  check_against_one_process,
  crew,
  outcome,
  together,
)
from helpers.processes import wait_for

from launch.workers import multihost
from stability.errors import BadInput
from stability.storage import run_files


@pytest.mark.slow
@pytest.mark.parametrize(('layout', 'probe_every'), [('data_parallel', 4), ('sharded', 0)])
def test_two_processes_equal_one(tmp_path, layout, probe_every):
  shared, alone = tmp_path / 'shared', tmp_path / 'alone'
  printed = together(tmp_path, shared, layout, probe_every)
  assert printed.count('2 processes share the run, with 8 devices') == 1
  ours = outcome(shared)
  run = run_files.run_dir(shared, 'seed=0')
  assert len(list(run.glob('events.*'))) == 1  # only one process writes

  check_against_one_process(shared, alone)
  if layout == 'sharded':
    (run / 'result.json').unlink()
    together(tmp_path, shared, layout, probe_every)  # from the checkpoint of step 4
    assert outcome(shared) == ours


@pytest.mark.slow
@pytest.mark.parametrize('told', [0, 1])
def test_one_of_two_processes_is_preempted(tmp_path, told):
  """Both save the run and end with 75, whichever is told."""
  workdir = tmp_path / 'shared'
  more = {'parallel.layout': 'data_parallel', 'schedule.steps': 100_000}
  with crew(tmp_path, workdir, FIELDS | more) as processes:
    wait_for(processes[0], workdir, 'runs/*/checkpoints/4/checksums.json')
    processes[told].send_signal(signal.SIGTERM)
    begun = time.monotonic()
    printed = [process.communicate(timeout=SECONDS)[0] for process in processes]
  assert [process.returncode for process in processes] == [75, 75], printed
  assert time.monotonic() - begun < 30
  run = run_files.run_dir(workdir, 'seed=0')
  assert run_files.read_result(run) is None
  saved = max(int(path.parent.name) for path in run.glob('checkpoints/*/checksums.json'))
  assert saved >= run_files.last_metrics(run)['step'] > 4


SLOW_COMPILATION = """
import pathlib, time
from launch.workers import worker

def make_slow_layout(*arguments):
  import jax
  from stability.devices.make_layout import make_layout
  if jax.process_index() in {slow}:
    pathlib.Path(f'compiles-{{jax.process_index()}}').touch()
    time.sleep(6)
  return make_layout(*arguments)

worker.main(make_slow_layout)
"""
SLOW_LAUNCHER = (
    'import sys; from launch import train; from launch.common import app, preemption;'
    'from launch.workers import worker_process; preemption.install();'
    'worker_process.COMMAND = (sys.executable, "slow.py");'
    'app.run(train.main, train.FLAGS)'
)


@pytest.mark.slow
@pytest.mark.parametrize(('slow', 'told'), [((0, 1), 0), ((0, 1), 1), ((1,), 0), ((1,), 1)])
def test_one_of_two_processes_is_preempted_while_compiling(tmp_path, slow, told):
  """Both end with 75 and no failure is written, also if one of them waits for the other."""
  workdir = tmp_path / 'shared'
  (tmp_path / 'slow.py').write_text(SLOW_COMPILATION.format(slow=slow))
  more = {'parallel.layout': 'data_parallel', 'schedule.steps': 100_000}
  with crew(tmp_path, workdir, FIELDS | more, ('-c', SLOW_LAUNCHER)) as processes:
    for number in slow:
      wait_for(processes[number], tmp_path, f'compiles-{number}')
    if len(slow) == 1:
      time.sleep(3)  # the other process compiles in a second, and waits
    processes[told].send_signal(signal.SIGTERM)
    begun = time.monotonic()
    printed = [process.communicate(timeout=SECONDS)[0] for process in processes]
  assert [process.returncode for process in processes] == [75, 75], printed
  assert time.monotonic() - begun < 30
  run = run_files.run_dir(workdir, 'seed=0')
  assert not (run / 'result.json').exists() and not (run / 'metrics.jsonl').exists()


def found(*arguments):
  values = flags.FlagValues()
  multihost.define_flags(values)
  values(['program', *arguments])
  return multihost.find(values)


def test_flags(monkeypatch):
  monkeypatch.setattr(os, 'environ', {})
  assert found() is None
  all_of_them = ['--coordinator_address=a:1', '--num_processes=2', '--process_id=1']
  one = found(*all_of_them)
  assert one.process_id == 1
  assert one.arguments == {'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 1}
  for n in range(3):
    with pytest.raises(BadInput, match='missing'):
      found(*all_of_them[:n], *all_of_them[n + 1 :])
  with pytest.raises(BadInput, match='--multihost=auto: must not be given with'):
    found(*all_of_them, '--multihost=auto')
  with pytest.raises(BadInput, match='--process_id=2: must be below'):
    found(*all_of_them[:2], '--process_id=2')


@pytest.mark.parametrize('address', ['foo', ':1', 'a:', 'a:b', 'a:0', 'a:65536', 'a:-1'])
def test_bad_address(address):
  with pytest.raises(BadInput, match='must be HOST:PORT, with a port from 1 to 65535'):
    found(f'--coordinator_address={address}', '--num_processes=1', '--process_id=0')


SRUN = {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'a[1-2]',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
}
POD = {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1'}
SECOND_SLICE = {'MEGASCALE_NUM_SLICES': '2', 'MEGASCALE_SLICE_ID': '1'}


@pytest.mark.parametrize(
    ('variables', 'number'),
    [
        (SRUN, 1),
        (SRUN | {'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, None),
        ({name: SRUN[name] for name in SRUN if name != 'SLURM_STEP_NODELIST'}, None),  # sbatch
        (POD, 1),
        (POD | {'TPU_WORKER_HOSTNAMES': 'a'}, None),
        (POD | SECOND_SLICE, 3),
        (POD | SECOND_SLICE | {'MEGASCALE_SLICE_ID': '0'}, 1),
        (POD | SECOND_SLICE | {'TPU_WORKER_HOSTNAMES': 'a', 'TPU_WORKER_ID': '0'}, 1),
        (POD | {'TPU_PROCESS_ADDRESSES': 'a:1,b:1,c:1,d:1', **SECOND_SLICE}, 5),
    ],
)
def test_environment(monkeypatch, variables, number):
  """The environment counts only with --multihost=auto, and is never guessed from."""
  monkeypatch.setattr(os, 'environ', variables)
  assert found('--multihost=none') is None
  if number is None:
    assert found() is None
    with pytest.raises(BadInput, match='--multihost=auto: neither'):
      found('--multihost=auto')
  else:
    with pytest.raises(BadInput, match='--multihost: missing'):
      found()
    one = found('--multihost=auto')
    assert one.process_id == number
    assert one.arguments == {}


@pytest.mark.parametrize(
    ('per_node', 'node', 'gpus', 'more', 'ours'),
    [
        ('1(x2)', 1, 8, {}, list(range(8))),  # jax would take the first GPU of each node
        ('1,8', 0, 8, {}, list(range(8))),
        ('1,8', 1, 8, {}, None),
        ('8(x2)', 1, 8, {}, None),  # jax takes that with the task's number
        ('8(x2)', 1, 1, {}, [0]),  # each task sees its own
        ('2(x2)', 0, 2, {'SLURM_GPUS_PER_TASK': '2'}, [0, 1]),
    ],
)
def test_gpus_of_srun(monkeypatch, per_node, node, gpus, more, ours):
  """The GPUs of a task, also if processes are given by flags."""
  tasks = {'SLURM_STEP_TASKS_PER_NODE': per_node, 'SLURM_NODEID': str(node)}
  monkeypatch.setattr(os, 'environ', SRUN | tasks | more)
  monkeypatch.setattr(multihost.environment, 'accelerator', lambda: 'cuda')
  monkeypatch.setattr(multihost.environment, 'gpus', lambda: [str(n) for n in range(gpus)])
  expected = {} if ours is None else {'local_device_ids': ours}
  assert found('--multihost=auto').arguments == expected
  given = {'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 1}
  one = found(*(f'--{name}={value}' for name, value in given.items()))
  assert one.arguments == given | expected


def test_tasks_that_share_gpus(monkeypatch):
  tasks = {'SLURM_STEP_TASKS_PER_NODE': '2(x2)', 'SLURM_NODEID': '0'}
  monkeypatch.setattr(os, 'environ', SRUN | tasks)
  monkeypatch.setattr(multihost.environment, 'accelerator', lambda: 'cuda')
  monkeypatch.setattr(multihost.environment, 'gpus', lambda: list('01234567'))
  with pytest.raises(BadInput, match='2 tasks on a node, each of which sees 8 GPUs: must be one'):
    found('--multihost=auto')
