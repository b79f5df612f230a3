"""The maximum number of runs per device that the launcher sets after a lack of memory."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers import made_up

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.control import requests
from stability.control.actions import Action
from stability.storage import run_files

pytestmark = pytest.mark.slow

WORKER = """
from helpers.stub_layout import StubLayout
from launch.workers import worker
from stability.storage import sweeps

def make_layout(workdir, sweep, static, hparams, runs, max_members, on_members):
  with open('limits', 'a') as file:
    file.write(f'{max_members} ')
  return StubLayout()

sweeps.check_data = lambda workdir, sweep: None  # the stub reads none
worker.main(make_layout)
"""


def test_limit_of_a_paused_run(tmp_path):
  """It holds when the run is continued, for which the worker does not ask the launcher."""
  flat = config_lib.flatten(base.get_config().to_dict())
  flat |= {'schedule.steps': 20, 'schedule.warmup_steps': 2, 'log.every_steps': 4}
  runs = hyper.expand(config_lib.unflatten(flat), hyper.sweep('seed', [0]))
  made_up.write_runs(tmp_path, runs)
  (name,) = runs.configs
  run = run_files.run_dir(tmp_path, name)
  requests.write_request(run, Action('pause'), 'ann', '')
  root = pathlib.Path(__file__).parents[3]
  (tmp_path / 'worker.py').write_text(WORKER)
  worker = subprocess.Popen(
      [sys.executable, 'worker.py', f'--workdir={tmp_path}', '--cores=0'],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': f'{root}:{root / "tests"}'},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
  )
  answers = iter([{'run': name, 'members': 3, 'runs': 5}])
  try:
    for line in worker.stdout:
      if 'like' in json.loads(line):
        worker.stdin.write(json.dumps(next(answers, {'run': None})) + '\n')
        worker.stdin.flush()
      if (run / 'actions.jsonl').exists() and not (tmp_path / 'continued').exists():
        (tmp_path / 'continued').touch()
        requests.write_request(run, Action('continue'), 'ann', '')
    assert worker.wait(60) == 0
  finally:
    worker.kill()
    worker.stdin.close()
  assert run_files.read_result(run).status == 'done'
  assert (tmp_path / 'limits').read_text() == '3 3 '
