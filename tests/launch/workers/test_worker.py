"""What a worker reports to its launcher."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from helpers import made_up

from configs import base
from stability import hyper

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]
WORKER = """
import time
import jax
from helpers.stub_layout import StubLayout
from launch.workers import worker
from stability.storage import sweeps

def make_layout(workdir, sweep, static, hparams, runs, max_members, on_members):
  for n in range(3):
    time.sleep(2)
    on_members(1) if n == 0 else jax.jit(lambda x: x + n).lower(1.0).compile()
  time.sleep(2)
  return StubLayout()

worker.BEAT_SECONDS = 0.1
sweeps.check_data = lambda workdir, sweep: None  # the stub reads none
worker.main(make_layout)
"""


def test_each_compilation_is_progress(tmp_path):
  """Together, those of a group may take longer than the time after which a worker hangs."""
  runs = hyper.expand(base.get_config().to_dict(), hyper.sweep('seed', [0]))
  made_up.write_runs(tmp_path, runs)
  (name,) = runs.configs
  (tmp_path / 'worker.py').write_text(WORKER)
  worker = subprocess.Popen(
      [sys.executable, 'worker.py', f'--workdir={tmp_path}', '--cores=0'],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
  )
  idle, answers = [], iter([{'run': name, 'members': 1, 'runs': 1}])
  try:
    for line in worker.stdout:
      message = json.loads(line)
      if message.get('phase') in ('reading text', 'compiling'):
        idle.append(message['beat'])
      elif 'like' in message:
        worker.stdin.write(json.dumps(next(answers, {'run': None})) + '\n')
        worker.stdin.flush()
    assert worker.wait(60) == 0
  finally:
    worker.kill()
    worker.stdin.close()
  assert 1.8 < max(idle) < 3.5  # seconds; each part takes 2, all together 8
