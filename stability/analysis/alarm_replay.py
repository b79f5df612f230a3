"""The alarm rules applied again to the rows of a run, in the same way as in the trainer."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from stability.control.alarms import Alarm, Monitor
from stability.control.rules import RULES, Rule
from stability.errors import BadInput
from stability.storage import run_files


@dataclasses.dataclass(frozen=True)
class Replay:
  """What the rules find in the rows of a run."""

  alarms: list[Alarm]  # the first of each rule, in order
  lacking: dict[str, str]  # the rules that could not be applied -> what each needs


def replay(run: Path, rules: Sequence[Rule] = RULES) -> Replay:
  """Applies the rules to metrics.jsonl; BadInput that names the file if a row is damaged."""
  monitor = Monitor(rules)
  alarms = []
  for number, row in enumerate(run_files.read_metrics(run), 1):
    try:
      alarms += monitor.observe(row)
    except BadInput as error:
      raise BadInput(f'{run / "metrics.jsonl"}, line {number}: damaged: {error}') from None
  return Replay(alarms, monitor.lacking)


def by_rule(replays: Mapping[str, Replay], rules: Sequence[Rule] = RULES) -> pd.DataFrame:
  """A table with a row per rule.

  Args:
    replays: run -> its replay.
    rules: the rules that were replayed.

  Columns:
    rule, needs
    runs: in how many runs the rule could be applied
    fired: in how many of them it fired
    first_step, median_step: of its alarms; NaN if it did not fire
    lacking: in how many runs it could not be applied for lack of what it needs
  """
  return pd.DataFrame([_row(rule, replays) for rule in rules])


def _row(rule: Rule, replays: Mapping[str, Replay]) -> dict[str, object]:
  found = replays.values()
  steps = pd.Series([a.step for r in found for a in r.alarms if a.rule == rule.name], dtype=float)
  lacking = sum(rule.name in r.lacking for r in found)
  return {
      'rule': rule.name,
      'needs': rule.needs,
      'runs': len(replays) - lacking,
      'fired': len(steps),
      'first_step': steps.min(),
      'median_step': steps.median(),
      'lacking': lacking,
  }
