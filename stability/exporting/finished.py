"""The runs of a workdir that have ended, as other tools describe a run."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stability.config import Config
from stability.errors import BadInput
from stability.storage import files, run_files, sweeps


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """A run with a result."""

  name: str
  sweep: str  # name of the workdir
  config: Config
  result: run_files.Result
  rows: list[files.Json]  # of metrics.jsonl; null stands for a number that is not finite
  started: float  # seconds since the epoch

  @property
  def id(self) -> str:
    """An id that depends on the sweep and the run alone, so that a second export has the same."""
    content = json.dumps([self.sweep, self.name, self.config], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]

  def metrics(self) -> Iterator[tuple[int, dict[str, float]]]:
    """The step and the numbers of each row."""
    for row in self.rows:
      numbers = {name: _number(value) for name, value in row.items() if name != 'step'}
      yield row['step'], {name: value for name, value in numbers.items() if value is not None}

  def summary(self) -> dict[str, float]:
    """The numbers of result.json. A finished run's loss that is null is not finite: NaN."""
    found = {}
    for name, value in self.result.to_json().items():
      if isinstance(value, int | float):
        found[name] = value
      elif name.endswith('_loss') and self.result.status in ('done', 'diverged'):
        found[name] = math.nan
    return found

  def text(self) -> dict[str, str]:
    """The texts of result.json: status, and the error of a failed run."""
    return {name: value for name, value in self.result.to_json().items() if isinstance(value, str)}


def count(workdir: Path) -> tuple[int, int]:
  """How many runs of a sweep have ended, forks included, and how many have not."""
  results = [run_files.read_result(run_files.run_dir(workdir, name)) for name in _names(workdir)]
  ended = sum(result is not None for result in results)
  return ended, len(results) - ended


def runs(workdir: Path) -> Iterator[FinishedRun]:
  """The runs that have ended, forks included, in the order of sweep.json.

  Raises BadInput for a file that cannot be read.
  """
  for name in _names(workdir):
    run = run_files.run_dir(workdir, name)
    result = run_files.read_result(run)
    if result is not None:
      try:
        rows, started = run_files.read_metrics(run), (run / 'config.json').stat().st_mtime
      except OSError as error:
        raise BadInput(f'{error.filename}: cannot be read: {error.strerror}') from error
      config = files.read_json(run / 'config.json')
      yield FinishedRun(name, workdir.resolve().name, config, result, rows, started)


def _names(workdir: Path) -> list[str]:
  return [*sweeps.read_sweep(workdir).runs, *sweeps.read_forks(workdir)]


def _number(value: Any) -> float | None:
  """A number; NaN for null, and None for anything else."""
  if value is None:
    return math.nan
  return value if isinstance(value, int | float) and not isinstance(value, bool) else None
