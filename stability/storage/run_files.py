"""The files of one run. Other programs may read them: their format is public (launch/README.md).

  DIR/runs/NAME/config.json     the resolved config
  DIR/runs/NAME/metrics.jsonl   a row per logged step, appended (metrics.py writes them)
  DIR/runs/NAME/result.json     the outcome, written last
  DIR/runs/NAME/limits.json     the alarm limits of a run with config.control.limits
  DIR/runs/NAME/alarms.jsonl, actions.jsonl, requests/   see stability/control
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput
from stability.storage import files, schema
from stability.storage.files import Json

LIMITS = 'limits.json'  # alarm limits of a run with config.control.limits

_OF_TRAINER = (  # the files that only a process under the lease of the run writes, as a whole
    *('metrics*.jsonl', 'alarms.jsonl', 'actions.jsonl', 'versions.jsonl'),
    *('parameters.safetensors', 'result.json'),
)

STATUSES = ('done', 'diverged', 'failed', 'stopped')
COURSE_ACTIONS = ('set', 'skip', 'rewind')  # those that change what a run computes


@dataclasses.dataclass(frozen=True)
class Result:
  """The outcome of a run. Unknown values, such as those of a failed run, are None."""

  status: str  # one of STATUSES
  initial_loss: float | None = None  # nats; on disk, a loss that is not finite is null
  final_loss: float | None = None  # nats
  parameters: int | None = None
  steps: int | None = None  # updates made
  tokens: int | None = None  # number of tokens trained on
  seconds: float | None = None  # training time
  error: str | None = None  # the traceback of a failed run
  trained_in: str | None = None  # folder of the run that was copied, relative to this run's

  def to_json(self) -> Json:
    """The object in result.json."""
    found = dataclasses.asdict(self)
    if self.trained_in is None:
      del found['trained_in']
    return found

  @classmethod
  def from_json(cls, found: Json, path: Path) -> Self:
    """The inverse of to_json; for a damaged object, raises BadInput that names the path."""
    if found.get('status') not in list(STATUSES):
      raise BadInput(f'{path}: damaged: status must be one of {", ".join(STATUSES)}')
    names = [field.name for field in dataclasses.fields(cls)]
    for name in names[1:]:
      is_text = name in ('error', 'trained_in')
      value, kind = found.get(name), str if is_text else int | float
      if not isinstance(value, kind | None) or isinstance(value, bool):
        raise BadInput(f'{path}: damaged: {name} must be {"text" if is_text else "a number"}')
    return cls(**{name: found.get(name) for name in names})


def final_status(initial_loss: float, final_loss: float) -> str:
  """'diverged' if the final loss is not finite or is above the initial loss, otherwise 'done'."""
  return 'done' if math.isfinite(final_loss) and final_loss <= initial_loss else 'diverged'


def run_dir(workdir: Path, name: str) -> Path:
  """The folder of a run; BadInput for a name that would lead out of runs/."""
  if name != os.path.basename(name) or name in ('', '.', '..') or '\0' in name:
    raise BadInput(f'{workdir}: has a run named {name!r}: must be the name of a folder in runs/')
  return workdir / 'runs' / name


def remove_temporaries(run: Path) -> None:
  """Deletes what a trainer that was killed has left of files; requires the lease of the run."""
  files.remove_temporaries(run, *_OF_TRAINER)


def read_config(run: Path) -> Config:
  """The config of a run, with newer fields added; BadInput if config.json is damaged."""
  config = files.read_json(run / 'config.json')
  schema.check_config(f'{run / "config.json"}', config)
  return config_lib.complete(config)


def write_result(run: Path, result: Result) -> None:
  """Writes result.json, which ends the run."""
  assert result.status in STATUSES, result
  files.write_json(run / 'result.json', result.to_json())


def write_failure(run: Path, error: str) -> None:
  """Writes the result of a run that could not be trained; the next start retries the run."""
  write_result(run, Result(status='failed', error=error))


def read_result(run: Path) -> Result | None:
  """The outcome of a run, or None until it has ended."""
  path = run / 'result.json'
  found = files.find_json(path)
  return None if found is None else Result.from_json(found, path)


def count_course_actions(run: Path) -> int:
  """How many actions in actions.jsonl changed the course of a run; refused ones do not count."""
  records = files.read_lines(run / 'actions.jsonl')
  return sum('refused' not in r and r.get('action') in COURSE_ACTIONS for r in records)


def checkpoint_steps(run: Path) -> list[int]:
  """The steps of the checkpoints that a run has, damaged ones too, ascending."""
  folder = run / 'checkpoints'
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch('[0-9]+', path.name))


def read_metrics(run: Path) -> list[Json]:
  """The rows of metrics.jsonl."""
  return files.read_lines(run / 'metrics.jsonl')


def iterate_metrics(run: Path) -> Iterator[Json]:
  """The rows of metrics.jsonl one after another: those of a long run may take gigabytes."""
  return files.iterate_lines(run / 'metrics.jsonl')


def last_metrics(run: Path) -> Json | None:
  """The last row of metrics.jsonl, read from its end; None if there is none."""
  return files.read_last_line(run / 'metrics.jsonl')


def has_metrics(workdir: Path, name: str) -> bool:
  """Whether a run has logged rows."""
  return last_metrics(run_dir(workdir, name)) is not None


def highest(row: Mapping[str, Any], probe: str) -> float:
  """The largest finite value of a probe over all blocks; NaN if there is none."""
  values = [row[key] for key in row if key.startswith('block_') and key.endswith(f'/{probe}')]
  finite = [value for value in values if value is not None and math.isfinite(value)]
  return max(finite, default=math.nan)


def truncate_metrics(run: Path, step: int) -> None:
  """Drops the rows after `step`; a resume from that step writes them again."""
  files.filter_lines(run / 'metrics.jsonl', lambda row: row['step'] <= step)
