"""One run on the devices of two processes of four devices each, against one process of eight."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest
from absl import flags

from launch import processes
from stability import population
from stability import workdir as workdir_lib
from stability.errors import BadInput

ROOT = pathlib.Path(__file__).parents[1]
WALL_CLOCK = {'seconds', 'tokens_per_second'}
FIELDS = {
    'data.source': 'synthetic',
    'data.batch_size': 16,
    'data.sequence_length': 8,
    'data.validation_batches': 1,
    'model.width': 16,
    'model.depth': 1,
    'optimizer.learning_rate': 1e-3,
    'schedule.steps': 8,
    'schedule.warmup_steps': 2,
    'log.every_steps': 2,
    'checkpoint.every_steps': 4,
}
SECONDS = 150  # for a process, on a busy machine


def together(folder, workdir, layout, probe_every):
  """launch.train as two processes that share eight devices; what they print."""
  fields = FIELDS | {'parallel.layout': layout, 'probe.every_steps': probe_every}
  environment = os.environ | {
      'PYTHONPATH': str(ROOT),
      'XDG_CACHE_HOME': str(folder / 'cache'),
      'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('count=8', 'count=4'),
  }
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  crew = [
      subprocess.Popen(
          [
              *(sys.executable, '-m', 'launch.train', f'--config={ROOT}/configs/base.py'),
              *(f'--config.{field}={value}' for field, value in fields.items()),
              *(f'--workdir={workdir}', f'--coordinator_address={address}'),
              *('--num_processes=2', f'--process_id={number}'),
          ],
          cwd=folder,
          env=environment,
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
      )
      for number in range(2)
  ]
  try:
    printed = '\n'.join(process.communicate(timeout=SECONDS)[0] for process in crew)
  finally:
    for process in crew:
      process.kill()
  assert [process.returncode for process in crew] == [0, 0], printed
  return printed


def outcome(workdir):
  """What of the run must not depend on who trained it."""
  run = workdir_lib.run_dir(workdir, 'seed=0')
  lines = [*workdir_lib.read_metrics(run), workdir_lib.read_result(run)]
  return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in lines]


def check_against_one_process(shared, alone):
  """Trains the run of `shared` in this process, in the folder `alone`, and compares.

  Within rounding: the devices of one process are not summed over in the order of two's.
  """
  shutil.copytree(shared, alone)
  shutil.rmtree(alone / 'runs')
  workdir_lib.run_dir(alone, 'seed=0').mkdir(parents=True)
  population.train_population(alone, workdir_lib.read_sweep(alone), 'seed=0', lambda: None)
  ours = outcome(shared)
  assert [line.get('step') for line in ours] == [2, 4, 6, 8, None]
  for line, expected in zip(ours, outcome(alone), strict=True):
    assert line.keys() == expected.keys()
    for name, value in expected.items():
      if isinstance(value, float):
        assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
      else:
        assert line[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize(('layout', 'probe_every'), [('data_parallel', 4), ('sharded', 0)])
def test_two_processes_give_what_one_does(tmp_path, layout, probe_every):
  shared, alone = tmp_path / 'shared', tmp_path / 'alone'
  together(tmp_path, shared, layout, probe_every)
  ours = outcome(shared)
  run = workdir_lib.run_dir(shared, 'seed=0')
  assert len(list(run.glob('events.*'))) == 1  # one writes

  check_against_one_process(shared, alone)
  if layout == 'sharded':
    (run / 'result.json').unlink()
    together(tmp_path, shared, layout, probe_every)  # from the checkpoint of step 4
    assert outcome(shared) == ours


def found(*arguments):
  values = flags.FlagValues()
  processes.define_flags(values)
  values(['program', *arguments])
  return processes.find(values)


def test_flags_tell_of_other_processes(monkeypatch):
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


SRUN = {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'a[1-2]',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
}
POD = {'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1'}


@pytest.mark.parametrize(
    ('variables', 'number'),
    [
        (SRUN, 1),
        (SRUN | {'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, None),
        ({name: SRUN[name] for name in SRUN if name != 'SLURM_STEP_NODELIST'}, None),  # sbatch
        (POD, 1),
        (POD | {'TPU_WORKER_HOSTNAMES': 'a'}, None),
    ],
)
def test_the_environment_tells_of_other_processes_if_asked(monkeypatch, variables, number):
  """Where nobody has said whether to share, it is not guessed."""
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
