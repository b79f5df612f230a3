"""The policy: the action on an alarm without asking, and the actions suggested to a person."""

from collections.abc import Mapping, Sequence
from typing import Any

from stability import config as config_lib
from stability.config import Config
from stability.control.actions import Action
from stability.control.rules import Rule

# The recipe of PaLM (arXiv 2204.02311, section 5.1), plus a lower learning rate: PaLM's spikes were
# not caused by the data alone, and here the cause is a learning rate that is too high.
REWIND_STEPS = 100  # minimum number of steps from the checkpoint to the alarm
LEARNING_RATE_FACTOR = 1 / 3  # applied by each rescue

RATE = 'optimizer.learning_rate'


def rescue(config: Config, alarm_step: int, step: int, saved: Sequence[int]) -> Action:
  """The policy's action: a rewind that skips the data seen since and lowers the learning rate.

  Args:
    config: the run's config, with its current hyperparameters.
    alarm_step: step of the row that raised the alarm.
    step: the run's current step (updates made).
    saved: steps of the checkpoints that it may go back to.
  """
  to = max((s for s in saved if s <= alarm_step - REWIND_STEPS), default=0)
  rate = _multiplied(config_lib.flatten(config), RATE, LEARNING_RATE_FACTOR)
  return Action('rewind', to=to, skip=step - to, changes={RATE: rate})


def suggestions(rule: Rule, config: Config) -> list[Action]:
  """Actions that may help against an alarm of a rule; each sets a hyperparameter. Best first."""
  flat = config_lib.flatten(config)
  changes = {field: _multiplied(flat, field, factor) for field, factor in rule.remedies}
  return [
      Action('set', changes={field: value})
      for field, value in changes.items()
      if value != flat[field]  # a term that the run was built without (0) cannot be turned on
  ]


def _multiplied(flat: Mapping[str, Any], field: str, factor: float) -> float:
  """The value of a field times a factor; a learning rate is not below that of the last update."""
  value = flat[field] * factor
  return max(value, flat['schedule.min_learning_rate']) if field == RATE else value
