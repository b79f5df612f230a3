"""Reading and writing of files: JSON, JSON lines, atomic writes, checksums, refusal of links."""

import contextlib
import fnmatch
import hashlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from stability.errors import BadInput, writing

Json = dict[str, Any]
Parsed = TypeVar('Parsed')

_TEMPORARY = re.compile(r'\.(?P<name>.+)\.[0-9a-f]{8}\.tmp')  # names in open_atomic
_TAIL_BYTES = 2**17  # read from the end of a file to find its last line, at first


def write_atomic(path: Path, content: str | bytes) -> None:
  """Writes a file and creates its folder; a reader sees either the old or the new content."""
  # Text from outside may contain lone surrogates, which UTF-8 cannot encode.
  data = content.encode(errors='backslashreplace') if isinstance(content, str) else content
  with open_atomic(path) as file:
    file.write(data)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
  """A file to write that takes the name `path` at the end of the context, unless that raises."""
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not of the module tempfile, whose files are private: the umask decides about this one.
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    file = temporary.open('xb')
    try:
      with file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):  # the first error is the one to report
        os.unlink(temporary)
      raise


def is_temporary(path: Path) -> bool:
  """Whether a path has a name that open_atomic gives to what it has not finished."""
  return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(folder: Path, *names: str) -> None:
  """Deletes what killed processes have left of atomic writes to files of a folder.

  Args:
    folder: may be missing.
    names: of the files, with wildcards; no process may be writing these now.
  """
  for path in folder.glob('.*.tmp'):
    found = _TEMPORARY.fullmatch(path.name)
    is_named = found and any(fnmatch.fnmatchcase(found['name'], name) for name in names)
    if is_named and path.is_file() and not path.is_symlink():
      path.unlink()


def refuse_links(folder: Path) -> None:
  """Raises BadInput if a folder contains a symbolic link, as writes through it leave the folder."""
  if folder.is_dir():
    for entry in os.scandir(folder):
      if entry.is_symlink():
        raise BadInput(
            f'{entry.path}: must not be a link; everything in a workdir is written inside it'
        )


def sha256(path: Path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


# JSON.


def nonfinite_to_null(value: Any, max_depth: int = 100) -> Any:
  """A copy of a JSON value with None in place of every NaN and infinity.

  Raises ValueError for a value nested more deeply than max_depth, which json may fail to write.
  """
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if not isinstance(value, Mapping | list | tuple):
    return value
  if not max_depth:
    raise ValueError('nested too deeply')
  if isinstance(value, Mapping):
    return {key: nonfinite_to_null(item, max_depth - 1) for key, item in value.items()}
  return [nonfinite_to_null(item, max_depth - 1) for item in value]


def write_json(path: Path, value: Any) -> None:
  """Writes a value as indented JSON, atomically; numbers that are not finite become null."""
  write_atomic(path, json.dumps(nonfinite_to_null(value), indent=2, allow_nan=False) + '\n')


def read_json(path: Path) -> Json:
  """The JSON object in a file; BadInput if the file cannot be read or contains anything else."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise BadInput(f'{path}: cannot be read: {error}') from error
  if not isinstance(found, dict):
    raise BadInput(f'{path}: cannot be read: is not a JSON object')
  return found


def find_json(path: Path) -> Json | None:
  """read_json, or None if there is no such file; another process may delete it at any time."""
  try:
    return read_json(path)
  except BadInput as error:
    if isinstance(error.__cause__, FileNotFoundError):
      return None
    raise


_KINDS = {int: 'a whole number', str: 'a string', dict: 'an object'}


def check_types(found: Mapping[str, Any], types: Mapping[str, type]) -> None:
  """Raises BadInput unless an object has these keys, with values of these types."""
  for key, kind in types.items():
    if not isinstance(found.get(key), kind) or isinstance(found[key], bool):
      raise BadInput(f'{key} must be {_KINDS[kind]}')


def timestamp() -> str:
  """The current UTC time in the format used in files: 2026-11-24T12:00:00Z, for example."""
  return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())


# JSON lines: one object per line. A last line without a newline was cut off by a crash; it is
# ignored.


def _dump_line(line: Json) -> str:
  return json.dumps(nonfinite_to_null(line), allow_nan=False) + '\n'


def write_lines(path: Path, lines: Iterable[Json]) -> None:
  """Writes a file of JSON lines atomically."""
  with open_atomic(path) as file:
    for line in lines:
      file.write(_dump_line(line).encode())


def append_line(path: Path, line: Json) -> None:
  """Appends a JSON line; the line is on disk when the function returns."""
  with writing(path), path.open('a') as file:
    file.write(_dump_line(line))
    file.flush()
    os.fsync(file.fileno())


def read_lines(path: Path) -> list[Json]:
  """The objects in a file of JSON lines; none if there is no such file."""
  return list(iterate_lines(path))


def iterate_lines(path: Path) -> Iterator[Json]:
  """The same as read_lines, one after another, for files that may be larger than memory."""
  if path.exists():
    with path.open('rb') as file:
      for number, line in _complete_lines(file):
        yield _parse(path, number, line)


def parse_lines(path: Path, parse: Callable[[Json], Parsed]) -> list[Parsed]:
  """The parsed objects in a file of JSON lines; adds path and line to a BadInput of `parse`."""
  found = []
  for number, line in enumerate(read_lines(path), 1):
    try:
      found.append(parse(line))
    except BadInput as error:
      raise BadInput(f'{path}, line {number}: damaged: {error}') from None
  return found


def read_last_line(path: Path) -> Json | None:
  """The last object in a file of JSON lines, read from its end; None if there is none."""
  if not path.exists():
    return None
  with path.open('rb') as file:
    size, tail = file.seek(0, os.SEEK_END), _TAIL_BYTES
    while True:
      file.seek(max(0, size - tail))
      lines = list(_complete_lines(file))
      if len(lines) > 1 or tail >= size:  # the first of several may be cut off
        break
      tail *= 2
  return _parse(path, *lines[-1]) if lines else None


def filter_lines(path: Path, keep: Callable[[Json], bool]) -> None:
  """Drops the lines of a file for which `keep` is false, and an incomplete last line."""
  if path.exists():
    with path.open('rb') as old, open_atomic(path) as new:
      new.writelines(
          line for number, line in _complete_lines(old) if keep(_parse(path, number, line))
      )


def _complete_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
  """The lines of a file and their numbers, counted from 1, without a last one that was cut off."""
  return ((n, line) for n, line in enumerate(file, 1) if line.endswith(b'\n'))


def _parse(path: Path, number: int, line: bytes) -> Json:
  try:
    found = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise BadInput(f'{path}, line {number}: damaged: {error}') from error
  if not isinstance(found, dict):
    raise BadInput(f'{path}, line {number}: damaged: is not a JSON object')
  return found
