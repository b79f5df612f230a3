"""Runs a manifest as an experiment of XManager: each job a work unit, on this machine.

  python -m launch.sweep --config=... --workdir=DIR --backend=manifest --jobs=2
  python -m launch.xmanager --workdir=DIR

All jobs start at once, as processes, without Docker and Bazel. For another executor of XManager's,
start from this file.

Exit codes: 0 all jobs ended well, 1 some did not, 2 bad input, 75 told to end with its jobs.
After 1 and 75 the same command goes on.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from launch.common import app, preemption
from stability.errors import BadInput

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)


def main() -> int:
  """Runs the manifest of a sweep."""
  path = Path(_WORKDIR.value) / 'manifest.jsonl'
  try:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
  except (OSError, ValueError) as error:
    raise BadInput(f'{path}: {error}; launch.sweep --backend=manifest writes it') from error
  try:
    import xmanager  # noqa: F401
  except ImportError as error:
    raise BadInput('launch.xmanager: XManager is not installed: pip install xmanager') from error
  flags.FLAGS([''])  # XManager reads its own
  logging.set_verbosity(logging.FATAL)  # told to end, it logs a traceback for every job
  failed = asyncio.run(_run(f'stability {path.parent}', lines))
  print(f'{len(lines) - failed} of {len(lines)} jobs ended well')
  return 1 if failed else 0


async def _run(title: str, lines: Sequence[dict[str, Any]]) -> int:
  """The number of jobs that failed."""
  from xmanager import xm, xm_local

  ends = []
  try:
    async with xm_local.create_experiment(title) as experiment:
      units = []
      for line in lines:
        program, *arguments = line['command']
        (executable,) = experiment.package([xm.binary(xm_local.Local.Spec(), program)])
        # A local job has no other variables than these; a shell's functions are not among them.
        variables = {k: v for k, v in (os.environ | line['env']).items() if k.isidentifier()}
        job = xm.Job(executable, xm_local.Local(), line['name'], arguments, variables)
        units.append(await experiment.add(job))
      waits = [unit.wait_until_complete() for unit in units]
      ends = await asyncio.gather(*waits, return_exceptions=True)  # one that fails ends no others
  except RuntimeError:  # raised on leaving, too, for a job that failed
    if not ends:
      raise
  return sum(isinstance(end, Exception) for end in ends)


if __name__ == '__main__':
  preemption.install()
  app.run(main, FLAGS)
