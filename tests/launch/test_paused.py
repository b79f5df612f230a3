"""A paused run of a sweep of real processes: other runs continue, and it can be forked."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from stability.control import records, requests
from stability.control.actions import Action
from stability.storage import run_files, sweeps

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 150  # timeout of each step of the test, on a busy machine

EXPERIMENT = """
from configs import base
from stability import hyper

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.data.source = 'synthetic'
  c.data.batch_size = 4
  c.data.sequence_length = 16
  c.data.validation_batches = 2
  c.model.width = 16
  c.model.depth = 1
  c.schedule.steps = 2000
  c.probe.every_steps = 0
  c.checkpoint.every_steps = 0
  return c

def get_sweep(scale='cpu'):
  return hyper.sweep('optimizer.learning_rate', [1e-2, 1e-3])
"""


def start(place):
  """Starts the launcher of the sweep."""
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(place / 'cache')}
  del environment['XLA_FLAGS']
  arguments = ['--config=experiment.py', '--workdir=w', '--workers=1']
  with (place / 'log').open('a') as log:
    return subprocess.Popen(
        [sys.executable, '-m', 'launch.sweep', *arguments],
        cwd=place,
        env=environment,
        stdout=log,
        stderr=log,
    )


def wait_for(place, condition):
  """Waits until `condition` returns something true, and returns that."""
  deadline = time.monotonic() + SECONDS
  while not (found := condition()):
    assert time.monotonic() < deadline, (place / 'log').read_text()
    time.sleep(0.05)
  return found


def worker_of(launcher):
  """The process id of the launcher's only worker."""
  tasks = pathlib.Path(f'/proc/{launcher.pid}/task').iterdir()
  (child,) = {int(pid) for task in tasks for pid in (task / 'children').read_text().split()}
  return child


def cpu_seconds(pid):
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@pytest.mark.skipif(not pathlib.Path('/proc/self/stat').exists(), reason='reads /proc')
def test_paused_run(tmp_path):
  (tmp_path / 'experiment.py').write_text(EXPERIMENT)
  workdir = tmp_path / 'w'

  def result(name):
    return run_files.read_result(run_files.run_dir(workdir, name))

  launcher = start(tmp_path)
  try:
    first = wait_for(tmp_path, lambda: list(workdir.glob('runs/*/metrics.jsonl')))[0].parent
    requests.write_request(first, Action('pause'), 'ann', '')
    (other,) = set(sweeps.read_sweep(workdir).runs) - {first.name}
    wait_for(tmp_path, lambda: result(other))  # with the worker to itself
    assert result(other).status == 'done' and result(first.name) is None
    assert records.is_paused(records.read_taken(first))
    worker = worker_of(launcher)

    def is_quiet():
      before = cpu_seconds(worker)
      time.sleep(1)
      return cpu_seconds(worker) - before < 0.1

    wait_for(tmp_path, is_quiet)  # the worker finishes the other run first
    spent = cpu_seconds(worker)
    time.sleep(3)
    assert cpu_seconds(worker) - spent < 0.5  # seconds of one core: it only polls
    launcher.kill()
    os.kill(worker, signal.SIGKILL)
  finally:
    launcher.kill()
    launcher.wait()

  launcher = start(tmp_path)
  try:
    requests.write_request(first, Action('fork', changes={'optimizer.eps': 1e-7}), 'ann', '')
    fork = wait_for(tmp_path, lambda: list(sweeps.read_forks(workdir)))[0]
    wait_for(tmp_path, lambda: result(fork))  # while the first run stays paused
    assert result(first.name) is None and records.is_paused(records.read_taken(first))
    requests.write_request(first, Action('continue'), 'ann', '')
    assert launcher.wait(SECONDS) == 0, (tmp_path / 'log').read_text()
  finally:
    launcher.kill()
    launcher.wait()
  kinds = [record.action.kind for record in records.read_records(first)]
  assert kinds == ['pause', 'fork', 'continue']
  with (workdir / 'results.csv').open() as file:
    rows = {row['run']: row for row in csv.DictReader(file)}
  assert list(rows) == [*sweeps.read_sweep(workdir).runs, fork]
  assert {row['status'] for row in rows.values()} == {'done'}
  assert rows[fork]['final_loss'] != rows[first.name]['final_loss']
  assert fork in (workdir / 'report' / 'index.html').read_text()
