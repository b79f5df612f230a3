"""Sweeps of many runs: the overhead per run does not grow with their number.

The soak test (pytest -m soak tests/launch/test_scale.py) has 5,000 runs and prints its readings.
"""

import pathlib
import resource
import subprocess
import sys
import threading
import time

import pytest
from helpers import experiment, made_up
from helpers.processes import children, command

from configs import base
from launch.backends import local
from launch.workers import worker_process
from stability import hyper
from stability.storage import results_csv, sweeps

HELPERS = pathlib.Path(__file__).parents[1] / 'helpers'

SOAK_RUNS = 5_000
EXPERIMENT = experiment.config_file(
    {
        'schedule.steps': 20,
        'schedule.warmup_steps': 1,
        'checkpoint.every_steps': 0,
    },
    f"""hyper.product([
      hyper.sweep('optimizer.learning_rate', [10 ** (-n / 10) for n in range(50)]),
      hyper.sweep('seed', range({SOAK_RUNS // 50})),
  ])""",
)


def calls_to_schedule(workdir, runs, monkeypatch):
  """The launcher's function calls from writing a new sweep to its last result."""
  expanded = hyper.expand(base.get_config().to_dict(), hyper.sweep('seed', range(runs)))
  workdir.mkdir()
  (workdir / 'plan.json').write_text('{}')
  stub = (sys.executable, '-S', '-E', str(HELPERS / 'stub_worker.py'), str(workdir / 'plan.json'))
  monkeypatch.setattr(worker_process, 'COMMAND', stub)
  count = [0]

  def profile(frame, event, argument):
    if event in ('call', 'c_call'):
      count[0] += 1

  threading.setprofile(profile)  # for the threads that serve workers
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


@pytest.mark.slow
def test_overhead_per_run_is_constant(tmp_path, monkeypatch):
  """Counts calls, which hardly depend on the load of the machine: three times the runs."""
  monkeypatch.setattr(local, 'POLL_SECONDS', 1.0)
  small = calls_to_schedule(tmp_path / 'small', 100, monkeypatch)
  large = calls_to_schedule(tmp_path / 'large', 300, monkeypatch)
  assert large / small < 3 * 1.3


def cpu_seconds(arguments):
  """The CPU seconds of a process and its children, and their memory over time."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  process = subprocess.Popen(**arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  memory = {}
  watcher = threading.Thread(target=record_memory, args=(process, memory))
  watcher.start()
  printed, _ = process.communicate()
  watcher.join()
  assert process.returncode == 0, printed
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, memory


def record_memory(process, memory):
  """Records the resident MB of a process and its children by time."""
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
  runs = SOAK_RUNS
  (tmp_path / 'experiment.py').write_text(EXPERIMENT)
  program = (
      'import sys; from launch import sweep; from launch.common import app;'
      'from launch.workers import worker_process;'
      f'worker_process.COMMAND = (sys.executable, {str(HELPERS / "noop_worker.py")!r});'
      'app.run(sweep.main, sweep.FLAGS)'
  )
  arguments = ['--config=experiment.py', '--workdir=many', '--workers=2']
  prepared = command(tmp_path, 'sweep', *arguments)
  prepared['args'] = [sys.executable, '-c', program, *arguments]
  total, memory = cpu_seconds(prepared)
  report, _ = cpu_seconds(command(tmp_path, 'report', '--workdir=many'))
  again, _ = cpu_seconds(prepared)
  per_run = (total - report) / runs
  print(
      f'\n{runs} runs: {1e3 * per_run:.1f} ms of CPU each; report {report:.1f} s;'
      f' a second start {again - report:.1f} s without the report'
  )
  ended = sorted(path.stat().st_mtime for path in tmp_path.glob('many/runs/*/result.json'))
  assert len(ended) == runs
  assert per_run < 0.05 and report < 60 and again - report < 0.005 * runs
  for pid, readings in memory.items():
    times = [at for at in sorted(readings) if ended[runs // 10] < at < ended[-runs // 20]]
    if times:  # while runs are trained
      early, late = readings[times[0]], readings[times[-1]]
      print(f'process {pid}: {early:.0f} MB, then {late:.0f} MB')
      assert late < early + 10
