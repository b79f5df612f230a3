"""Replay of a run: trains it again with the actions taken on it and compares the numbers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from launch.backends import local
from launch.common import display, environment
from stability import config as config_lib
from stability import extensions
from stability.config import Config
from stability.control import records
from stability.errors import BadInput
from stability.hyper import Runs
from stability.storage import files, parents, run_files, sweeps
from stability.storage.files import Json

WALL_CLOCK = ('seconds', 'tokens_per_second')  # values that differ from training to training

Train = Callable[[Path, Mapping[str, Config]], None]


def _train_in_one_worker(workdir: Path, configs: Mapping[str, Config], cores: int | None) -> None:
  if cores is not None:  # more of them may round differently
    environment.pin(environment.cores()[:cores])
  local.train(workdir, configs, workers=1)


def replay(run: Path, workdir: Path, console: Console, train: Train | None = None) -> int:
  """Trains a finished run again, in a new workdir, and compares the numbers.

  The trainer reads the actions to take, and their steps, from actions.jsonl.

  Args:
    run: the run's folder.
    workdir: the new folder, or that of an interrupted replay of the run.
    console: receives the comparison.
    train: trains runs of a workdir until they have results; None: a worker with as many cores as
      that of the run had.

  Returns:
    0 if every number is the same, 1 otherwise.

  Raises:
    BadInput: the run has no result or was resumed with other options, or the workdir holds
      something else.
  """
  environment.check()
  sweeps.refuse_imported(run.parent.parent)
  result = run_files.read_result(run)
  if result is None or result.status == 'failed':
    raise BadInput(f'--run={run}: has not ended; only a run with a result can be replayed')
  source = run.parent.parent
  sweep = sweeps.read_sweep(source)
  runs = Runs(sweep.fields, {run.name: _config(run)})
  sweeps.check_workdir(workdir, runs)
  data = sweep.data | {'path': str((source / sweep.data['path']).absolute())}
  sweeps.write_sweep(workdir, dataclasses.replace(sweep, runs=runs.configs, data=data))
  if sweep.extensions:
    extensions.check(source, sweep.extensions)
    folder = sweep.extensions['folder']
    for name in sweep.extensions['files']:
      files.write_atomic(workdir / folder / name, (source / folder / name).read_bytes())
  copy = run_files.run_dir(workdir, run.name)
  if started_from := parents.read(run):
    parents.write(copy, started_from)
  if (run / run_files.LIMITS).exists():
    files.write_json(copy / run_files.LIMITS, files.read_json(run / run_files.LIMITS))
  if not (copy / records.FILE).exists():
    taken = records.read_taken(run)
    records.write_taken(copy, [record for record in taken if record.action.kind != 'fork'])
  if waiting := sweeps.runs_to_train(workdir, runs.configs):
    (first, *_) = files.read_lines(run / 'versions.jsonl') or [{}]
    cores, versions = first.get('cores'), copy / 'versions.jsonl'
    if first and not versions.exists():  # the trainer makes a population as wide as it says
      files.write_lines(versions, [first])
    (train or functools.partial(_train_in_one_worker, cores=cores))(workdir, waiting)
  (new, new_result), (old, old_result) = _numbers(copy), _numbers(run)
  same = sum(a == b for a, b in zip(new, old, strict=False))
  comparison = 'is the same' if new_result == old_result else 'differs'
  display.line(
      console,
      f'{same} of {len(old)} logged steps are the same, bit for bit; the result {comparison}'
      f'{_difference(new, old)}',
  )
  return 0 if (new, new_result) == (old, old_result) else 1


def _difference(new: list[Json], old: list[Json]) -> str:
  """The largest difference of a loss, as the end of a sentence; empty if there is none."""
  losses = [
      (after['loss'], before['loss'])
      for after, before in zip(new, old, strict=False)
      if after.get('loss') is not None and before.get('loss') is not None
  ]
  largest = max((abs(after - before) for after, before in losses), default=0)
  return f'; losses differ by up to {largest:.1g}' if largest else ''


def _config(run: Path) -> Config:
  """The config that a run was trained with; BadInput if there was more than one."""
  lines = files.read_lines(run / 'versions.jsonl')
  first, *later = [line.get('options', {}) for line in lines] or [{}]
  for options in later:
    if options != first:
      fields = sorted({**first, **options})
      raise BadInput(
          f'--run={run}: was resumed with other values of config.{", config.".join(fields)}; only a'
          ' run that was trained with one config can be replayed'
      )
  return config_lib.unflatten(config_lib.flatten(run_files.read_config(run)) | first)


def _numbers(run: Path) -> tuple[list[Json], Json | None]:
  """The rows and the result of a run, without wall-clock values."""

  def numbers(found: Json) -> Json:
    return {key: found[key] for key in found if key not in WALL_CLOCK}

  result = run_files.read_result(run)
  rows = list(map(numbers, run_files.read_metrics(run)))
  return rows, None if result is None else numbers(result.to_json())
