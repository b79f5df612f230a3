"""A sweep on disk: its runs, those forked from them, and which of them are to be trained.

  DIR/sweep.json         the sweep: every run's resolved config, data, versions
  DIR/forks/NAME.json    the run that NAME was forked from, the step and the changes
  DIR/runs/NAME/         a folder per run, forks included; see run_files.py
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput
from stability.hyper import Runs
from stability.storage import files, leases, run_files, schema
from stability.storage.files import Json

# How long another launcher may hold the lease of a run that it has just seen fail.
FAILED_LEASE_SECONDS = 2

_checked: set[object] = set()  # versions of sweep.json found valid: a report reads one ten times


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The content of sweep.json."""

  fields: tuple[str, ...]  # the swept fields, dotted
  runs: dict[str, Config]  # name -> resolved config
  config_file: str  # where the runs come from, with its scale and the overrides of its fields
  scale: str
  overrides: dict[str, Any]
  data: Json  # the token files' path, from the workdir or absolute, and their meta.json
  versions: dict[str, str]  # of the code and libraries that train the runs
  report: Json = dataclasses.field(default_factory=dict)  # from get_report: analysis/windows.py
  extensions: Json = dataclasses.field(default_factory=dict)  # stability/extensions.py
  parameters: dict[str, int] = dataclasses.field(default_factory=dict)  # by run; not in old sweeps

  def to_json(self) -> Json:
    """The object in sweep.json."""
    return {
        'config_file': self.config_file,
        'scale': self.scale,
        'overrides': self.overrides,
        'fields': list(self.fields),
        'data': self.data,
        'versions': self.versions,
        'report': self.report,
        'extensions': self.extensions,
        'parameters': self.parameters,
        'runs': self.runs,
    }

  @classmethod
  def from_json(cls, found: Json) -> Self:
    """The sweep of an object that schema.check_sweep accepts.

    Its configs are completed with the fields that were added since they were written.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    values = {name: found[name] for name in names if name in found}
    values['fields'] = tuple(found['fields'])
    values['runs'] = {name: config_lib.complete(c) for name, c in found['runs'].items()}
    return cls(**values)


def write_sweep(workdir: Path, sweep: Sweep) -> None:
  """Writes sweep.json and each run's config.json, which is never changed afterwards."""
  # Without a sweep.json, a config.json is what an interrupted start has left.
  has_started = (workdir / 'sweep.json').exists()
  for name, config in sweep.runs.items():
    path = run_files.run_dir(workdir, name) / 'config.json'
    if not has_started or not path.exists():
      files.write_json(path, config)
  files.write_json(workdir / 'sweep.json', sweep.to_json())


def read_sweep(workdir: Path) -> Sweep:
  """The sweep of a workdir; BadInput if there is none or if sweep.json is damaged."""
  path = workdir / 'sweep.json'
  if not os.path.isfile(path):
    raise BadInput(f'--workdir={workdir}: holds no sweep (no sweep.json)')
  found, stat = files.read_json(path), path.stat()
  version = str(path.absolute()), stat.st_ino, stat.st_mtime_ns, stat.st_size
  if version not in _checked:
    schema.check_sweep(path, found)
    _checked.add(version)
  return Sweep.from_json(found)


def swept_values(config: Config, fields: Iterable[str]) -> Json:
  """A run's values of the swept fields, seed last: what distinguishes it from the other runs."""
  flat = config_lib.flatten(config)
  return {field: flat[field] for field in fields if field != 'seed'} | {'seed': flat['seed']}


# Before training.


def check_workdir(workdir: Path, runs: Runs) -> None:
  """Raises BadInput unless a sweep of these runs can be started or continued in a folder.

  The folder must be writable, and empty or of the same sweep. A sweep may gain runs; it may not
  lose or change any.
  """
  _check_writable(workdir)
  files.refuse_links(workdir)
  if not (workdir / 'sweep.json').exists():
    entries = list(workdir.iterdir()) if workdir.is_dir() else []
    # A lease means that another launcher prepares this folder, or was killed doing so. A launcher
    # that was interrupted or ran out of disk releases its lease but leaves its files.
    if not any(map(leases.is_lease, entries)) and not _is_prepared(workdir, entries):
      raise BadInput(f'--workdir={workdir}: is not empty and holds no sweep; name a new folder')
    return
  for name, config in read_sweep(workdir).runs.items():
    if name not in runs.configs:
      raise BadInput(f'--workdir={workdir}: holds another sweep: its run {name} is not in this one')
    new, old = config_lib.flatten(runs.configs[name]), config_lib.flatten(config)
    for field in sorted(new.keys() | old.keys()):
      if new.get(field) != old.get(field):
        raise BadInput(
            f'--workdir={workdir}: holds another sweep: its run {name} has'
            f' config.{field}={old.get(field)!r}, this one {new.get(field)!r}'
        )


