"""Reuse of runs that another sweep has trained: copies their files instead of training again.

A run's numbers depend on its config, its text and the versions, settings and device that train it,
not on its sweep (BUILD_NOTES.md, What a run must not depend on). If all are equal, so are the
numbers; on a CPU up to rounding, if workers have other numbers of cores. A device of which nothing
is known, as in workdirs from before it was recorded, counts as equal.
"""

import dataclasses
import json
import math
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path

from absl import logging

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput
from stability.storage import (
  files,
  leases,
  metrics,
  parameters,
  parents,
  resume,
  run_files,
  sweeps,
  versions,
)
from stability.storage.files import Json
from stability.storage.run_files import Result

_KEPT = ('log.every_steps', 'checkpoint.parameters')  # files of the run depend on these
# What paths name is in the key, not the paths.
_IGNORED = ('arm', 'control.limits', *(field for field in resume.FREE if field not in _KEPT))
_CONTROL_FILES = ('actions.jsonl', 'requests')  # only runs that may have been steered have them


def key(config: Config) -> Hashable:
  """A key of the config without the options that affect neither numbers nor rows."""
  flat = config_lib.flatten(config)
  return tuple((f, v) for f, v in sorted(flat.items()) if f not in _IGNORED)


def _key_of(run: Path, config: Config) -> Hashable:
  """A key of a run's config, of the parameters that it starts from and of its alarm limits."""
  started_from = tuple(sorted(parents.checksums(parents.read(run)).items()))
  limits = None
  if config['control']['limits'] is not None:
    limits = json.dumps(files.read_json(run / run_files.LIMITS)['limits'], sort_keys=True)
  return key(config), started_from, limits


def reuse_runs(
    workdir: Path,
    waiting: Mapping[str, Config],
    others: Iterable[Path],
    device: Mapping[str, str] | None = None,
) -> list[str]:
  """Copies runs that another sweep has trained; returns their names.

  Args:
    workdir: folder of a sweep whose sweep.json is already written.
    waiting: configs, by name, of the sweep's runs that have no result.
    others: workdirs of other sweeps.
    device: what is known of the one that would train the runs; see settings.device.
  """
  fields, reused = sweeps.read_sweep(workdir).fields, []
  for name, source, content in reusable(workdir, waiting, others, device):
    run = run_files.run_dir(workdir, name)
    if (lease := leases.try_acquire(run)) is None:
      continue
    # A run that has already started here is not replaced: somebody may be watching it.
    if run_files.read_result(run) is None and not (run / 'metrics.jsonl').exists():
      _write(run, source, content, sweeps.swept_values(waiting[name], fields))
      reused.append(name)
      lease.remove()
    else:
      lease.release()
  return reused


def reusable(
    workdir: Path,
    waiting: Mapping[str, Config],
    others: Iterable[Path],
    device: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Path, '_Content']]:
  """The runs that can be reused, each with its source and content; arguments as of reuse_runs."""
  sweep = sweeps.read_sweep(workdir)
  trained: dict[Hashable, Path] = {}
  for other in others:
    sweeps.refuse_imported(other)
    found = sweeps.read_sweep(other)
    same_text = found.data.get('sha256') == sweep.data.get('sha256')
    if same_text and found.extensions.get('sha256') == sweep.extensions.get('sha256'):
      for name, config in found.runs.items():
        run = run_files.run_dir(other, name)
        trained.setdefault(_key_of(run, config), run)
  for name, config in waiting.items():
    source = trained.get(_key_of(run_files.run_dir(workdir, name), config))
    content = None if source is None else _read(source, key(config), device)
    if content is not None:
      yield name, source, content


