"""Nothing that is only convenient ends training or loses a report.

| convenience | where | tests of its faults |
|---|---|---|
| folder of compiled executables | environment._is_usable | launch/common/test_*.py |
| results of trials of XLA flags | environment._trial | launch/common/test_*.py |
| pinning, quotas of cores | environment.pin, cgroups | launch/common/test_*.py |
| shared compilations and their locks | devices/compilation.py | devices/test_compilation.py |
| entries of jax's cache | devices/compilation.py | devices/test_compilation.py |
| stdin, stdout, stderr, size of the terminal | launch/common/streams.py | launch/common/test_*.py |
| progress line | launch/common/display.py | launch/common/test_*.py |
| logs of jobs | jobs.show_progress | here |
| name of the user | common.user | launch/test_control.py |
| name and boot of the machine, /proc | storage/leases.py | storage/test_leases.py |
| TensorBoard's event files | storage/events.py | storage/test_metrics.py |
| Matplotlib's backend and folders | app.run | here |

Each errs with one warning, or silently where there is nobody to warn. A workdir that cannot be
written to is an error (storage/test_file_faults.py).
"""

import json
import os
import subprocess
import sys

import pytest
from helpers import experiment, made_up
from helpers.processes import command

from launch.common import jobs
from stability.storage import run_files, sweeps

pytestmark = pytest.mark.slow

EXPERIMENT = experiment.config_file({
    'data.batch_size': 2,
    'data.sequence_length': 8,
    'data.validation_batches': 1,
    'model.depth': 0,
    'schedule.steps': 4,
    'schedule.warmup_steps': 1,
})


def test_everything_at_once(place):
  """A run without home, cache, terminal, standard output, encoding or Matplotlib's folders."""
  found = command(place, 'train', '--config=experiment.py', '--workdir=run')
  environment = found.pop('env') | {
      'XDG_CACHE_HOME': '/dev/null',
      'HOME': '/proc/nothing',
      'MPLCONFIGDIR': '/proc/nothing',
      'MPLBACKEND': 'nonsense',
      'PYTHONIOENCODING': 'ascii',
      'COLUMNS': 'wide',
      'TERM': 'nonsense',
  }
  script = 'exec "$0" "$@" >&- <&-'
  arguments = found.pop('args')
  done = subprocess.run(
      ['bash', '-c', script, *arguments], env=environment, stderr=-1, check=False, **found
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('warning: ') == 1
  result = run_files.read_result(place / 'run/runs/seed=0')
  assert result.status == 'done'
  assert (place / 'run/report/index.html').stat().st_size > 10_000


def test_backend_of_matplotlib(tmp_path):
  """A notebook's backend may be set in a shell, where it is not installed."""
  (tmp_path / 'runs.csv').write_text('learning_rate,final_loss\n1e-3,2.0\n1e-2,1.5\n')
  done = subprocess.run(
      [
          *(sys.executable, '-m', 'launch.report', f'--results={tmp_path}/runs.csv'),
          *(f'--output={tmp_path}/report', '--initial_loss=3'),
      ],
      env=os.environ | {'MPLBACKEND': 'nonsense'},
      capture_output=True,
      text=True,
      check=False,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'report/index.html').exists()


def test_logs_that_cannot_be_read(tmp_path, monkeypatch, capsys):
  names = made_up.write_sweep(tmp_path, leave_out=(0,))
  configs = {names[0]: sweeps.read_sweep(tmp_path).runs[names[0]]}
  logs = tmp_path / 'slurm'
  logs.mkdir()
  (logs / '1.log').write_text(json.dumps('text'))

  read = jobs.Path.read_text

  def read_text(path, *args, **options):
    if path.parent == logs:
      raise PermissionError(13, 'Permission denied')
    return read(path, *args, **options)

  monkeypatch.setattr(jobs.Path, 'read_text', read_text)
  monkeypatch.setattr(jobs, 'LATE_SECONDS', 0.0)
  jobs.show_progress(tmp_path, configs, lambda: False, logs)
  said = capsys.readouterr().err.splitlines()
  assert said[-2:] == [
      'no job is left, but some runs are unfinished',
      'warning: the logs of jobs cannot be read: [Errno 13] Permission denied',
  ]
