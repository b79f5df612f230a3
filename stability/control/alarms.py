"""Alarms: signs that a run is becoming unstable, raised by a monitor of its logged rows."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from stability.control import limits as limits_lib
from stability.control import rows as rows_lib
from stability.control.actions import Action
from stability.control.history import not_finite
from stability.control.rows import Row
from stability.control.rules import RULES, History, Rule
from stability.errors import BadInput
from stability.storage import files
from stability.storage.files import Json


@dataclasses.dataclass(frozen=True)
class Alarm:
  """An alarm: a row of a run that broke a rule. A line of alarms.jsonl."""

  step: int
  rule: str  # name of the rule
  value: float  # value of the rule's measure
  limit: float  # limit of the rule, which `value` exceeds
  message: str  # shown to a person
  probability: float  # that the run becomes unstable
  # Set only for runs that this package trains.
  actions: int = 0  # number of actions taken on the run before the alarm
  suggestions: tuple[Action, ...] = ()  # actions that may help, best first

  @classmethod
  def raised(cls, rule: Rule, step: int, value: float, row: Row | None = None) -> Self:
    """The alarm of a rule whose measure has a value above the limit, at a row if it is known."""
    names = not_finite(row or {})
    listed = f' ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})' if names else ''
    return cls(
        step=step,
        rule=rule.name,
        value=float(value),
        limit=rule.limit,
        message=rule.message.format(value=value, limit=rule.limit, not_finite=listed),
        probability=rule.probability(value),
    )

  def to_json(self) -> Json:
    """The object in alarms.jsonl."""
    return {
        'step': self.step,
        'rule': self.rule,
        'value': self.value,
        'limit': self.limit,
        'seen': self.message,
        'sure': self.probability,
        'actions': self.actions,
        'suggested': [action.to_json() for action in self.suggestions],
    }

  @classmethod
  def from_json(cls, found: Json) -> Self:
    """The inverse of to_json; BadInput for a damaged object."""
    files.check_types(found, {'step': int, 'rule': str, 'seen': str, 'actions': int})
    suggested = found.get('suggested', [])
    if not isinstance(suggested, list) or not all(isinstance(s, dict) for s in suggested):
      raise BadInput('suggested must be a list of actions')
    return cls(
        step=found['step'],
        rule=found['rule'],
        value=_number(found, 'value'),
        limit=_number(found, 'limit'),
        message=found['seen'],
        probability=_number(found, 'sure'),
        actions=found['actions'],
        suggestions=tuple(map(Action.from_json, suggested)),
    )


def _number(found: Json, key: str) -> float:
  """The number under a key; NaN if the key is absent or the value is null (not finite)."""
  value = found.get(key)
  if value is None:
    return math.nan
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise BadInput(f'{key} must be a number')
  return value


def _checked_rules(given: Iterable[Rule | str] | str) -> tuple[Rule, ...]:
  """The rules that are given, by name or themselves."""
  by_name = {rule.name: rule for rule in RULES}
  is_list = isinstance(given, Iterable) and not isinstance(given, str)
  found = [by_name.get(r, r) if isinstance(r, str) else r for r in (given if is_list else [given])]
  for rule in found:
    if not isinstance(rule, Rule):
      raise BadInput(f'rules: {rule!r}: is no rule; rules are {", ".join(by_name)}')
  return tuple(found)


class Monitor:
  """Raises alarms while a model trains, in any training loop.

    monitor = stability.Monitor()
    for step in ...:
      for alarm in monitor.observe({'step': step, 'loss': loss, 'log_z': log_z}):
        print(alarm.step, alarm.rule, alarm.message, alarm.probability)

  An alarm also has value and limit, those of the rule's measure. Each rule raises one alarm, at the
  first row that breaks it; `rearm` lets all rules raise alarms again. After a return to an earlier
  checkpoint, start a new monitor. Memory does not grow with the number of rows.

  A row is a mapping from names to numbers, of which only `step` (updates made) is required. Rows
  may come at any interval, several of them at one step, and a rule ignores a row without the values
  that it reads (`lacking` lists the rules that could not be applied so far):

    loss                          mean loss of the batch: loss_spike, loss_above_past
    block_*/attention_logit_max   largest query-key product of a block after the scaling by
                                  1/sqrt(head dim), before soft cap and mask: attention_logit,
                                  attention_logit_course
    block_*/output_rms            RMS of the residual stream after a block: residual_growth
    log_z                         mean log of the softmax normaliser of the output: log_z_drift
    gradient_over_eps/*           RMS of a parameter's gradient over AdamW's eps: gradient_under_eps
    update_rms/*                  RMS of a parameter's update, before learning rate and weight
                                  decay: update_collapse

  Growth is measured per e-fold of training time: the sum of learning rates, if rows have
  learning_rate, and otherwise the number of steps. The rule non_finite reads every value but
  critical_sharpness* and effective_learning_rate/*, and None counts as not finite: leave out what
  is infinite by design. stability/probes measures all of these in PyTorch and Flax models. The
  limits were chosen on short runs of this package (stability/control/rules.py). Other regimes may
  need their own: `python -m launch.alarms --workdir=DIR --calibrate=FILE.json` chooses them on the
  runs of a sweep, and `stability.Monitor(limits='FILE.json')` applies them.
  """

  def __init__(
      self,
      rules: Iterable[Rule | str] | str | None = None,
      *,
      limits: str | Path | None = None,
  ):
    """
    Args:
      rules: the rules to apply, or their names, such as 'loss_spike'; by default, rules.RULES.
      limits: a file that `launch.alarms --calibrate` has written, with limits for one's own regime.

    Raises:
      BadInput: there is no such rule, or the file cannot be read or is damaged.
    """
    rules = RULES if rules is None else _checked_rules(rules)
    self._rules = rules if limits is None else limits_lib.read(limits).apply(rules)
    self._history = History()
    self._fired: set[str] = set()
    self._applied: set[str] = set()  # names of the rules whose measure has had a value

  @property
  def last_row(self) -> Row:
    """The last row; empty before the first one."""
    return self._history.row

  @property
  def lacking(self) -> dict[str, str]:
    """The rules that no row so far could break, by name, and what each needs."""
    return {rule.name: rule.needs for rule in self._rules if rule.name not in self._applied}

  def observe(self, row: Row) -> list[Alarm]:
    """Adds the next row; returns the alarms that it raises.

    Raises:
      BadInput: the row has no step or one below that of the last row, or a value that is neither a
        number nor None. The row is not added.
    """
    row = self._add(row)
    raised = []
    for rule in self._rules:
      value = math.nan if rule.name in self._fired else rule.measure(self._history)
      if not math.isnan(value):
        self._applied.add(rule.name)
      if value > rule.limit:
        self._fired.add(rule.name)
        raised.append(Alarm.raised(rule, row['step'], value, row))
    return raised

  def restore(self, rows: Iterable[Row], fired: Iterable[str]) -> None:
    """Adds rows whose alarms were already raised.

    `fired` has the names of the rules that raise no alarms until `rearm` is called.
    """
    for row in rows:
      self._add(row)
    self._fired = set(fired)

  def _add(self, row: Row) -> Row:
    row = rows_lib.checked(row, self.last_row.get('step', 0))
    self._history.add(row)
    return row

  def rearm(self) -> None:
    """Lets every rule raise an alarm again."""
    self._fired.clear()


def read_alarms(run: Path) -> list[Alarm]:
  """The alarms of a run, in order; BadInput if alarms.jsonl is damaged."""
  return files.parse_lines(run / 'alarms.jsonl', Alarm.from_json)
