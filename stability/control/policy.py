"""The policy: what is done about an alarm without asking, and what is suggested to a person."""

from collections.abc import Sequence

from stability import config as config_lib
from stability.config import Config
from stability.control.actions import Action
from stability.control.rules import Rule

# The recipe of PaLM (arXiv 2204.02311, section 5.1), with a lower learning rate: PaLM's spikes were
# not caused by the data alone, and here the cause is a learning rate that is too high.
REWIND_STEPS = 100  # least distance of the checkpoint from the alarm
LEARNING_RATE_FACTOR = 1 / 3  # at each rescue


def rescue(config: Config, alarm_step: int, step: int, saved: Sequence[int]) -> Action:
  """The policy's action: a rewind, past the data seen since, with a lower learning rate.

  Args:
    config: of the run, with its present hyperparameters.
    alarm_step: step of the row that raised the alarm.
    step: updates made.
    saved: steps of the run's good checkpoints.
  """
  to = max((s for s in saved if s <= alarm_step - REWIND_STEPS), default=0)
  rate = config['optimizer']['learning_rate'] * LEARNING_RATE_FACTOR
  rate = max(rate, config['schedule']['min_learning_rate'])
  return Action('rewind', to=to, skip=step - to, changes={'optimizer.learning_rate': rate})


def suggestions(rule: Rule, config: Config) -> list[Action]:
  """What may help against an alarm of a rule: actions that set a hyperparameter, the best first."""
  flat = config_lib.flatten(config)
  return [
      Action('set', changes={field: flat[field] * factor})
      for field, factor in rule.remedies
      if flat[field]  # a term that the run was built without cannot be turned on
  ]
