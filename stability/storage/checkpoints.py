"""Checkpoints of one run: saved whole by Orbax, trusted only if their checksums match.

A checkpoint is the folder checkpoints/STEP of a run. It is made under another name, which begins
with a dot, and given its own once checksums.json, the SHA-256 of every other file, is in it; before
it is deleted it loses its name again. So a folder without its checksums, or with a file that does
not match them, is none that a crash has left: something has damaged it. Processes that share a run
all save and restore at once, as Orbax wants it; the first of them writes.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from stability.errors import BadInput, writing
from stability.storage import files

Arrays = dict[str, np.ndarray]  # a run's state: path in the state -> array

ABOUT, CHECKSUMS = 'about.json', 'checksums.json'


def save(run: Path, step: int, arrays: Arrays, about: files.Json, keep: int) -> None:
  """Saves the state of a run after `step` updates and drops all but the newest `keep`.

  Args:
    run: the run's folder.
    step: number of updates made.
    arrays: its state.
    about: what the run must know beside it (JSON), returned by restore.
    keep: how many checkpoints stay.
  """
  folder = (run / 'checkpoints').absolute()
  partial = folder / f'.{step}.partial'
  is_first = jax.process_index() == 0
  with writing(folder / str(step)):
    if is_first:
      folder.mkdir(parents=True, exist_ok=True)
      _clear(folder)
      _try_disk(folder, sum(array.nbytes for array in arrays.values()))
    try:
      with _quiet():
        ocp.save(partial, arrays)
      if not is_first:
        return
      files.write_json(partial / ABOUT, about)
      files.write_json(partial / CHECKSUMS, _checksums(partial))
      _delete(run, step)  # damaged, or of the run before it was changed at this step
      partial.rename(folder / str(step))
    except BaseException:
      if is_first:
        _clear(folder)  # the room may be wanted
      raise
    steps = _steps(run)
    newest = [other for other in steps if other <= step][-keep:]  # a later one was damaged
    for other in set(steps) - set(newest):
      _delete(run, other)
    _clear(folder)


def restore(run: Path, only: int | None = None) -> tuple[int, Arrays, files.Json] | None:
  """The newest good checkpoint as (step, arrays, about); None if the run has none at all.

  Damaged ones are named in warnings, and the one before them serves. Raises BadInput where there
  are checkpoints and all are damaged: to begin such a run again from nothing, which may have taken
  days, is a person's decision. With `only`, a step, the checkpoint is that one or None.
  """
  if jax.process_index() == 0:
    _clear(run / 'checkpoints')
  faults = {}
  for step in reversed(_steps(run)):
    if only not in (None, step):
      continue
    folder = (run / 'checkpoints' / str(step)).absolute()
    faults[step] = _fault(folder)
    if faults[step] is None:
      for damaged in list(faults)[:-1]:
        logging.warning('%s; it goes on from step %d', _told(run, damaged, faults[damaged]), step)
      return step, ocp.load(folder), json.loads((folder / ABOUT).read_text())
  if faults and only is None:
    told = '; '.join(_told(run, step, fault) for step, fault in faults.items())
    raise BadInput(
        f'{told}; no other is left: put back a copy, or delete {run / "checkpoints"} to train the'
        ' run again from step 0'
    )
  return None


def good_steps(run: Path) -> list[int]:
  """The steps of the checkpoints that can be used, the lowest first."""
  return [step for step in _steps(run) if _fault(run / 'checkpoints' / str(step)) is None]


def drop_after(run: Path, step: int) -> None:
  """Deletes the checkpoints of later steps."""
  for later in _steps(run):
    if later > step:
      _delete(run, later)
  _clear(run / 'checkpoints')


def _steps(run: Path) -> list[int]:
  folder = run / 'checkpoints'
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch('[0-9]+', path.name))


def _delete(run: Path, step: int) -> None:
  """Takes a checkpoint's name, so that it is never seen in part; _clear removes it."""
  folder = run / 'checkpoints' / str(step)
  if folder.exists():
    folder.rename(folder.with_name(f'.{step}.{uuid.uuid4().hex}'))


def _clear(folder: Path) -> None:
  """Removes what is being made or was deleted."""
  for path in folder.glob('.*'):
    shutil.rmtree(path, ignore_errors=True)


def _try_disk(folder: Path, size: int) -> None:
  """Raises what the disk would refuse later: Orbax's threads tell it badly, or wait for minutes."""
  with tempfile.TemporaryFile(dir=folder):
    pass
  if shutil.disk_usage(folder).free < size:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Orbax's threads from logging, each with a traceback, the error that is raised as well."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def _told(run: Path, step: int, fault: str) -> str:
  return f'{run.name}: its checkpoint of step {step} is damaged and not used: {fault}'


def _fault(folder: Path) -> str | None:
  """What is wrong with a checkpoint."""
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
  found = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path.name != CHECKSUMS:
      with path.open('rb') as file:
        found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, 'sha256').hexdigest()
  return found
