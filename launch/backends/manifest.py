"""The manifest backend: DIR/manifest.jsonl, a line per job, for a scheduler of the user's.

  {"name": "stability-3f0c...", "command": ["python", "-m", "launch.work", ...],
   "env": {"PYTHONPATH": ...}, "resources": {"cpus": 4, "gpus": 0, "memory_gb": 8, "minutes": 60}}

A resource nobody has named is null. The same runs with the same flags give the same lines. A job
that ends with exit code 75 is to be started again.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from launch.common import jobs
from launch.common.jobs import Needs
from stability.config import Config
from stability.storage import files


def lines(workdir: Path, configs: Mapping[str, Config], needs: Needs) -> list[files.Json]:
  """The jobs that train the runs."""
  resources = {
      'cpus': needs.cpus,
      'gpus': needs.gpus,
      'memory_gb': needs.memory_gb,
      'minutes': needs.minutes,
  }
  return [
      {
          'name': f'stability-{path.stem}',
          'command': [*jobs.command(workdir, needs), f'--runs={path}'],
          'env': jobs.environment(),
          'resources': resources,
      }
      for path in jobs.lists(workdir, configs, needs)
  ]


def show(workdir: Path, configs: Mapping[str, Config], needs: Needs) -> None:
  """Prints the manifest of a sweep that is new."""
  for line in lines(workdir, configs, needs):
    print(json.dumps(line))


def write(workdir: Path, waiting: Mapping[str, Config], needs: Needs) -> None:
  """Writes the manifest of the runs that are not over."""
  workdir = workdir.absolute()
  jobs.write_lists(jobs.lists(workdir, waiting, needs))
  found = lines(workdir, waiting, needs)
  files.write_lines(workdir / 'manifest.jsonl', found)
  print(f'{len(found)} jobs for {len(waiting)} runs: {workdir / "manifest.jsonl"}')
