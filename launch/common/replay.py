"""Trains a run once more, with the actions that were taken on it, and compares the numbers."""

import dataclasses
import shutil
from pathlib import Path

from rich.console import Console

from launch.backends import local
from stability import extensions
from stability.control import actions
from stability.errors import BadInput
from stability.hyper import Runs
from stability.storage import files, run_files, sweeps

WALL_CLOCK = ('seconds', 'tokens_per_second')


def replay(run: Path, workdir: Path, console: Console) -> int:
  """Trains the run in a new workdir; returns 0 if every number is the same, else 1.

  Its actions.jsonl is all that the trainer needs: it finds there what to take, and where.
  """
  result = run_files.read_result(run)
  if result is None or result.status == 'failed':
    raise BadInput(f'--run={run}: is not over; a run with a result can be replayed')
  source = run.parent.parent
  sweep = sweeps.read_sweep(source)
  runs = Runs(sweep.fields, {run.name: run_files.read_config(run)})
  sweeps.check_workdir(workdir, runs)
  data = sweep.data | {'path': str((source / sweep.data['path']).absolute())}
  sweeps.write_sweep(workdir, dataclasses.replace(sweep, runs=runs.configs, data=data))
  if sweep.extensions:
    extensions.check(source, sweep.extensions)
    shutil.copytree(source / 'extensions', workdir / 'extensions', dirs_exist_ok=True)
  copy = run_files.run_dir(workdir, run.name)
  if not (copy / 'actions.jsonl').exists():
    taken = [r for r in actions.done(actions.read(run)) if r['action'] != 'fork']
    files.write_lines(copy / 'actions.jsonl', taken)
  waiting = sweeps.runs_to_train(workdir, runs.configs)
  if waiting:
    local.train(workdir, waiting, workers=1)
  ours, theirs = (_numbers(folder) for folder in (copy, run))
  same = sum(a == b for a, b in zip(ours, theirs, strict=False))
  console.print(
      f'{same} of {len(theirs)} logged steps are the same, bit for bit',
      highlight=False,
  )
  return 0 if ours == theirs else 1


def _numbers(run: Path) -> list[files.Json]:
  """The run's lines and its result, without what the clock says."""
  result = run_files.read_result(run)
  lines = [*run_files.read_metrics(run), {} if result is None else result.to_json()]
  return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]
