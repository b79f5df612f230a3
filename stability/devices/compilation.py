"""Compiles programs, so that processes that need the same ones share the work.

The workers of a CPU start together and need the same executables. JAX's persistent cache alone does
not help them, since it is still empty when all of them look. So a process skips a program that
another one is compiling, goes on with the others, and finds it in the cache when it comes back.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

try:
  import fcntl
except ImportError:  # Windows: each process compiles for itself
  fcntl = None


def compile_shared(programs: Mapping[str, jax.stages.Lowered]) -> dict[str, jax.stages.Compiled]:
  """The executables of the programs, by name; programs that take longest should come first."""
  cache = jax.config.jax_compilation_cache_dir
  if fcntl is None or not cache:
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
  """Holds the lock of a program, which the system releases if the process dies.

  Yields whether the lock is held. With `waits` it waits for a process that holds it.
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
