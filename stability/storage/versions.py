"""What trains runs, as far as their numbers may depend on it: our code, Python, the libraries.

  DIR/sweep.json                  `versions`: of the last start that had anything to train
  DIR/runs/NAME/versions.jsonl    a line where the run began, and wherever it went on under others:
                                  step (updates made by then), time, versions
"""

import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

import stability
from stability.storage import files

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@functools.cache
def current() -> dict[str, str]:
  """The versions of this process, by name; `stability code` is a hash of the package's sources."""
  return {
      'stability': stability.__version__,
      'stability code': _code(Path(stability.__file__).parent),
      'python': platform.python_version(),
      'platform': platform.platform(),
      **{name: importlib.metadata.version(name) for name in _LIBRARIES},
  }


def _code(folder: Path) -> str:
  """12 hex digits of the SHA-256 of every .py file under a folder, with its name."""
  digest = hashlib.sha256()
  for path in sorted(folder.rglob('*.py')):
    content = path.read_bytes()
    digest.update(f'{path.relative_to(folder).as_posix()} {len(content)}\n'.encode())
    digest.update(content)
  return digest.hexdigest()[:12]


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """What differs, as `jax 0.10.2 -> 0.11.0`."""
  return [
      f'{name} {before.get(name, "unknown")} -> {now.get(name, "none")}'
      for name in {**before, **now}
      if before.get(name) != now.get(name)
  ]


def note(run: Path, step: int) -> None:
  """Records in the run that from `step` on it is trained by this process's versions.

  Lines of later steps, whose updates are about to be made again, are dropped.
  """
  path = run / 'versions.jsonl'
  lines = files.read_lines(path)
  kept = [line for line in lines if line['step'] < step]
  if not kept or kept[-1]['versions'] != current():
    kept.append({'step': step, 'time': files.timestamp(), 'versions': current()})
  if kept != lines:
    files.write_lines(path, kept)
