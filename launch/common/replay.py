"""Trains a run once more, with the actions that were taken on it, and compares the numbers."""

from pathlib import Path

from rich.console import Console

from launch.backends import local
from stability.control import actions
from stability.errors import BadInput
from stability.hyper import Runs
from stability.storage import workdir as workdir_lib

WALL_CLOCK = ('seconds', 'tokens_per_second')


def replay(run: Path, workdir: Path, console: Console) -> int:
  """Trains the run in a new workdir; returns 0 if every number is the same, else 1.

  Its actions.jsonl is all that the trainer needs: it finds there what to take, and where.
  """
  result = workdir_lib.read_result(run)
  if result is None or result['status'] == 'failed':
    raise BadInput(f'--run={run}: is not over; a run with a result can be replayed')
  source = run.parent.parent
  sweep = workdir_lib.read_sweep(source)
  runs = Runs(tuple(sweep['fields']), {run.name: workdir_lib.read_config(run)})
  workdir_lib.check_new(workdir, runs)
  data = sweep['data'] | {'path': str((source / sweep['data']['path']).absolute())}
  workdir_lib.write_sweep(
      workdir,
      runs,
      config_file=sweep['config_file'],
      scale=sweep['scale'],
      overrides=sweep['overrides'],
      data=data,
      versions=sweep['versions'],
      report=sweep['report'],
  )
  copy = workdir_lib.run_dir(workdir, run.name)
  if not (copy / 'actions.jsonl').exists():
    taken = [r for r in actions.done(actions.read(run)) if r['action'] != 'fork']
    workdir_lib.write_lines(copy / 'actions.jsonl', taken)
  waiting = workdir_lib.waiting(workdir, runs.configs)
  if waiting:
    local.train(workdir, waiting, workers=1)
  ours, theirs = (_numbers(folder) for folder in (copy, run))
  same = sum(a == b for a, b in zip(ours, theirs, strict=False))
  console.print(
      f'{same} of {len(theirs)} logged steps are the same, bit for bit',
      highlight=False,
  )
  return 0 if ours == theirs else 1


def _numbers(run: Path) -> list[workdir_lib.Json]:
  """The run's lines and its result, without what the clock says."""
  lines = [*workdir_lib.read_metrics(run), workdir_lib.read_result(run) or {}]
  return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]
