"""Limits of the alarm rules for one's own regime: a JSON file that launch.alarms writes.

  {"limits": {RULE: {"limit": 12.5, "odds": 8.0}, ...}, "made_from": {"workdir": ..., "runs": ...}}

A run with config.control.limits has a copy of the file from its start, DIR/runs/NAME/limits.json.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from stability.config import paths
from stability.control.rules import AFTER_RESCUE, RULES, Rule
from stability.errors import BadInput
from stability.storage import files, run_files
from stability.storage.files import Json


@dataclasses.dataclass(frozen=True)
class Limits:
  """The content of such a file."""

  limits: Mapping[str, Mapping[str, float]]  # name of a rule -> its limit and odds
  made_from: Json  # the runs, and how the rules did on them; see analysis/alarm_calibration.py

  def apply(self, rules: Iterable[Rule] = RULES) -> tuple[Rule, ...]:
    """The rules with these limits; a rule that has none here stays as it is."""
    return tuple(dataclasses.replace(rule, **self.limits.get(rule.name, {})) for rule in rules)


def of_run(run: Path, rules: Iterable[Rule], rescued: bool) -> tuple[Rule, ...]:
  """The rules with the limits of a run with config.control.limits.

  After the policy has rescued it, the lower limit counts where there is one for that
  (rules.AFTER_RESCUE).
  """
  rules = tuple(rules)
  changed = read(run / run_files.LIMITS).apply(rules)
  return tuple(
      old if rescued and old.name in AFTER_RESCUE and old.limit < new.limit else new
      for old, new in zip(rules, changed, strict=True)
  )


def write(path: Path, limits: Limits) -> None:
  """Writes the file."""
  files.write_json(path, {'limits': limits.limits, 'made_from': limits.made_from})


def read(path: str | Path) -> Limits:
  """Reads the file; BadInput, which names it, if it cannot be read or is damaged."""
  try:
    local = Path(paths.local(str(path)))
  except BadInput as error:
    raise BadInput(f'{path}: {error}') from None
  found = files.read_json(local)
  try:
    files.check_types(found, {'limits': dict, 'made_from': dict})
    for name, entry in found['limits'].items():
      _check(name, entry)
    digests = found['made_from'].get('digests')
    if not isinstance(digests, list) or not all(isinstance(d, str) for d in digests):
      raise BadInput('made_from.digests must be a list of strings')
  except BadInput as error:
    raise BadInput(f'{path}: {error}') from None
  return Limits(found['limits'], found['made_from'])


def _check(name: str, entry: object) -> None:
  known = [rule.name for rule in RULES]
  if name not in known:
    raise BadInput(f'limits: {name}: is no rule; rules are {", ".join(known)}')
  if not isinstance(entry, dict) or set(entry) != {'limit', 'odds'}:
    raise BadInput(f'limits: {name}: must have limit and odds, and nothing else')
  for key, value in entry.items():
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
      raise BadInput(f'limits: {name}: {key} must be a number, 0 or more')