def _is_prepared(workdir: Path, entries: Iterable[Path]) -> bool:
  """Whether a folder holds only what is written before sweep.json: token files and configs."""
  names = {path.name for path in entries} | {path.name for path in workdir.glob('runs/*/*')}
  names -= {path.name for path in workdir.glob('extensions')}
  return names <= {'data', 'runs', 'config.json'}


def _check_writable(workdir: Path) -> None:
  existing = workdir
  while not existing.exists() and not existing.is_symlink():
    existing = existing.parent
  if not existing.is_dir():
    raise BadInput(f'--workdir={workdir}: {existing} is not a folder')
  try:
    with tempfile.TemporaryFile(dir=existing):
      pass
  except OSError as error:
    raise BadInput(f'--workdir={workdir}: cannot be written: {error.strerror}') from error


def runs_to_train(workdir: Path, configs: Mapping[str, Config]) -> dict[str, Config]:
  """Those of the runs that have no result.

  The result of a failed run is deleted, so that it is trained again: the cause may be fixed by now.
  """
  files.refuse_links(workdir / 'runs')
  found = {}
  for name, config in configs.items():
    run = run_files.run_dir(workdir, name)
    files.refuse_links(run)
    result = run_files.read_result(run)
    if result is not None and result.status == 'failed':
      result = _delete_failure(run)
    if result is None:
      found[name] = config
  return found


def _delete_failure(run: Path) -> run_files.Result | None:
  """Deletes the result of a failed run; returns the result that is there afterwards, if any.

  It holds the run's lease meanwhile: another launcher may be training the run, and a result of
  that must not be deleted.
  """
  deadline = time.monotonic() + FAILED_LEASE_SECONDS
  while (lease := leases.try_acquire(run)) is None and time.monotonic() < deadline:
    time.sleep(leases.POLL_SECONDS)
  result = run_files.read_result(run)
  if lease is not None:
    if result is not None and result.status == 'failed':
      (run / 'result.json').unlink()
      result = None
    lease.release()
  return result


# Forks.


@dataclasses.dataclass(frozen=True)
class Fork:
  """The origin of a run that was forked from another one while that was trained.

  The sweep does not list forks. Each has a file of its own, forks/NAME.json, so that no two
  processes write the same file.
  """

  run: str
  step: int
  changes: dict[str, Any]  # hyperparameters by dotted field

  def to_json(self) -> Json:
    """The object in forks/NAME.json."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, found: Json, path: Path) -> Self:
    """The inverse of to_json; BadInput, which names the path, for a damaged object."""
    try:
      files.check_types(found, {'run': str, 'step': int, 'changes': dict})
    except BadInput as error:
      raise BadInput(f'{path}: damaged: {error}') from None
    return cls(found['run'], found['step'], found['changes'])


def write_fork(workdir: Path, name: str, fork: Fork) -> None:
  """Makes the run `name` a fork of the workdir; its own files must be there."""
  files.write_json(_fork_path(workdir, name), fork.to_json())


def is_fork(workdir: Path, name: str) -> bool:
  """Whether the workdir has a fork of this name."""
  return _fork_path(workdir, name).exists()


def read_forks(workdir: Path) -> dict[str, Fork]:
  """The forks of a workdir by name."""
  paths = sorted((workdir / 'forks').glob('*.json'))
  return {
      path.name.removesuffix('.json'): Fork.from_json(files.read_json(path), path)
      for path in paths
  }


def fork_configs(workdir: Path) -> dict[str, Config]:
  """The resolved configs of the forks: those of the runs they come from, without the changes."""
  return {
      name: run_files.read_config(run_files.run_dir(workdir, name)) for name in read_forks(workdir)
  }


def origin(name: str, forks: Mapping[str, Fork]) -> str:
  """The run of the sweep that a fork descends from; for any other run, the run itself."""
  for _ in forks:  # bounded, since edited files may form a cycle
    name = forks[name].run if name in forks else name
  return name


def _fork_path(workdir: Path, name: str) -> Path:
  return workdir / 'forks' / f'{name}.json'
