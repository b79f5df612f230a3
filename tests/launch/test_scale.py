"""Sweeps of many runs: what a run costs beside its training does not grow with their number.

The soak (pytest -m soak tests/launch/test_scale.py) has 5,000 runs and prints what it measured.
"""

import pathlib
import resource
import subprocess
import sys
import threading
import time

import pytest
from helpers import made_up
from helpers.processes import children, command

from configs import base
from launch.backends import local
from launch.workers import worker_process
from stability import hyper
from stability.storage import results_csv, sweeps

HELPERS = pathlib.Path(__file__).parents[1] / 'helpers'

EXPERIMENT = """
from configs import base
from stability import hyper

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.data.source = 'synthetic'
  c.data.sequence_length = 16
  c.model.width = 16
  c.model.depth = 1
  c.schedule.steps = 20
  c.schedule.warmup_steps = 1
  c.checkpoint.every_steps = 0
  return c

def get_sweep(scale='cpu'):
  return hyper.product([
      hyper.sweep('optimizer.learning_rate', [10 ** (-n / 10) for n in range(50)]),
      hyper.sweep('seed', range(%d)),
  ])
"""


def calls_to_schedule(workdir, runs, monkeypatch):
  """Function calls of the launcher, from the files of a new sweep to its last run."""
  expanded = hyper.expand(base.get_config().to_dict(), hyper.sweep('seed', range(runs)))
  workdir.mkdir()
  (workdir / 'plan.json').write_text('{}')
  stub = (sys.executable, '-S', '-E', str(HELPERS / 'stub_worker.py'), str(workdir / 'plan.json'))
  monkeypatch.setattr(worker_process, 'COMMAND', stub)
  count = [0]

  def profile(frame, event, argument):
    if event in ('call', 'c_call'):
      count[0] += 1

  threading.setprofile(profile)  # of the threads that serve workers
  sys.setprofile(profile)
  try:
    made_up.write_runs(workdir, expanded)
    local.train(workdir, sweeps.runs_to_train(workdir, expanded.configs), workers=1)
  finally:
    sys.setprofile(None)
    threading.setprofile(None)
  results = results_csv.read_results(workdir)
  assert [row['status'] for row in results] == ['done'] * runs
  return count[0]


def test_what_a_run_costs_does_not_grow_with_the_sweep(tmp_path, monkeypatch):
  """By calls, which a busy machine does not change much: three times the runs, so many calls."""
  monkeypatch.setattr(local, 'POLL_SECONDS', 1.0)
  small = calls_to_schedule(tmp_path / 'small', 100, monkeypatch)
  large = calls_to_schedule(tmp_path / 'large', 300, monkeypatch)
  assert large / small < 3 * 1.3


def cpu_seconds(arguments):
  """User and system time of a process and its children."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  process = subprocess.Popen(**arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  memory = {}
  watcher = threading.Thread(target=watch, args=(process, memory))
  watcher.start()
  printed, _ = process.communicate()
  watcher.join()
  assert process.returncode == 0, printed
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, memory


def watch(process, memory):
  """Resident MB of a process and its children, by the time of the day."""
  while process.poll() is None:
    for pid in [process.pid, *children(process.pid)]:
      try:
        status = pathlib.Path(f'/proc/{pid}/status').read_text()
      except FileNotFoundError:
        continue
      if 'VmRSS' in status:
        kilobytes = int(status.split('VmRSS:')[1].split()[0])
        memory.setdefault(pid, {})[time.time()] = kilobytes / 1e3
    time.sleep(1)


@pytest.mark.soak
def test_five_thousand_runs(tmp_path):
  runs = 5_000
  (tmp_path / 'experiment.py').write_text(EXPERIMENT % (runs // 50))
  program = (
      'import sys; from launch import app, sweep; from launch.backends import worker_process;'
      f'worker_process.COMMAND = (sys.executable, {str(HELPERS / "noop_worker.py")!r});'
      'app.run(sweep.main, sweep.FLAGS)'
  )
  arguments = ['--config=experiment.py', '--workdir=many', '--workers=2']
  prepared = command(tmp_path, 'sweep', *arguments)
  prepared['args'] = [sys.executable, '-c', program, *arguments]
  all_of_it, memory = cpu_seconds(prepared)
  report, _ = cpu_seconds(command(tmp_path, 'report', '--workdir=many'))
  again, _ = cpu_seconds(prepared)
  each = (all_of_it - report) / runs
  print(
      f'\n{runs} runs: {1e3 * each:.1f} ms of CPU each; report {report:.1f} s;'
      f' started again {again - report:.1f} s beside the report'
  )
  ended = sorted(path.stat().st_mtime for path in tmp_path.glob('many/runs/*/result.json'))
  assert len(ended) == runs
  assert each < 0.05 and report < 60 and again - report < 0.005 * runs
  for pid, readings in memory.items():
    times = [at for at in sorted(readings) if ended[runs // 10] < at < ended[-runs // 20]]
    if times:  # while the runs are trained
      early, late = readings[times[0]], readings[times[-1]]
      print(f'process {pid}: {early:.0f} MB, then {late:.0f} MB')
      assert late < early + 10
