"""What sweep.json and config.json must hold where they are read: anybody may have changed them.

Fields that this version does not know, or that it has come to know since, are let pass, so that
sweeps of other versions can be shown; whoever trains them asks config.resolve for all.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stability import config as config_lib
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
SHOWN = tuple(_DATA)[2:]  # in a report
# What the shortest look at a run takes.
_NEEDED = ('seed', 'model.width', 'model.depth', 'optimizer.learning_rate', 'schedule.steps')


def check_sweep(path: Path, sweep: Mapping[str, Any]) -> None:
  """BadInput where what sweep.json holds is of a wrong kind or contradicts itself."""
  for key, kind in _SWEEP.items():
    if not isinstance(sweep.get(key), kind):
      raise BadInput(f'{path}: damaged: {key} is missing or of a wrong type')
  fields, runs, data = sweep['fields'], sweep['runs'], sweep['data']
  if not runs:
    raise BadInput(f'{path}: damaged: it has no runs')
  if len(fields) != len(set(map(str, fields))):
    raise BadInput(f'{path}: damaged: fields names one twice')
  for name, config in runs.items():
    flat = check_config(f'{path}: its run {name!r}', config)
    for field in fields:
      if not isinstance(field, str) or field not in flat:
        raise BadInput(f'{path}: damaged: fields names {field!r}, which its run {name!r} lacks')
  check_data(path, data, [key for key in _DATA if key in data])


def check_data(path: Path, data: Mapping[str, Any], keys: Iterable[str]) -> None:
  """BadInput where sweep.json does not say these things of the data."""
  for key in keys:
    if key not in data or not isinstance(data[key], _DATA[key]):
      raise BadInput(f'{path}: damaged: data: {key} is missing or of a wrong type')


def check_config(where: str, config: Any) -> dict[str, Any]:
  """The config of a run by dotted field; BadInput, which begins with `where`, for a bad one."""
  flat = config_lib.flatten(config) if isinstance(config, Mapping) else {}
  try:
    if not flat:
      raise BadInput('it has no fields')
    if config_lib.unflatten(flat) != config:
      raise BadInput('sections and fields are mixed up')
    for field in _NEEDED:
      if field not in flat:
        raise BadInput(f'config.{field}: missing')
    known = {field: flat[field] for field in config_lib.RULES if field in flat}
    checked = config_lib.resolve if len(known) == len(config_lib.RULES) else config_lib.convert
    for field, value in checked(known).items():
      if type(value) is not type(flat[field]):  # 1 in the place of 1.0
        raise BadInput(f'config.{field}={flat[field]!r}: must be {config_lib.RULES[field].allowed}')
  except BadInput as error:
    raise BadInput(f'{where} is damaged: {error}') from None
  return flat
