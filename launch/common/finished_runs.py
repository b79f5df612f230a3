"""Programs that measure finished runs: which runs, and what this process needs to load them."""

import dataclasses
import fnmatch
import os
import sys
from pathlib import Path

from absl import flags

from launch.common import environment
from stability import extensions
from stability.errors import BadInput
from stability.storage import parents, run_files, sweeps
from stability.storage.files import Json


def define(holder: flags.FlagValues) -> flags.FlagHolder[str]:
  """Defines --runs."""
  return flags.DEFINE_string(
      'runs',
      '*',
      'names of runs, forks among them, in which * stands for anything; quote it',
      flag_values=holder,
  )


def open_sweep(workdir: Path) -> sweeps.Sweep:
  """The sweep of a workdir, with the forks among its runs.

  Raises BadInput if the runs were imported or their text is missing.
  """
  sweep = sweeps.read_sweep(workdir)
  sweeps.refuse_imported(workdir)
  sweeps.check_data(workdir, sweep)
  return dataclasses.replace(sweep, runs=sweep.runs | sweeps.fork_configs(workdir))


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


def parent(workdir: Path, name: str) -> Json | None:
  """The record of the checkpoint that a run started from; None if it has none."""
  return parents.read(run_files.run_dir(workdir, name)).get('checkpoint')


def prepare(workdir: Path, sweep: sweeps.Sweep) -> None:
  """Prepares this process for the models of a sweep, as a worker is, before it imports jax."""
  environment.check()
  os.environ.update(environment.worker_environment())
  environment.check_devices()
  extensions.load(workdir, sweep.extensions)
