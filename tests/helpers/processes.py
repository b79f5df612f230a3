"""Runs programs as processes, and reads the files they leave."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from stability.storage import run_files, sweeps

ROOT = pathlib.Path(__file__).parents[2]
WALL_CLOCK = {'seconds', 'tokens_per_second'}


def command(place, program, *arguments):
  """The arguments of subprocess for a program of launch/."""
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(place / 'cache')}
  del environment['XLA_FLAGS']  # which only the tests set
  return dict(
      args=[sys.executable, '-m', f'launch.{program}', *arguments],
      cwd=place,
      env=environment,
      text=True,
  )


def run(place, program, *arguments):
  return subprocess.run(**command(place, program, *arguments), capture_output=True, check=False)


def outcomes(workdir):
  """The rows and results of a sweep's runs, without wall-clock values."""
  found = {}
  for name in sweeps.read_sweep(workdir).runs:
    folder = run_files.run_dir(workdir, name)
    lines = [*run_files.read_metrics(folder), run_files.read_result(folder).to_json()]
    found[name] = [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]
  return found


def children(pid):
  """The ids of a process's children."""
  text = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text()
  return [int(child) for child in text.split()]


def is_running(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def wait_for(launcher, workdir, pattern):
  """Waits until a file of the workdir matches the pattern; fails if the launcher ends first."""
  deadline = time.monotonic() + 120
  while not list(workdir.glob(pattern)):
    assert time.monotonic() < deadline and launcher.poll() is None
    time.sleep(0.005)


def assert_end(workers):
  """Waits until the workers of a dead launcher have ended: half a minute, on a busy machine."""
  deadline = time.monotonic() + 30
  while any(map(is_running, workers)):
    assert time.monotonic() < deadline, 'a worker outlives its launcher'
    time.sleep(0.02)


def assert_workers_end_with(launcher):
  """Kills the launcher; its workers must end, too."""
  workers = children(launcher.pid)
  assert workers
  launcher.send_signal(signal.SIGKILL)
  launcher.wait()
  try:
    assert_end(workers)
  finally:
    for worker in filter(is_running, workers):
      os.kill(worker, signal.SIGKILL)
