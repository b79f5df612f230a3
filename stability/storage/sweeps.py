"""A sweep on disk: its runs, their forks, and the runs that are still to be trained.

  DIR/sweep.json         the sweep: every run's resolved config, data, versions
  DIR/forks/NAME.json    the run that NAME was forked from, the step and the changes
  DIR/runs/NAME/         a folder per run, forks included; see run_files.py
"""

import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from stability import config as config_lib
from stability import extensions
from stability.config import Config
from stability.errors import BadInput
from stability.hyper import Runs
from stability.storage import files, leases, resume, run_files, schema
from stability.storage.files import Json

# How long to wait for the lease of a failed run, which another launcher may still hold.
FAILED_LEASE_SECONDS = 2

IMPORTED = 'imported'  # the origin of the runs of other trainers, see stability/importing

# In the path of a checkpoint, Orbax takes these for a pattern, a lock or a bucket in a cloud.
_NOT_FOR_CHECKPOINTS = re.compile(r'[\[*?\\]|\.__lock(?=/|$)|gs:(?=/|$)|^/(gs|s3|az|hf)(?=/|$)')

_checked: set[object] = set()  # sweep.json files found valid: a report reads one ten times


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The content of sweep.json."""

  fields: tuple[str, ...]  # the swept fields, dotted
  runs: dict[str, Config]  # name -> resolved config
  config_file: str  # of the runs, with its scale and the overrides of its fields
  scale: str
  overrides: dict[str, Any]
  data: Json  # path of the token files (from the workdir or absolute), meta.json
  versions: dict[str, str]  # versions of the code and libraries that train the runs
  report: Json = dataclasses.field(default_factory=dict)  # see analysis/windows.py
  extensions: Json = dataclasses.field(default_factory=dict)  # see stability/extensions.py
  parameters: dict[str, int] = dataclasses.field(default_factory=dict)  # by run; none in old sweeps
  # IMPORTED: nothing can be trained, and configs hold only what is known, with no default of ours.
  origin: str = 'trained'
  sources: Json = dataclasses.field(default_factory=dict)  # of an import: files, SHA-256, options

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
        **({'origin': self.origin, 'sources': self.sources} if self.is_imported else {}),
        'runs': self.runs,
    }

  @property
  def is_imported(self) -> bool:
    """Whether the runs are of another trainer."""
    return self.origin == IMPORTED

  @property
  def own_probes(self) -> list[str]:
    """The names of what the probes of the config file measure; see extensions.probes."""
    return extensions.probes(self.extensions)

  @classmethod
  def from_json(cls, found: Json) -> Self:
    """The inverse of to_json, for an object that schema.check_sweep accepts.

    Configs are completed with the fields that were added since they were written, unless they were
    imported.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    values = {name: found[name] for name in names if name in found}
    values['fields'] = tuple(found['fields'])
    if found.get('origin') != IMPORTED:
      values['runs'] = {name: config_lib.complete(c) for name, c in found['runs'].items()}
    return cls(**values)


def write_sweep(workdir: Path, sweep: Sweep) -> None:
  """Writes sweep.json and the config.json of each run; a config.json is never changed later."""
  # Without a sweep.json, any config.json was left by an interrupted start and is replaced.
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
  file_version = str(path.absolute()), stat.st_ino, stat.st_mtime_ns, stat.st_size
  if file_version not in _checked:
    schema.check_sweep(path, found)
    _checked.add(file_version)
  return Sweep.from_json(found)


def find_sweep(workdir: Path) -> Sweep | None:
  """read_sweep, or None if there is no sweep.json."""
  return read_sweep(workdir) if (workdir / 'sweep.json').exists() else None


def is_imported(workdir: Path) -> bool:
  """Whether a folder is a workdir of imported runs."""
  found = find_sweep(workdir)
  return found is not None and found.is_imported


def refuse_imported(workdir: Path) -> None:
  """Raises BadInput for a workdir of imported runs, which cannot be trained."""
  if is_imported(workdir):
    raise BadInput(
        f'{workdir}: its runs were imported and cannot be trained here; launch.import_runs updates'
        ' them'
    )


def swept_values(config: Config, fields: Iterable[str]) -> Json:
  """A run's values of the swept fields, seed last: they distinguish it from the other runs."""
  flat = config_lib.flatten(config)
  return {field: flat[field] for field in fields if field != 'seed'} | {'seed': flat['seed']}


# Before training.


def check_workdir(workdir: Path, runs: Runs) -> Runs:
  """Raises BadInput unless a sweep of these runs can be started or continued in a folder.

  The folder must be writable and fit for checkpoints, and must be empty or hold the same sweep:
  see resume.check.

  Returns:
    The runs with their names in the folder.
  """
  check_writable(workdir)
  if found := _NOT_FOR_CHECKPOINTS.search(str(workdir.absolute())):
    raise BadInput(
        f'--workdir={workdir}: {found[0]} must not be in its absolute path, as checkpoints there'
        ' cannot be loaded; name another folder'
    )
  files.refuse_links(workdir)
  refuse_imported(workdir)
  if not (workdir / 'sweep.json').exists():
    entries = list(workdir.iterdir()) if workdir.is_dir() else []
    # A lease means that another launcher is preparing this folder, or was killed while doing so. A
    # launcher that was interrupted or found the disk full releases its lease but leaves its files.
    if not any(map(leases.is_lease, entries)) and not _is_prepared(workdir, entries):
      raise BadInput(f'--workdir={workdir}: is not empty and holds no sweep; name a new folder')
    return runs
  stored = read_sweep(workdir).runs
  runs = resume.with_stored_names(runs, stored)
  resume.check(workdir, runs, stored)
  return runs


