"""The device on which runs will be trained; reused runs must come from the same one."""

import json
import os
import subprocess
import sys

from launch.common import environment, programs

_PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from stability import settings
print(json.dumps(settings.device()))
"""
_SECONDS = 120


def find() -> dict[str, str]:
  """The device, as settings.device describes it, on which workers on this machine train.

  jax is asked in a separate process, so that this one uses no accelerator.
  """
  if not environment.has_accelerator():
    return {'platform': 'cpu'}
  variables = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  command = [sys.executable, '-P', '-c', _PROGRAM, programs.ROOT]
  try:
    done = subprocess.run(command, env=variables, timeout=_SECONDS, check=True, capture_output=True)
    return json.loads(done.stdout)
  except (subprocess.SubprocessError, ValueError):
    return {'platform': 'unknown'}