def why_none(
    workdir: Path,
    waiting: Mapping[str, Config],
    others: Iterable[Path],
    device: Mapping[str, str] | None = None,
) -> str:
  """Why no run was reused, with the arguments of reuse_runs: what the first of the others has."""
  sweep, other = sweeps.read_sweep(workdir), next(iter(others))
  found = sweeps.read_sweep(other)
  if found.data.get('sha256') != sweep.data.get('sha256'):
    return f'{other} was trained on another text'
  if found.extensions.get('sha256') != sweep.extensions.get('sha256'):
    return f'{other} has other code of its own'
  wanted = set(map(key, waiting.values()))
  alike = [name for name, config in found.runs.items() if key(config) in wanted]
  if not alike:
    return f'{other} has no run with the config of one of these'
  for name in alike:
    for line in files.read_lines(run_files.run_dir(other, name) / 'versions.jsonl'):
      if changes := versions.changes(line.get('versions', {}), versions.current()):
        return f'{other} was trained with other versions or settings: {", ".join(changes)}'
      if not _is_trained_on(line, device):
        before, now = (' '.join(dict.fromkeys(d.values())) for d in (line['device'], device))
        return f'{other} was trained on another device: {before} -> {now}'
  return f'{other} has no such run that is done and as it was trained'


@dataclasses.dataclass(frozen=True)
class _Content:
  """The content of the files of a run to copy."""

  result: Result
  rows: list[Json]
  alarms: list[Json]
  parameters: bytes | None  # the content of their file
  cores: int | None  # of the process that trained it, if known
  device: Json  # of the process that trained it; empty if unknown


def _read(
    run: Path, wanted: Hashable, device: Mapping[str, str] | None
) -> _Content | None:
  """The content of a run if the run can be reused, otherwise None.

  The run must be undamaged, done or diverged, and trained without actions and entirely with the
  versions and settings of this process, on such a device and with a config whose key is `wanted`.
  """
  try:
    result = run_files.read_result(run)
    lines, now = files.read_lines(run / 'versions.jsonl'), versions.current()
    is_reusable = (
        result is not None
        and result.status in ('done', 'diverged')
        and bool(lines)
        and all(line.get('versions') == now for line in lines)
        and all(_is_trained_on(line, device) for line in lines)
        and all(_key_of_line(run, line) == wanted for line in lines)
        and not any((run / name).exists() for name in _CONTROL_FILES)
    )
    if not is_reusable:
      return None
    alarms = files.read_lines(run / 'alarms.jsonl')
    path = run / parameters.FILE
    stored = path.read_bytes() if path.exists() else None
    rows, cores, trained_on = run_files.read_metrics(run), lines[0].get('cores'), _device(lines[0])
    return _Content(result, rows, alarms, stored, cores, trained_on)
  except BadInput as error:
    logging.warning('%s is not reused: %s', run, error)
    return None


def _device(line: Json) -> Json:
  """The device of a line of versions.jsonl; empty if it is not known."""
  found = line.get('device')
  return found if isinstance(found, dict) else {}


def _is_trained_on(line: Json, device: Mapping[str, str] | None) -> bool:
  """Whether a line of versions.jsonl has this device, as far as both are known."""
  found, device = _device(line), device or {}
  return all(found[name] == device[name] for name in found.keys() & device.keys())


def _key_of_line(run: Path, line: Json) -> Hashable:
  """The key of the config with which a run was trained from a line of its versions.jsonl on."""
  flat = config_lib.flatten(run_files.read_config(run))
  return key(config_lib.unflatten(flat | line.get('options', {})))


def _write(run: Path, source: Path, content: _Content, swept: Json) -> None:
  """Writes a run's files from the content of an equal run, the result last.

  The event file is written anew because it contains the swept fields of the sweep.
  """
  versions.record(run, 0, cores=content.cores, trained_on=content.device)
  writer = metrics.MetricsWriter(run, 0, swept)
  for row in content.rows:
    writer.write({key: math.nan if value is None else value for key, value in row.items()})
  if content.alarms:
    files.write_lines(run / 'alarms.jsonl', content.alarms)
  if content.parameters is not None:
    files.write_atomic(run / parameters.FILE, content.parameters)
  writer.close(content.result)
  trained_in = os.path.relpath(source, run)
  run_files.write_result(run, dataclasses.replace(content.result, trained_in=trained_in))
