"""Versions of everything that a run's numbers may depend on: code, libraries and settings.

  DIR/sweep.json                  `versions`: those of the last start that had runs to train
  DIR/runs/NAME/versions.jsonl    a line for the start of the run, and one for each resume with
                                  other versions or options, on another device or beside another
                                  number of runs: step (updates made by then), time, cores (that the
                                  process could use; on a CPU, other numbers of them may round
                                  differently), runs (slots of its population, before limits of
                                  memory), versions, device (platform and kind) and, where they
                                  differ from config.json, options; older lines have no device and
                                  no runs

The versions include the settings of the environment (stability/settings.py) that are set.
"""

import functools
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stability
from stability import settings
from stability.storage import files

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_RECORDED = ('runs', 'versions', 'device', 'options')  # a change of one of these keys adds a line


def current() -> dict[str, str]:
  """The versions and settings of this process by name."""
  return _versions() | settings.recorded()


@functools.cache
def _versions() -> dict[str, str]:
  """The versions by name; `stability code` is a hash of the package's sources."""
  return {
      'stability': stability.__version__,
      'stability code': _hash_sources(Path(stability.__file__).parent),
      'python': platform.python_version(),
      'platform': platform.platform(),
      **{name: importlib.metadata.version(name) for name in _LIBRARIES},
  }


def _hash_sources(folder: Path) -> str:
  """12 hex digits of the SHA-256 over the name and content of every .py file under a folder."""
  digest = hashlib.sha256()
  for path in sorted(folder.rglob('*.py')):
    content = path.read_bytes()
    digest.update(f'{path.relative_to(folder).as_posix()} {len(content)}\n'.encode())
    digest.update(content)
  return digest.hexdigest()[:12]


def usable_cores() -> int:
  """The number of CPU cores that this process may run on."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """The versions that differ, as `jax 0.10.2 -> 0.11.0`; a setting may be unset."""
  changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
  absent = {name: 'unset' for name in changed if settings.is_setting(name)}
  return [
      f'{name} {before.get(name, absent.get(name, "unknown"))} ->'
      f' {now.get(name, absent.get(name, "none"))}'
      for name in changed
  ]


def runs(run: Path) -> int | None:
  """The number of runs for which a run's population had slots when it began; None if unknown."""
  lines = files.read_lines(run / 'versions.jsonl')
  return next((line['runs'] for line in lines if 'runs' in line), None)


def record(
    run: Path,
    step: int,
    now: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    cores: int | None = None,
    trained_on: Mapping[str, str] | None = None,
    runs: int | None = None,
) -> None:
  """Records the versions that train a run from `step` on, by default those of this process.

  Lines of this and later steps are dropped, since the run makes these updates again.

  Args:
    run: the run's folder.
    step: updates made so far.
    now: versions by name.
    options: the options, dotted, whose values differ from those in the run's config.json.
    cores: that the process can use, by default this one.
    trained_on: the device, by default that of this process; empty: unknown.
    runs: number of runs that the population has slots for; None: unknown.
  """
  found = {} if runs is None else {'runs': runs}
  found['versions'] = dict(current() if now is None else now)
  if trained_on is None or trained_on:
    found['device'] = dict(settings.device() if trained_on is None else trained_on)
  if options:
    found['options'] = dict(options)
  path = run / 'versions.jsonl'
  lines = files.read_lines(path)
  kept = [line for line in lines if line['step'] < step]
  if not kept or {key: kept[-1][key] for key in _RECORDED if key in kept[-1]} != found:
    cores = usable_cores() if cores is None else cores
    kept.append({'step': step, 'time': files.timestamp(), 'cores': cores, **found})
  if kept != lines:
    files.write_lines(path, kept)
