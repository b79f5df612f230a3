"""What a resume reads of a token folder, checked: its settings, and how far its text is packed."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stability.data import tokens
from stability.data.tokenize import shards
from stability.errors import BadInput
from stability.storage import files

Json = dict[str, Any]

PROGRESS = 'progress.json'


def previous_settings(folder: Path) -> Json | None:
  """The settings with which the folder was begun; None if it was not."""
  return _read(folder / tokens.SETTINGS, _are_settings)


def begin(folder: Path, settings: Json) -> bool:
  """Writes the settings, or checks that they are the same as before.

  Args:
    folder: the folder of the token files.
    settings: values by flag; 'parts' holds [name, split, fingerprint] of each part, in order.

  Returns:
    Whether the folder is complete.

  Raises:
    BadInput: the folder was begun with other settings, and the message names the difference; or
      it is complete, and its files are not those that were written.
  """
  previous = previous_settings(folder)
  if previous is None:
    files.write_json(folder / tokens.SETTINGS, settings)
    return False
  current = json.loads(json.dumps(settings))
  for name in previous | current:
    old, new = previous.get(name), current.get(name)
    if old == new:
      continue
    difference = f'{name}={old!r}, now {new!r}'
    if name == 'parts':
      difference = 'other input: ' + _difference(old, new)
    raise BadInput(f'--output={folder}: was begun with {difference}; choose a new folder')
  if not (folder / 'meta.json').exists():
    return False
  try:
    tokens.open_tokens(folder)
  except BadInput as error:
    raise BadInput(f'{error}; choose a new folder') from error
  return True


def progress(folder: Path, parts: int, shard_tokens: int) -> Json:
  """The last commit; empty if there is none.

  Args:
    folder: the folder of the token files.
    parts: the number of parts of the input.
    shard_tokens: number of tokens in a full shard.
  """

  def is_progress(found: Json) -> bool:
    place, documents = found.get('place'), found.get('documents')
    return (
        all(_is_written(split, found.get(split), shard_tokens) for split in tokens.SPLITS)
        and isinstance(place, list)
        and len(place) == 3
        and all(map(_is_count, place[:2]))
        and place[0] < parts
        and isinstance(documents, dict)
        and all(map(_is_count, documents.values()))
    )

  return _read(folder / PROGRESS, is_progress) or {}


def _difference(old: list, new: list) -> str:
  """The first difference between two lists of parts."""
  before, now = ({name: rest for name, *rest in parts} for parts in (old, new))
  for name in before:
    if name not in now:
      return f'{name} is gone'
    if before[name] != now[name]:
      return f'{name} has changed'
  return next((f'{name} is new' for name in now if name not in before), 'the order has changed')


def _read(file: Path, is_right: Callable[[Json], bool]) -> Json | None:
  """The object in a file, None without the file; BadInput if it is not as it was written."""
  if not file.exists():
    return None
  try:
    found = files.read_json(file)
  except BadInput as error:
    raise BadInput(f'{error}; choose a new folder') from error
  if not is_right(found):
    raise BadInput(f'{file}: damaged; choose a new folder')
  return found


def _are_settings(found: Json) -> bool:
  parts = found.get('parts')
  return (
      isinstance(found.get('revisions'), dict)
      and isinstance(parts, list)
      and all(isinstance(part, list) and part and isinstance(part[0], str) for part in parts)
  )


def _is_written(split: str, found: Any, shard_tokens: int) -> bool:
  """Whether this may be what a ShardWriter committed."""
  if not isinstance(found, dict) or not _is_count(found.get('tokens')):
    return False
  full = math.ceil(found['tokens'] / shard_tokens)
  names = [shards.shard_name(split, number) for number in range(full)]
  return isinstance(found.get('sha256'), dict) and sorted(found['sha256']) == sorted(names)


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0
