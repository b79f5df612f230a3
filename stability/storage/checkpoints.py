"""Checkpoints of one run, written by Orbax and used only if their checksums match.

A checkpoint is the folder checkpoints/STEP of a run. It is written under a name that begins with a
dot and renamed once it is complete; checksums.json, the SHA-256 of every other file, is written
last. Before a checkpoint is deleted, it is renamed to a name with a dot again. A crash therefore
never leaves a folder checkpoints/STEP without matching checksums: such a folder is damaged. A
complete one that a crash has kept from being renamed is renamed before the next is restored. All of
this also holds for a power loss: older checkpoints are deleted once the new one is on disk. If
several processes share a run, all of them save and restore together, as Orbax requires, and the
first one writes.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from stability.errors import BadInput, writing
from stability.storage import files, run_files
from stability.storage.files import Json

Arrays = dict[str, np.ndarray]  # a run's state: path in the state -> array

ABOUT, CHECKSUMS = 'about.json', 'checksums.json'
_INDEX = 'state/manifest.ocdbt'  # without it, the arrays are not found


def save(
    run: Path, step: int, arrays: Arrays, about: Json, keep: int, also: Container[int] = ()
) -> None:
  """Saves the state of a run and deletes all but the newest checkpoints.

  Args:
    run: the run's folder.
    step: the run's current step (updates made).
    arrays: the run's state.
    about: JSON object to store with the state; `restore` returns it.
    keep: number of checkpoints to keep.
    also: steps whose checkpoints are kept too.

  Raises:
    RuntimeError: Orbax has saved nothing that could be loaded; older checkpoints are kept.
  """
  folder = (run / 'checkpoints').absolute()
  partial = folder / f'.{step}.partial'
  is_first = jax.process_index() == 0
  with writing(folder / str(step)):
    if is_first:
      folder.mkdir(parents=True, exist_ok=True)
      _sync([run])
      _remove_partial(folder)
      _check_disk(folder, sum(array.nbytes for array in arrays.values()))
    try:
      with _quiet():
        ocp.save(partial, arrays)
      if not is_first:
        return
      if not (partial / _INDEX).exists():  # Orbax has only logged a warning
        raise RuntimeError(f'{folder}: Orbax cannot save checkpoints in a folder of this path')
      files.write_json(partial / ABOUT, about)
      _sync([*partial.rglob('*'), partial])  # Orbax does so for some files only
      files.write_json(partial / CHECKSUMS, _checksums(partial))
      _sync([partial])
      _delete(run, step)  # a damaged one, or one from before an action at this step
      partial.rename(folder / str(step))
      _sync([folder])
    except BaseException:
      if is_first:
        _remove_partial(folder)  # other runs may need the space
      raise
    steps = run_files.checkpoint_steps(run)
    earlier = [other for other in steps if other <= step]  # later ones are damaged
    kept = {*earlier[-keep:], *(other for other in earlier if other in also)}
    for other in set(steps) - kept:
      _delete(run, other)
    _remove_partial(folder)


def restore(run: Path, only: int | None = None) -> tuple[int, Arrays, Json] | None:
  """The newest good checkpoint as (step, arrays, about); None if the run has no checkpoint.

  Damaged checkpoints are skipped, with warnings.

  Args:
    run: the run's folder.
    only: consider only the checkpoint of this step; return None if there is no good one.

  Raises:
    BadInput: all checkpoints are damaged. The run may have taken days, so it is left to a person to
      train it again from step 0.
  """
  if jax.process_index() == 0:
    _rename_complete(run / 'checkpoints')
    _remove_partial(run / 'checkpoints')
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('checkpoints are renamed')
  faults = {}
  for step in reversed(run_files.checkpoint_steps(run)):
    if only not in (None, step):
      continue
    folder = (run / 'checkpoints' / str(step)).absolute()
    faults[step] = _fault(folder)
    if faults[step] is None:
      for damaged in list(faults)[:-1]:
        message = _damage(run, damaged, faults[damaged])
        logging.warning('%s; the run resumes from step %d', message, step)
      return step, ocp.load(folder), json.loads((folder / ABOUT).read_text())
  if faults and only is None:
    messages = '; '.join(_damage(run, step, fault) for step, fault in faults.items())
    raise BadInput(
        f'{messages}; there is no other checkpoint: restore one from a copy, or delete'
        f' {run / "checkpoints"} to train the run again from step 0'
    )
  return None


def load(run: Path, step: int) -> Arrays:
  """The arrays of a checkpoint of another run; changes no files, since that run may be training.

  Raises BadInput, with the steps that there are, if there is no good one of this step.
  """
  folder = (run / 'checkpoints' / str(step)).absolute()
  if not folder.is_dir():
    steps = ', '.join(map(str, run_files.checkpoint_steps(run))) or 'none'
    raise BadInput(f'{run}: has no checkpoint of step {step}; those that are kept: {steps}')
  if fault := _fault(folder):
    raise BadInput(_damage(run, step, fault))
  return ocp.load(folder)


def digest(run: Path, step: int) -> str:
  """The SHA-256 of the checksums of all files of a checkpoint."""
  content = (run / 'checkpoints' / str(step) / CHECKSUMS).read_bytes()
  return hashlib.sha256(content).hexdigest()


def good_steps(run: Path) -> list[int]:
  """The steps of the undamaged checkpoints, in ascending order."""
  saved = run_files.checkpoint_steps(run)
  return [step for step in saved if _fault(run / 'checkpoints' / str(step)) is None]


def delete_after(run: Path, step: int) -> None:
  """Deletes the checkpoints of later steps."""
  for later in run_files.checkpoint_steps(run):
    if later > step:
      _delete(run, later)
  _remove_partial(run / 'checkpoints')


def _delete(run: Path, step: int) -> None:
  """Renames a checkpoint for _remove_partial to delete, so that it is never seen in part."""
  folder = run / 'checkpoints' / str(step)
  if folder.exists():
    folder.rename(folder.with_name(f'.{step}.{uuid.uuid4().hex}'))


def _rename_complete(folder: Path) -> None:
  """Ends what `save` began: a crash may have left only this of the checkpoint of a step."""
  for partial in folder.glob('.*.partial'):
    final = folder / partial.name.removeprefix('.').removesuffix('.partial')
    if not final.exists() and _fault(partial) is None:
      with writing(final):
        partial.rename(final)


def _remove_partial(folder: Path) -> None:
  """Deletes checkpoints that are incomplete or that _delete has renamed."""
  for path in folder.glob('.*'):
    shutil.rmtree(path, ignore_errors=True)


def _sync(paths: Iterable[Path]) -> None:
  """Returns once the content of files and the entries of folders are on disk."""
  for path in paths:
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _check_disk(folder: Path, size: int) -> None:
  """Raises OSError if a checkpoint cannot be written; Orbax reports that badly or after minutes."""
  with tempfile.TemporaryFile(dir=folder):
    pass
  if shutil.disk_usage(folder).free < size:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Suppresses the log of Orbax's threads, which repeats every exception that is raised."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _damage(run: Path, step: int, fault: str) -> str:
  return f'{run.name}: the checkpoint of step {step} is damaged and not used: {fault}'


def _fault(folder: Path) -> str | None:
  """What is damaged in a checkpoint; None if it is good."""
  try:
    expected = dict(json.loads((folder / CHECKSUMS).read_text()))
    found = _checksums(folder)
  except (ValueError, TypeError):
    return f'{folder / CHECKSUMS} is damaged'
  except OSError as error:
    return f'{error.filename} cannot be read: {error.strerror}'
  wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
  return f'{folder / wrong[0]} does not match its checksum' if wrong else None


def _checksums(folder: Path) -> dict[str, str]:
  """The SHA-256 of each file; Orbax splits a large state into files of about 2 GB."""
  paths = sorted(p for p in folder.rglob('*') if p.is_file() and p.name != CHECKSUMS)
  with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
    names = (path.relative_to(folder).as_posix() for path in paths)
    return dict(zip(names, pool.map(files.sha256, paths)))
