"""Compiles programs; processes that need the same ones share the work.

Workers of a CPU start together and need the same executables. The persistent cache alone would not
help them: none finds anything in it yet. So a process passes over a program that another is just
compiling, goes on with the rest, and finds the first in the cache when it comes back.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

try:
  import fcntl
except ImportError:  # Windows: every process compiles for itself
  fcntl = None


def compiled(programs: Mapping[str, jax.stages.Lowered]) -> dict[str, jax.stages.Compiled]:
  """The programs' executables, under the same names; give those that take longest first."""
  cache = jax.config.jax_compilation_cache_dir
  if fcntl is None or not cache:
    return {name: program.compile() for name, program in programs.items()}
  found = {}
  for patient in (False, True):
    for name in [name for name in programs if name not in found]:
      with _turn(Path(cache), programs[name], patient) as is_ours:
        if is_ours:
          found[name] = programs[name].compile()
  return found


@contextlib.contextmanager
def _turn(cache: Path, program: jax.stages.Lowered, patient: bool) -> Iterator[bool]:
  """Whether no other process compiles the program; if patient, once none does.

  The lock is gone with its process, however that ends.
  """
  digest = hashlib.sha256(program.as_text().encode()).hexdigest()
  folder = cache / 'compiling'
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / digest).open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
    else:
      yield True
