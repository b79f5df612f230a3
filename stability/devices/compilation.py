"""Compilation that is shared by processes that need the same programs.

The workers on a CPU start together and need the same executables. JAX's persistent cache alone does
not help, since it is still empty when all of them look. A process therefore skips a program that
another one is compiling, compiles the others first, and finds the skipped one in the cache later.
"""

import contextlib
import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import jax
from absl import logging

from stability.config import paths

try:
  import fcntl
except ImportError:  # Windows: each process compiles for itself
  fcntl = None


# How long to wait for other processes; few programs take longer to compile. A lock that a hanging
# process holds, or that a file server has forgotten, must not stop training.
WAIT_SECONDS = 120
_POLL_SECONDS = 0.1
_warned: list[str] = []  # errors of the cache that this process has printed: one is enough


def compile_shared(programs: Mapping[str, jax.stages.Lowered]) -> dict[str, jax.stages.Compiled]:
  """Compiles programs; returns their executables by name.

  The programs that take longest to compile should come first. An error of the cache costs time, but
  fails nothing.
  """
  cache = jax.config.jax_compilation_cache_dir
  has_locks = fcntl and cache and not paths.is_url(cache)  # a bucket has none
  if not (has_locks and jax.config.jax_enable_compilation_cache):
    with _one_warning():
      return {name: program.compile() for name, program in programs.items()}
  digests = {
      name: hashlib.sha256(program.as_text().encode()).hexdigest()
      for name, program in programs.items()
  }
  compiled = {}
  for seconds in (0, WAIT_SECONDS):
    deadline = time.monotonic() + seconds
    for name in [name for name in programs if name not in compiled]:
      with _lock(Path(cache), digests[name], deadline) as is_held, _one_warning():
        if is_held or seconds:
          compiled[name] = programs[name].compile()
  return compiled


@contextlib.contextmanager
def _lock(cache: Path, digest: str, deadline: float) -> Iterator[bool]:
  """Locks the program with this digest; the system releases the lock if the process dies.

  Waits until no other process holds the lock, until the deadline at most. Yields False if another
  one still holds it, and True if there can be no lock.
  """
  folder = cache / 'compiling'
  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      file = stack.enter_context((folder / digest).open('w'))
      is_held = _try_lock(file)
      while not is_held and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        is_held = _try_lock(file)
    except OSError as error:
      _warn(f'processes do not share compilations: {error}')
      is_held = True
    yield is_held


def _try_lock(file: IO[str]) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


@contextlib.contextmanager
def _one_warning() -> Iterator[None]:
  """Logs the first of jax's warnings about its cache, of which there may be two per program."""
  with warnings.catch_warnings(record=True) as caught:
    yield
  for warning in caught:
    if 'persistent compilation cache' in str(warning.message):
      _warn(str(warning.message))
    else:
      warnings.warn_explicit(
          warning.message, warning.category, warning.filename, warning.lineno
      )


def _warn(message: str) -> None:
  if not _warned:
    logging.warning('%s', message)
  _warned.append(message)
