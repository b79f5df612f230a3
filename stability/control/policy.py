"""The policy: the action on an alarm without asking, and the actions suggested to a person."""

from collections.abc import Sequence

from stability import config as config_lib
from stability.config import Config
from stability.control.actions import Action
from stability.control.rules import Rule

# The recipe of PaLM (arXiv 2204.02311, section 5.1), plus a lower learning rate: PaLM's spikes were
# not caused by the data alone, and here the cause is a learning rate that is too high.
REWIND_STEPS = 100  # minimum number of steps from the checkpoint to the alarm
LEARNING_RATE_FACTOR = 1 / 3  # applied by each rescue


def rescue(config: Config, alarm_step: int, step: int, saved: Sequence[int]) -> Action:
  """The policy's action: a rewind that skips the data seen since and lowers the learning rate.

  Args:
    config: the run's config, with its current hyperparameters.
    alarm_step: step of the row that raised the alarm.
    step: the run's current step (updates made).
    saved: steps of the checkpoints that it may go back to.
  """
  to = max((s for s in saved if s <= alarm_step - REWIND_STEPS), default=0)
  rate = config['optimizer']['learning_rate'] * LEARNING_RATE_FACTOR
  rate = max(rate, config['schedule']['min_learning_rate'])
  return Action('rewind', to=to, skip=step - to, changes={'optimizer.learning_rate': rate})


def suggestions(rule: Rule, config: Config) -> list[Action]:
  """Actions that may help against an alarm of a rule; each sets a hyperparameter. Best first."""
  flat = config_lib.flatten(config)
  return [
      Action('set', changes={field: flat[field] * factor})
      for field, factor in rule.remedies
      if flat[field]  # a term that the run was built without cannot be turned on
  ]