def _is_prepared(workdir: Path, entries: Iterable[Path]) -> bool:
  """Whether a folder holds only files that are written before sweep.json."""
  paths = [*entries, *workdir.glob('runs/*/*')]
  names = {path.name for path in paths if not files.is_temporary(path)}
  names -= {path.name for path in workdir.glob('extensions')}
  return names <= {'data', 'runs', 'config.json', 'parent.json'}


def remove_temporaries(workdir: Path, names: Iterable[str]) -> None:
  """Deletes what launchers that were killed have left of files; requires the workdir's lease.

  `names` are those of runs, but of no fork: only the trainer of its origin writes its config.
  """
  files.remove_temporaries(workdir, 'sweep.json')
  files.remove_temporaries(workdir / 'data', 'verified.json')
  for name in names:
    run = run_files.run_dir(workdir, name)
    files.remove_temporaries(run, 'config.json', 'parent.json', run_files.LIMITS)


def check_writable(workdir: Path) -> None:
  """Raises BadInput unless a folder can be written or created."""
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


def check_data(workdir: Path, sweep: Sweep) -> None:
  """Raises BadInput unless the data of a sweep is where its sweep.json says."""
  path = workdir / 'sweep.json'
  schema.check_data(path, sweep.data, ['path'])
  if not (workdir / sweep.data['path'] / 'meta.json').is_file():
    raise BadInput(f'{path}: its data, {sweep.data["path"]}, is missing; launch.sweep makes it')


def check_run(workdir: Path, name: str, config: Config | None) -> None:
  """Raises BadInput unless a run can be trained as launch.sweep has prepared it.

  Args:
    workdir: folder of the sweep.
    name: the run.
    config: its config in sweep.json, which somebody may have edited; None: it is not there.
  """
  path, run = workdir / 'sweep.json', run_files.run_dir(workdir, name)
  if config is None and not is_fork(workdir, name):
    raise BadInput(f'{path}: its run {name!r} is missing')
  if not (run / 'config.json').is_file():
    raise BadInput(f'{path}: its run {name!r} has no folder; launch.sweep makes it')
  prepared = run_files.read_config(run)
  try:
    config_lib.resolve(config_lib.flatten(prepared if config is None else config))
  except BadInput as error:
    raise BadInput(f'{path}: its run {name!r}: {error}') from None
  if config is not None and not resume.allows(prepared, config):
    raise BadInput(f'{path}: its run {name!r} has another config than {run / "config.json"}')


def runs_to_train(workdir: Path, configs: Mapping[str, Config]) -> dict[str, Config]:
  """The runs that have no result.

  The results of failed runs are deleted first, so that these are retried: the cause may be fixed.
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

  It holds the run's lease meanwhile: another launcher may be training the run, and the result of
  that training must not be deleted.
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
  """The origin of a fork, a run that was started from another run while that was being trained.

  sweep.json does not list forks. Each fork has its own file, forks/NAME.json, so that no two
  processes write the same file.
  """

  run: str  # name of the run that was forked
  step: int  # updates made at the fork
  changes: dict[str, Any]  # hyperparameters by dotted field

  def to_json(self) -> Json:
    """The object in forks/NAME.json."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, found: Json, path: Path) -> Self:
    """The inverse of to_json; for a damaged object, raises BadInput that names the path."""
    try:
      files.check_types(found, {'run': str, 'step': int, 'changes': dict})
    except BadInput as error:
      raise BadInput(f'{path}: damaged: {error}') from None
    return cls(found['run'], found['step'], found['changes'])


def write_fork(workdir: Path, name: str, fork: Fork) -> None:
  """Adds the run `name` to the workdir as a fork; its own files must already be there."""
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
  """The resolved configs of the forks, by name. They do not have the changes of the forks."""
  return {
      name: run_files.read_config(run_files.run_dir(workdir, name)) for name in read_forks(workdir)
  }


def origin(name: str, forks: Mapping[str, Fork]) -> str:
  """The run of the sweep that a fork descends from; for any other run, the run itself."""
  for _ in forks:  # bounded, since edited files may form a cycle
    name = forks[name].run if name in forks else name
  return name


def descends(name: str, forks: Mapping[str, Fork], runs: Collection[str]) -> bool:
  """Whether a run is one of `runs` or a fork of one, directly or by way of other forks."""
  for _ in forks:  # bounded, as above
    if name in runs or name not in forks:
      break
    name = forks[name].run
  return name in runs


def _fork_path(workdir: Path, name: str) -> Path:
  return workdir / 'forks' / f'{name}.json'
