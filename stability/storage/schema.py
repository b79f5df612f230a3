"""Checks of sweep.json and config.json when they are read, since anybody may have edited them.

A config written by another version may lack fields, which are added, or have unknown fields, which
are kept, so that sweeps of other versions can be shown. Training refuses unknown fields.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stability import config as config_lib
from stability import extensions
from stability.errors import BadInput

_SWEEP = {
    'config_file': str,
    'scale': str,
    'overrides': dict,
    'fields': list,
    'data': dict,
    'versions': dict,
    'report': dict,
    'runs': dict,
}
_DATA = {
    'path': str,
    'sha256': dict,
    'tokenizer': str,
    'vocabulary_size': int,
    'train_tokens': int,
    'validation_tokens': int,
    'unigram_loss': float,
    'bigram_loss': float,
    'entropy_rate': float | None,
}
SHOWN = tuple(_DATA)[2:]  # the entries that a report shows
# Fields that every reader of a run needs.
_REQUIRED = ('seed', 'model.width', 'model.depth', 'optimizer.learning_rate', 'schedule.steps')

# Fields of imported runs with which analyses compute.
_NUMBERS = ('model.width', 'model.depth', 'model.head_dim')
_NUMBERS += ('schedule.steps', 'schedule.warmup_steps')


def check_sweep(path: Path, sweep: Mapping[str, Any]) -> None:
  """Checks the content of sweep.json; BadInput for a value of a wrong type or a contradiction."""
  for key, kind in _SWEEP.items():
    if not isinstance(sweep.get(key), kind):
      raise BadInput(f'{path}: damaged: {key} is missing or of a wrong type')
  try:
    extensions.register_stored(sweep.get('extensions', {}))
  except BadInput as error:
    raise BadInput(f'{path}: damaged: extensions: {error}') from None
  fields, runs, data = sweep['fields'], sweep['runs'], sweep['data']
  if not runs:
    raise BadInput(f'{path}: damaged: it has no runs')
  if len(fields) != len(set(map(str, fields))):
    raise BadInput(f'{path}: damaged: fields lists a field twice')
  check_parameters(path, sweep.get('parameters', {}))
  for name, config in runs.items():
    check = check_imported if sweep.get('origin') == 'imported' else check_config
    flat = check(f'{path}: its run {name!r}', config)
    for field in fields:
      if not isinstance(field, str) or field not in flat:
        raise BadInput(f'{path}: damaged: fields lists {field!r}, which its run {name!r} lacks')
  check_data(path, data, [key for key in _DATA if key in data])


def check_data(path: Path, data: Mapping[str, Any], keys: Iterable[str]) -> None:
  """Checks that `data` of sweep.json has some entries; BadInput if one is missing or wrong."""
  for key in keys:
    if key not in data or not isinstance(data[key], _DATA[key]):
      raise BadInput(f'{path}: damaged: data: {key} is missing or of a wrong type')


def check_parameters(path: Path, parameters: Any) -> None:
  """Checks that `parameters` of sweep.json maps names to counts; otherwise raises BadInput."""
  if not isinstance(parameters, Mapping) or not all(
      type(count) is int and count >= 0 for count in parameters.values()
  ):
    raise BadInput(f'{path}: damaged: parameters must have the number of parameters by run')


def check_config(where: str, config: Any) -> dict[str, Any]:
  """Checks a run's config; returns it by dotted field, completed with newer fields.

  If the config is damaged, raises BadInput with a message that begins with `where`.
  """
  flat = config_lib.flatten(config) if isinstance(config, Mapping) else {}
  try:
    if not flat:
      raise BadInput('it has no fields')
    if config_lib.unflatten(flat) != config:
      raise BadInput('sections and fields are mixed up')
    for field in _REQUIRED:
      if field not in flat:
        raise BadInput(f'config.{field}: missing')
    if _is_mixed_up(flat):
      raise BadInput('sections and fields are mixed up')
    known = {field: flat[field] for field in config_lib.FIELDS if field in flat}
    convert = config_lib.resolve if len(known) == len(config_lib.FIELDS) else config_lib.convert
    for field, value in convert(known).items():
      if type(value) is not type(flat[field]):  # such as 1 instead of 1.0
        allowed = config_lib.FIELDS[field].allowed
        raise BadInput(f'config.{field}={flat[field]!r}: must be {allowed}')
  except BadInput as error:
    raise BadInput(f'{where} is damaged: {error}') from None
  return config_lib.flatten(config_lib.complete(config))


def check_imported(where: str, config: Any) -> dict[str, Any]:
  """Checks the config of an imported run, which may lack fields; returns it by dotted field.

  If the config is damaged, raises BadInput with a message that begins with `where`.
  """
  flat = config_lib.flatten(config) if isinstance(config, Mapping) else {}
  rate, seed = flat.get('optimizer.learning_rate'), flat.get('seed')
  if type(rate) is not float or not 0 < rate < math.inf or type(seed) is not int:
    raise BadInput(f'{where} is damaged: it has no learning rate and seed')
  for field, value in flat.items():
    if type(value) not in (str, int, float, bool):
      raise BadInput(f'{where} is damaged: {field} must be a number or text')
    if field in _NUMBERS and type(value) is not int:
      raise BadInput(f'{where} is damaged: {field} must be a whole number')
  return flat


def _is_mixed_up(flat: Mapping[str, Any]) -> bool:
  """Whether an unknown field is a section of known fields, or lies within a known field."""
  return any(
      f'{known}.'.startswith(f'{field}.') or field.startswith(f'{known}.')
      for field in flat
      if field not in config_lib.FIELDS
      for known in config_lib.FIELDS
  )
