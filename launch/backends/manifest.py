"""The manifest backend: DIR/manifest.jsonl with a line per job, for any other scheduler.

  {"name": "stability-3f0c...", "command": ["python", ..., "launch.work", ...],
   "env": {"PYTHONPATH": ...}, "resources": {"cpus": 4, "gpus": 0, "memory_gb": 8, "minutes": 60}}

Resources that no flag specifies are null. The same runs with the same flags give the same lines. A
job that ends with exit code 75 must be started again.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from launch.common import jobs
from launch.common.jobs import Resources
from stability.config import Config
from stability.storage import files


def lines(workdir: Path, configs: Mapping[str, Config], resources: Resources) -> list[files.Json]:
  """The lines of the manifest, one for each job that trains some of the runs."""
  return [
      {
          'name': f'stability-{path.stem}',
          'command': [*jobs.command(workdir, resources), f'--runs={path}'],
          'env': jobs.environment(resources),
          'resources': {
              'cpus': resources.cpus,
              'gpus': resources.gpus,
              'memory_gb': resources.memory_gb,
              'minutes': resources.minutes,
          },
      }
      for path in jobs.divide(workdir, configs, resources)
  ]


def show(workdir: Path, configs: Mapping[str, Config], resources: Resources) -> None:
  """Prints the manifest of a new sweep."""
  for line in lines(workdir, configs, resources):
    print(json.dumps(line))


def write(workdir: Path, configs: Mapping[str, Config], resources: Resources) -> None:
  """Writes the manifest of the unfinished runs."""
  workdir = workdir.absolute()
  jobs.write_lists(jobs.divide(workdir, configs, resources))
  written = lines(workdir, configs, resources)
  files.write_lines(workdir / 'manifest.jsonl', written)
  print(f'{len(written)} jobs for {len(configs)} runs: {workdir / "manifest.jsonl"}')
