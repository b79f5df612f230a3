"""The finished runs of a workdir that a flag names."""

import fnmatch
import sys
from pathlib import Path

from absl import flags

from stability.errors import BadInput
from stability.storage import run_files, sweeps


def define(holder: flags.FlagValues) -> flags.FlagHolder[str]:
  """Defines --runs."""
  return flags.DEFINE_string(
      'runs', '*', 'names of runs, in which * stands for anything; quote it', flag_values=holder
  )


def named(workdir: Path, sweep: sweeps.Sweep, pattern: str) -> list[str]:
  """The finished runs that a pattern names; a line on stderr names those without a finite loss.

  Raises:
    BadInput: there are none.
  """
  finished = {}
  for name in sweep.runs:
    result = run_files.read_result(run_files.run_dir(workdir, name))
    if result is not None and result.status in ('done', 'diverged', 'stopped'):
      finished[name] = result
  names = [name for name in finished if fnmatch.fnmatchcase(name, pattern)]
  if not names:
    example = f'; one is {next(iter(finished))}' if finished else ', since none has finished'
    raise BadInput(f'--runs={pattern}: names no finished run{example}')
  infinite = [name for name in names if finished[name].final_loss is None]
  for name in infinite:
    print(f'{name}: left out, its final loss is not finite', file=sys.stderr)
  return [name for name in names if name not in infinite]
