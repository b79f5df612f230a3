"""Compilation that is shared by processes that need the same programs.

The workers on a CPU start together and need the same executables. JAX's persistent cache alone does
not help, since it is still empty when all of them look. A process therefore skips a program that
another one is compiling, compiles the others first, and finds the skipped one in the cache later.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from stability.config import paths

try:
  import fcntl
except ImportError:  # Windows: each process compiles for itself
  fcntl = None


def compile_shared(programs: Mapping[str, jax.stages.Lowered]) -> dict[str, jax.stages.Compiled]:
  """Compiles programs; returns their executables by name.

  The programs that take longest to compile should come first.
  """
  cache = jax.config.jax_compilation_cache_dir
  if fcntl is None or not cache or paths.is_url(cache):  # a bucket has no locks
    return {name: program.compile() for name, program in programs.items()}
  compiled = {}
  for waits in (False, True):
    for name in [name for name in programs if name not in compiled]:
      with _lock(Path(cache), programs[name], waits) as is_held:
        if is_held:
          compiled[name] = programs[name].compile()
  return compiled


@contextlib.contextmanager
def _lock(cache: Path, program: jax.stages.Lowered, waits: bool) -> Iterator[bool]:
  """Locks a program; the system releases the lock if the process dies.

  Yields whether the lock is held. With `waits`, waits until no other process holds it.
  """
  digest = hashlib.sha256(program.as_text().encode()).hexdigest()
  folder = cache / 'compiling'
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / digest).open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
    else:
      yield True
