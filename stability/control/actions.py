"""Actions on a run in training: their kinds, their arguments and checks of both.

A run's numbers are determined by its config, the actions taken on it and the steps at which they
were taken. A run that is resumed or replayed reads these from its records (records.py).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from stability import config as config_lib
from stability.config import MAX_EXAMPLES, Config, fields
from stability.errors import BadInput
from stability.storage.files import Json

# Kinds of actions, with the names of their arguments.
ARGUMENTS = {
    'pause': (),
    'continue': (),
    'stop': (),
    'checkpoint': (),
    'set': ('changes',),
    'skip': ('steps',),
    'rewind': ('to', 'skip', 'changes'),
    'fork': ('changes', 'name'),
}
OPTIONAL = ('skip', 'changes', 'name')  # arguments that may be missing
MAX_STEPS = 2**31  # steps are int32 on the device


@dataclasses.dataclass(frozen=True)
class Action:
  """An action and its arguments; arguments that its kind does not take have their defaults."""

  kind: str  # a key of ARGUMENTS
  # Dotted field -> new value.
  changes: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
  steps: int = 0  # skip: number of batches to leave out
  to: int = 0  # rewind: step of a checkpoint, or 0
  skip: int = 0  # rewind: number of batches after `to` to leave out
  name: str = ''  # fork: name of the new run, chosen by the trainer

  def to_json(self) -> Json:
    """The JSON object used in requests, records and alarms."""
    values = {key: getattr(self, key) for key in ARGUMENTS[self.kind]}
    unset = [key for key in ('skip', 'name') if not values.get(key)]
    return {'action': self.kind} | {k: v for k, v in values.items() if k not in unset}

  @classmethod
  def from_json(cls, found: Mapping[str, Any]) -> Self:
    """The inverse of to_json; ignores other keys. Raises BadInput for a damaged object."""
    kind = found.get('action')
    if not isinstance(kind, str) or kind not in ARGUMENTS:
      raise BadInput(
          f'action {config_lib.safe_repr(kind)}: must be one of {", ".join(ARGUMENTS)}'
      )
    values = {}
    for key in ARGUMENTS[kind]:
      value = found.get(key)
      if value is None and key in OPTIONAL:
        continue
      check = {'changes': _check_changes, 'name': _check_name}.get(key, _check_steps)
      check(kind, key, value)
      values[key] = value
    return cls(kind, **values)

  def __str__(self) -> str:
    """The action in the syntax of launch.control."""
    words = [self.kind]
    words += [str(getattr(self, key)) for key in ('to', 'steps') if key in ARGUMENTS[self.kind]]
    words += [f'skip={self.skip}'] if self.skip else []
    words += [f'{field}={value:.6g}' for field, value in self.changes.items()]
    return ' '.join(words)


def _check_steps(kind: str, key: str, value: Any) -> None:
  if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_STEPS:
    raise BadInput(
        f'{kind}: {key} {config_lib.safe_repr(value)}: must be a whole number, 0 or more'
    )


def _check_changes(kind: str, key: str, value: Any) -> None:
  if not isinstance(value, Mapping):
    raise BadInput(
        f'{kind}: changes {config_lib.safe_repr(value)}: must be fields with their values'
    )
  for field, number in value.items():
    if type(number) not in (int, float):
      raise BadInput(f'config.{field}={config_lib.safe_repr(number)}: must be a number')


def _check_name(kind: str, key: str, value: Any) -> None:
  if not is_file_name(value):
    raise BadInput('name must be the name of a folder')


def is_file_name(value: Any) -> bool:
  """Whether a value is a plain name of a file or folder, which cannot refer to another folder."""
  return isinstance(value, str) and value not in ('', '.', '..') and not {'/', '\0'} & set(value)


def check(action: Action, config: Config, step: int, skipped: int) -> Action:
  """Checks an action; returns it with its changes converted to their fields' types.

  Args:
    action: the requested action.
    config: the run's config, with its current hyperparameters.
    step: the run's current step (updates made).
    skipped: number of batches that the run has left out so far.

  Raises:
    BadInput: the action is not allowed.
  """
  if action.kind == 'set' and not action.changes:
    raise BadInput('set: names no field; give FIELD=VALUE')
  action = dataclasses.replace(action, changes=_resolved(action.changes, config))
  if action.to > step:
    raise BadInput(f'rewind: to {action.to}: must not be above the current step, {step}')
  steps = config['schedule']['steps'] + skipped + action.steps + action.skip
  if steps * config['data']['batch_size'] > MAX_EXAMPLES:
    raise BadInput(
        f'{action.kind}: no data would be left; a run can draw {MAX_EXAMPLES} sequences at most'
    )
  return action


def _resolved(changes: Mapping[str, float | int], config: Config) -> dict[str, float | int]:
  """The changes converted to their fields' types; BadInput if one is not allowed."""
  for field in changes:
    if field not in fields.settable():
      raise BadInput(
          f'config.{field}: cannot be set in a running run;'
          f' these can: {", ".join(fields.settable())}'
      )
  before = config_lib.flatten(config)
  after = config_lib.resolve(before | dict(changes))
  for field in changes:
    if config_lib.FIELDS[field].switch and bool(before[field]) != bool(after[field]):
      built = 'with' if before[field] else 'without'
      raise BadInput(
          f'config.{field}={changes[field]!r}: the run was built {built} this term;'
          ' only a new run can change that'
      )
  return {field: after[field] for field in changes}


def with_changes(config: Config, changes: Mapping[str, float | int]) -> Config:
  """The config with changed hyperparameters."""
  return config_lib.unflatten(config_lib.flatten(config) | dict(changes))


def settable_values(config: Config) -> Json:
  """The current values of the hyperparameters that actions may change, by dotted field."""
  flat = config_lib.flatten(config)
  return {field: flat[field] for field in fields.settable()}
