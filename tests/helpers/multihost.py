"""Trains one run on the devices of two processes."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from stability.storage import run_files, sweeps
from stability.trainer.trainer import train_runs

ROOT = pathlib.Path(__file__).parents[2]
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
SECONDS = 150  # timeout of a process, on a busy machine


@contextlib.contextmanager
def crew(folder, workdir, fields, program=('-m', 'launch.train')):
  """Runs launch.train as two processes that share eight devices; kills what is left at the end.

  `program` are Python's arguments for a stand-in for launch.train, which takes the same flags.
  """
  environment = os.environ | {
      'PYTHONPATH': str(ROOT),
      'XDG_CACHE_HOME': str(folder / 'cache'),
      'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('count=8', 'count=4'),
  }
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
      subprocess.Popen(
          [
              *(sys.executable, *program, f'--config={ROOT}/configs/base.py'),
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
    yield processes
  finally:
    for process in processes:
      process.kill()


def together(folder, workdir, layout, probe_every):
  """Trains the run of FIELDS as two processes; returns what they print."""
  fields = FIELDS | {'parallel.layout': layout, 'probe.every_steps': probe_every}
  with crew(folder, workdir, fields) as processes:
    printed = '\n'.join(process.communicate(timeout=SECONDS)[0] for process in processes)
  assert [process.returncode for process in processes] == [0, 0], printed
  return printed


def outcome(workdir):
  """The rows and the result of the run, without wall-clock values."""
  run = run_files.run_dir(workdir, 'seed=0')
  lines = [*run_files.read_metrics(run), run_files.read_result(run).to_json()]
  return [{key: value for key, value in line.items() if key not in WALL_CLOCK} for line in lines]


def check_against_one_process(shared, alone):
  """Trains the run of `shared` in this process, in the folder `alone`, and compares.

  Results agree within rounding, since one process sums over devices in another order than two.
  """
  shutil.copytree(shared, alone)
  shutil.rmtree(alone / 'runs')
  run = run_files.run_dir(alone, 'seed=0')
  run.mkdir(parents=True)
  shutil.copy(run_files.run_dir(shared, 'seed=0') / 'config.json', run)
  train_runs(alone, sweeps.read_sweep(alone), 'seed=0', lambda: None)
  ours = outcome(shared)
  assert [line.get('step') for line in ours] == [2, 4, 6, 8, None]
  for line, expected in zip(ours, outcome(alone), strict=True):
    assert line.keys() == expected.keys()
    for name, value in expected.items():
      if isinstance(value, float):
        assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
      else:
        assert line[name] == value, name
