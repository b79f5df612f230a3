"""Requests for actions on a run: DIR/runs/NAME/requests/<time>-<id>.json.

launch.control, or any other program, writes a request. At the run's next stop, the trainer reads
the request, takes and records the action or records why it is refused, and deletes the file.
"""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from stability.control import records
from stability.control.actions import ARGUMENTS, Action
from stability.errors import BadInput
from stability.storage import files
from stability.storage.files import Json

ABOUT = ('by', 'why', 'time')  # optional keys of every request; their values are strings

# Limits of a request: anybody may write one.
_MAX_BYTES = 2**16
_MAX_DEPTH = 4


def write_request(run: Path, action: Action, by: str, why: str) -> Path:
  """Writes a request for an action; returns its file, which the run's trainer will delete."""
  files.refuse_links(run)
  path = run / 'requests' / f'{time.time_ns():020}-{uuid.uuid4().hex[:8]}.json'
  about = {'by': by, 'why': why, 'time': files.timestamp()}
  files.write_json(path, action.to_json() | about)
  return path


def request_files(run: Path) -> list[Path]:
  """The files of a run's requests, oldest first."""
  try:
    names = os.listdir(run / 'requests')
  except OSError:
    return []  # the folder belongs to another user, for example
  paths = sorted(run / 'requests' / n for n in names if n.endswith('.json') and n[0] != '.')
  return [path for path in paths if _is_file(path)]


def _is_file(path: Path) -> bool:
  """Whether a path is a regular file; reading a pipe might never end."""
  try:
    return path.is_file()
  except OSError:  # such as EIO or ESTALE of a file server
    return False


def unanswered(run: Path) -> list[Path]:
  """The requests that have no record yet.

  The trainer may have been unable to delete the files of requests that it has answered.
  """
  paths = request_files(run)
  answered = {record.request for record in records.read_records(run)} if paths else ()
  return [path for path in paths if path.name not in answered]


def read_request(path: Path) -> Json:
  """The JSON object in a request's file; BadInput if the file is not a request."""
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise BadInput(f'not a request: larger than {_MAX_BYTES:,} bytes')
    asked = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise BadInput(f'not a request: {error}') from error
  if not isinstance(asked, dict):
    raise BadInput('not a request: must be a JSON object')
  if _is_deeper(asked, _MAX_DEPTH):
    raise BadInput('not a request: too many levels of objects or lists')
  for key in ABOUT:
    if not isinstance(asked.get(key, ''), str):
      raise BadInput(f'not a request: {key} must be a string')
  return asked


def _is_deeper(value: Any, depth: int) -> bool:
  """Whether a JSON value has something inside `depth` or more nested objects and lists."""
  inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return depth == 0 or any(_is_deeper(item, depth - 1) for item in inside)


def parse_request(asked: Json) -> Action:
  """The action that a request asks for; BadInput if it is malformed or has an unknown key."""
  kind = asked.get('action')
  if isinstance(kind, str) and kind in ARGUMENTS:
    for key in asked:
      if key not in ('action', *ARGUMENTS[kind], *ABOUT) or key == 'name':
        raise BadInput(f'{kind}: takes no {key!r}')
  return Action.from_json(asked)
