"""Checkpoints of one run: saved whole by Orbax, trusted only if their checksums match.

A checkpoint is the folder checkpoints/STEP of a run. checksums.json is written into it last; a
folder without it, or with a file that does not match it, is not used. Processes that share a run
all save and restore at once, as Orbax wants it; the first of them writes.
"""

import hashlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from stability import workdir as workdir_lib

Arrays = dict[str, np.ndarray]  # a run's state: path in the state -> array

ABOUT, CHECKSUMS = 'about.json', 'checksums.json'


def save(run: Path, step: int, arrays: Arrays, about: workdir_lib.Json, keep: int) -> None:
  """Saves the state of a run after `step` updates and drops all but the newest `keep`.

  Args:
    run: the run's folder.
    step: number of updates made.
    arrays: its state.
    about: what the run must know beside it (JSON), returned by restore.
    keep: how many checkpoints stay.
  """
  folder = (run / 'checkpoints' / str(step)).absolute()
  is_first = jax.process_index() == 0
  # Left by a crash, or damaged: a good one would have been resumed from.
  if is_first and folder.exists():
    shutil.rmtree(folder)
  ocp.save(folder, arrays)
  if not is_first:
    return
  workdir_lib.write_json(folder / ABOUT, about)
  workdir_lib.write_json(folder / CHECKSUMS, _checksums(folder))
  for old in _steps(run)[:-keep]:
    shutil.rmtree(run / 'checkpoints' / str(old))


def restore(run: Path, only: int | None = None) -> tuple[int, Arrays, workdir_lib.Json] | None:
  """The newest good checkpoint as (step, arrays, about); None if there is none.

  A damaged one is named in a warning and the one before it is tried; but for `only`, a step, where
  it is given.
  """
  for step in reversed(_steps(run)):
    folder = (run / 'checkpoints' / str(step)).absolute()
    if only not in (None, step) or not _is_good(folder):
      continue
    return step, ocp.load(folder), json.loads((folder / ABOUT).read_text())
  return None


def good_steps(run: Path) -> list[int]:
  """The steps of the checkpoints that can be used, the lowest first."""
  return [step for step in _steps(run) if _is_good(run / 'checkpoints' / str(step))]


def drop_after(run: Path, step: int) -> None:
  """Deletes the checkpoints of later steps."""
  for later in _steps(run):
    if later > step:
      shutil.rmtree(run / 'checkpoints' / str(later))


def _steps(run: Path) -> list[int]:
  folder = run / 'checkpoints'
  if not folder.is_dir():
    return []
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _is_good(folder: Path) -> bool:
  fault = _fault(folder)
  if fault:
    logging.warning('checkpoint %s is not used: %s', folder, fault)
  return not fault


def _fault(folder: Path) -> str | None:
  try:
    expected = dict(json.loads((folder / CHECKSUMS).read_text()))
  except (OSError, ValueError, TypeError):
    return f'{CHECKSUMS} is missing or damaged'
  found = _checksums(folder)
  wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
  return f'{wrong[0]} does not match its checksum' if wrong else None


def _checksums(folder: Path) -> dict[str, str]:
  return {
      path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
      for path in sorted(folder.rglob('*'))
      if path.is_file() and path.name != CHECKSUMS
  }
