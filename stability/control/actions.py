"""Actions on a run that is being trained: what there is, what is allowed, and the files they pass.

  requests/<time>-<id>.json  what somebody asks for: written whole by launch.control, removed by the
                             trainer once it has written down what became of it
  actions.jsonl              what was done, in order, or refused: appended by the trainer alone

An action is a dict: `action`, its name, and what else FIELDS lists; a request adds by, why and
time; a record adds step, after which it was taken, and either before, the run as it was, or
refused, why it was not done. The actions that a run has taken and the steps they were taken at,
with its config, determine its numbers: a run that is resumed, or trained again, takes them from
its records.
"""

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stability import config as config_lib
from stability.config import Config, fields
from stability.data.batches import MAX_EXAMPLES
from stability.errors import BadInput
from stability.storage import files, run_files

Json = dict[str, Any]

FIELDS = {
    'pause': (),
    'continue': (),
    'stop': (),
    'checkpoint': (),
    'set': ('changes',),  # hyperparameters by dotted field
    'skip': ('steps',),  # that many batches are never seen
    'rewind': ('to', 'skip', 'changes'),  # to a checkpoint's step, or 0; the others are optional
    'fork': ('changes', 'name'),  # a second run from here; its name is given by the trainer
}
OPTIONAL = ('skip', 'name')
ABOUT = ('by', 'why', 'time')  # strings, in any request
REQUEST_BYTES, REQUEST_DEPTH = 2**16, 4  # at the most; anybody may have written it

# Rules of an alarm that fired count as new again after these: the run took another course.
COURSE = run_files.COURSE_ACTIONS


def check(asked: Mapping[str, Any], config: Config, step: int, skipped: int) -> Json:
  """The action that is asked for, complete; BadInput says what is wrong with it.

  Args:
    asked: an action; other keys than the action's own are refused, but for ABOUT.
    config: of the run, with the hyperparameters as they are now.
    step: updates made.
    skipped: steps of data left out so far.
  """
  name = asked.get('action')
  if not isinstance(name, str) or name not in FIELDS:
    raise BadInput(f'action {name!r}: must be one of {", ".join(FIELDS)}')
  for key in asked:
    if key not in ('action', *FIELDS[name], *ABOUT) or key == 'name':
      raise BadInput(f'{name}: takes no {key!r}')
  action = {'action': name}
  for key in FIELDS[name]:
    if key == 'changes':
      action[key] = check_changes(asked.get(key, {}), config)
      if name == 'set' and not action[key]:
        raise BadInput('set: names no field; give FIELD=VALUE')
    elif key == 'name':
      continue
    elif asked.get(key) is not None or key not in OPTIONAL:
      action[key] = _whole(name, key, asked.get(key))
  if name == 'rewind' and action['to'] > step:
    raise BadInput(f'rewind: to {action["to"]}: must not be above the present step, {step}')
  skipped += action.get('steps', 0) + action.get('skip', 0)
  if (config['schedule']['steps'] + skipped) * config['data']['batch_size'] > MAX_EXAMPLES:
    raise BadInput(f'{name}: no data would be left; {MAX_EXAMPLES} sequences is the most')
  return action


def _whole(name: str, key: str, value: Any) -> int:
  if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
    raise BadInput(f'{name}: {key} {value!r}: must be a whole number, 0 or more')
  return value


def check_changes(changes: Any, config: Config) -> Json:
  """New values of hyperparameters, in their fields' types; BadInput if one cannot be had."""
  if not isinstance(changes, Mapping):
    raise BadInput(f'changes {changes!r}: must be fields with their values')
  for field in changes:
    if field not in fields.settable():
      raise BadInput(
          f'config.{field}: cannot be set in a running run;'
          f' these can: {", ".join(fields.settable())}'
      )
  before = config_lib.flatten(config)
  flat = config_lib.resolve(before | dict(changes))
  for field in changes:
    if config_lib.FIELDS[field].switch and bool(before[field]) != bool(flat[field]):
      without = '' if before[field] else 'out'
      raise BadInput(
          f'config.{field}={changes[field]!r}: the run was built with{without} this term;'
          ' only a new run can change that'
      )
  return {field: flat[field] for field in changes}


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
  """The config with other hyperparameters."""
  return config_lib.unflatten(config_lib.flatten(config) | dict(changes))


# Requests.


def request(run: Path, action: Mapping[str, Any], by: str, why: str) -> Path:
  """Asks the run's trainer for an action; returns the file, which is there until it is taken."""
  files.refuse_links(run)
  path = run / 'requests' / f'{time.time_ns():020}-{uuid.uuid4().hex[:8]}.json'
  about = {'by': by, 'why': why, 'time': now()}
  files.write_json(path, dict(action) | about)
  return path


def now() -> str:
  """The time as it stands in requests and records."""
  return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())


