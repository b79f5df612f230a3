"""Configs as flat dicts of dotted fields: checked, completed, and split into static and traced."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from stability.config.checks import CHECKS
from stability.config.fields import FIELDS
from stability.errors import BadInput

Config = dict[str, Any]  # a resolved config: nested plain dicts


def nearest(name: str, names: Iterable[str], cutoff: float = 0.0) -> str | None:
  """The name of which `name` is the abbreviation, as optimizer.lr, or else the most similar one.

  Args:
    name: dotted, with sections.
    names: those that exist.
    cutoff: the least similarity, 0 to 1.
  """
  names = list(names)
  section, _, short = name.rpartition('.')
  for other in names:
    other_section, _, words = other.rpartition('.')
    if section == other_section and short == ''.join(word[:1] for word in words.split('_')):
      return other
  return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def unknown_field(field: str) -> BadInput:
  """The error for a field that does not exist; it names a similar one, or the section's."""
  if found := nearest(field, FIELDS, cutoff=0.7):
    return BadInput(f'config.{field}: no such field; the nearest is config.{found}')
  section = field.partition('.')[0]
  names = [name.partition('.')[2] for name in FIELDS if name.startswith(f'{section}.')]
  there = f'config.{section} has {", ".join(names)}' if names else f'there are {_sections()}'
  return BadInput(f'config.{field}: no such field; {there}')


def _sections() -> str:
  return ', '.join(dict.fromkeys(f'config.{name.partition(".")[0]}' for name in FIELDS))


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'model': {'width': 64}} -> {'model.width': 64}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:  # an empty section is kept, so that an error names it
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> Config:
  """{'model.width': 64} -> {'model': {'width': 64}}."""
  config: Config = {}
  for field, value in flat.items():
    *sections, name = field.split('.')
    section = config
    for part in sections:
      section = section.setdefault(part, {})
    section[name] = value
  return config


# Values in their fields' types, by field and identity of the value.
Converted = dict[tuple[str, int], Any]


def resolve(flat: Mapping[str, Any], converted: Converted | None = None) -> dict[str, Any]:
  """Checks a flat config; raises BadInput if a field is unknown, missing or not allowed.

  Args:
    flat: dotted field -> value.
    converted: conversions of earlier calls, which this call uses and adds to. Their values must
      still exist, since they are recognised by identity.

  Returns:
    The value of every field in its own type, in the order of FIELDS.
  """
  for field in flat:
    if field not in FIELDS:
      raise unknown_field(field)
  for field, record in FIELDS.items():
    if field not in flat:
      raise BadInput(f'config.{field}: missing; it must be {record.allowed}')
  known = {} if converted is None else converted
  resolved = {}
  for field, record in FIELDS.items():
    value = flat[field]
    if (field, id(value)) not in known:
      known[field, id(value)] = record.convert(value)
    resolved[field] = known[field, id(value)]
  for fields, check in CHECKS:
    problem = check(*(resolved[field] for field in fields))
    if problem:
      raise BadInput(f'config.{fields[0]}={resolved[fields[0]]!r}: {problem}')
  return resolved


def convert(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The values of some fields, each in its field's type; raises BadInput if one is not allowed."""
  return {field: FIELDS[field].convert(value) for field, value in flat.items()}


def complete(config: Config) -> Config:
  """Adds the fields that a stored config lacks, each with the value `absent` of its record.

  Known fields are in the order of FIELDS, and their numbers are normalized. Unknown ones, from
  another version, follow them.
  """
  flat = flatten(config)
  known = {
      field: record.normalize(flat.get(field, record.absent)) for field, record in FIELDS.items()
  }
  return unflatten(known | {field: value for field, value in flat.items() if field not in known})


def split(config: Config) -> tuple[ml_collections.FrozenConfigDict, dict[str, float | int]]:
  """Splits a resolved config into (static config, hyperparameters by dotted field).

  The static config determines the programs: runs with the same one form a population and share
  executables. For a switch, it holds whether the value is above 0; the value is a hyperparameter.
  Labels, and what is read only when a run starts, are in neither.
  """
  hparams = {f: value for f, value in flatten(config).items() if FIELDS[f].traced}
  return ml_collections.FrozenConfigDict(unflatten(dict(static_fields(config)))), hparams


def static_fields(config: Config) -> tuple[tuple[str, Any], ...]:
  """The static config as (dotted field, value) pairs: equal for runs that share executables."""
  return tuple(
      (field, value > 0 if record.switch else value)
      for field, value in flatten(config).items()
      if (not (record := FIELDS[field]).traced or record.switch)
      and not (record.label or record.at_start)
  )
