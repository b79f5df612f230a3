"""Runs that another sweep has trained already are taken over instead of being trained again.

A run depends on its config, its text and what trains it, not on its sweep (BUILD_NOTES.md, What a
run cannot depend on). Where all three are the same, so are the numbers.
"""

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import logging

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput
from stability.storage import files, leases, metrics, run_files, sweeps, versions
from stability.storage.files import Json

_STEERED = ('actions.jsonl', 'requests')


def key(config: Config) -> object:
  """All of a config but how often it is saved, which changes no number."""
  flat = config_lib.flatten(config)
  return tuple((f, v) for f, v in sorted(flat.items()) if not f.startswith('checkpoint.'))


def take_over(workdir: Path, waiting: Mapping[str, Config], others: Iterable[Path]) -> list[str]:
  """Writes the files of the waiting runs that another sweep has trained; the names of these runs.

  Args:
    workdir: of the sweep, whose sweep.json is written.
    waiting: its runs that are not over.
    others: workdirs of other sweeps.
  """
  sweep = sweeps.read_sweep(workdir)
  trained: dict[object, Path] = {}
  for other in others:
    found = sweeps.read_sweep(other)
    same_text = found.data.get('sha256') == sweep.data.get('sha256')
    if same_text and found.extensions.get('sha256') == sweep.extensions.get('sha256'):
      for name, config in found.runs.items():
        trained.setdefault(key(config), run_files.run_dir(other, name))
  taken = []
  for name, config in waiting.items():
    source = trained.get(key(config))
    run = run_files.run_dir(workdir, name)
    copied = None if source is None else _read(source)
    if copied is None or (own := leases.take(run)) is None:
      continue
    # A run that has begun here goes on from where it is; then others may be watching it.
    if run_files.read_result(run) is None and not (run / 'metrics.jsonl').exists():
      _copy(source, copied, run, sweeps.swept_values(config, sweep.fields))
      taken.append(name)
      own.remove()
    else:
      own.release()
  return taken


def _read(run: Path) -> tuple[run_files.Result, list[Json], list[Json]] | None:
  """Result, metrics and alarms of a run that serves.

  It has come to its own end, under the versions of this process and no action, and is undamaged.
  """
  try:
    result = run_files.read_result(run)
    lines = files.read_lines(run / 'versions.jsonl')
    serves = (
        result is not None
        and result.status in ('done', 'diverged')
        and bool(lines)
        and all(line.get('versions') == versions.current() for line in lines)
        and not any((run / name).exists() for name in _STEERED)
    )
    if not serves:
      return None
    return result, run_files.read_metrics(run), files.read_lines(run / 'alarms.jsonl')
  except BadInput as error:
    logging.warning('%s is not taken over: %s', run, error)
    return None


def _copy(
    source: Path,
    copied: tuple[run_files.Result, list[Json], list[Json]],
    run: Path,
    swept: Json,
) -> None:
  """Writes the files of a run from those of one that is the same; its result last."""
  result, lines, alarms = copied
  versions.note(run, 0)
  writer = metrics.MetricsWriter(run, 0, swept)  # the event file tells of the sweep it is in
  for line in lines:
    writer.write({key: math.nan if value is None else value for key, value in line.items()})
  if alarms:
    files.write_lines(run / 'alarms.jsonl', alarms)
  writer.close(result)
  trained_in = os.path.relpath(source, run)
  run_files.write_result(run, dataclasses.replace(result, trained_in=trained_in))