def requests(run: Path) -> list[Path]:
  """The files of the requests not yet taken, in their order."""
  try:
    names = os.listdir(run / 'requests')
  except (FileNotFoundError, NotADirectoryError, PermissionError):  # or another person's own
    return []
  paths = sorted(run / 'requests' / n for n in names if n.endswith('.json') and n[0] != '.')
  return [path for path in paths if path.is_file()]  # reading a pipe, say, would never end


def unanswered(run: Path) -> list[Path]:
  """The requests that no record answers; others may be there still if they cannot be removed."""
  paths = requests(run)
  answered = {record.get('request') for record in read(run)} if paths else ()
  return [path for path in paths if path.name not in answered]


def read_request(path: Path) -> Json:
  """What a request's file asks for; BadInput if that cannot be told."""
  try:
    if path.stat().st_size > REQUEST_BYTES:
      raise BadInput(f'not a request: larger than {REQUEST_BYTES:,} bytes')
    asked = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise BadInput(f'not a request: {error}') from error
  if not isinstance(asked, dict):
    raise BadInput('not a request: must be a JSON object')
  if _is_deep(asked, REQUEST_DEPTH):
    raise BadInput('not a request: too many levels of objects or lists')
  for key in ABOUT:
    if not isinstance(asked.get(key, ''), str):
      raise BadInput(f'not a request: {key} must be a string')
  return asked


def _is_deep(value: Any, most: int) -> bool:
  inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return most == 0 or any(_is_deep(item, most - 1) for item in inside)


# Records.


def read(run: Path) -> list[Json]:
  """actions.jsonl, the refused ones included; BadInput where it is not what a trainer writes."""
  path = run / 'actions.jsonl'
  records = files.read_lines(path)
  for number, record in enumerate(records, 1):
    try:
      _check_record(record)
    except BadInput as error:
      raise BadInput(f'{path}, line {number}: damaged: {error}') from None
  return records


def _check_record(record: Mapping[str, Any]) -> None:
  """Refuses what cannot be shown or, above all, what would lead to files elsewhere."""
  _check_types(record, {'step': int, 'by': str, 'why': str})
  if 'refused' in record:
    return
  if record.get('action') not in list(FIELDS):
    raise BadInput(f'action must be one of {", ".join(FIELDS)}')
  _check_types(record, {key: int for key in ('to', 'steps', 'skip') if key in record})
  changes = record.get('changes', {})
  if not isinstance(changes, dict) or not set(map(type, changes.values())) <= {int, float}:
    raise BadInput('changes must be fields with their values')
  for key in ('name', 'cut'):
    name = record.get(key, 'none')
    if not isinstance(name, str) or name != os.path.basename(name) or name in ('', '.', '..'):
      raise BadInput(f'{key} must be the name of a file')


def _check_types(record: Mapping[str, Any], types: Mapping[str, type]) -> None:
  for key, kind in types.items():
    if not isinstance(record.get(key), kind):
      raise BadInput(f'{key} must be {"a whole number" if kind is int else "a string"}')


def read_alarms(run: Path) -> list[Json]:
  """alarms.jsonl; BadInput where it is not what a trainer writes."""
  path = run / 'alarms.jsonl'
  raised = files.read_lines(path)
  for number, alarm in enumerate(raised, 1):
    try:
      _check_types(alarm, {'step': int, 'rule': str, 'seen': str, 'actions': int})
    except BadInput as error:
      raise BadInput(f'{path}, line {number}: damaged: {error}') from None
  return raised


def done(records: Iterable[Json]) -> list[Json]:
  """Those that were not refused."""
  return [record for record in records if 'refused' not in record]


def skipped(taken: Iterable[Json]) -> int:
  """Steps of data that these actions left out."""
  return sum(record.get('steps', 0) + (record.get('skip') or 0) for record in taken)


def settable(config: Config) -> Json:
  """The hyperparameters that actions may change, by dotted field."""
  flat = config_lib.flatten(config)
  return {field: flat[field] for field in fields.settable()}


def is_paused(taken: Iterable[Json]) -> bool:
  """Whether a run that has taken these actions waits: a rewind lets it go on, as continue does."""
  last = [r['action'] for r in taken if r['action'] in ('pause', 'continue', 'stop', 'rewind')]
  return bool(last) and last[-1] == 'pause'


def current(config: Config, taken: Iterable[Json]) -> Config:
  """The config of a run with the hyperparameters that these actions left it with."""
  for record in taken:
    if record['action'] in ('set', 'rewind'):
      config = changed(config, record['changes'])
  return config


# Words.


def words_of(action: Mapping[str, Any]) -> str:
  """An action as it is typed."""
  words = [action['action']]
  words += [str(action[key]) for key in ('to', 'steps') if key in action]
  words += [f'skip={action["skip"]}'] if action.get('skip') else []
  words += [f'{field}={value:.6g}' for field, value in action.get('changes', {}).items()]
  return ' '.join(words)


def told(record: Mapping[str, Any]) -> str:
  """A record in words; of one that was refused, which may hold anything, the reason."""
  if 'refused' in record:
    return f'{record.get("action")}, refused: {record["refused"]}'
  return words_of(record)
