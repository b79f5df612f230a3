"""Chooses the columns of a table of runs that define interventions."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from stability import same_number
from stability.config import SIZE_FIELDS
from stability.config import fields as fields_lib
from stability.errors import BadInput
from stability.importing import columns as columns_lib
from stability.importing.options import Options
from stability.importing.runs import Run
from stability.importing.tables import Table, is_nan, parse_number

SCHEDULE_FIELDS = ('schedule.steps', 'schedule.warmup_steps')  # which may be arms as well
UNSET = 'unset'  # the value of a run that lacks the setting
# Columns of results.csv, whose names an arm cannot have.
_TAKEN = {
    *('run', 'status', 'parameters', 'learning_rate', 'seed', 'initial_loss', 'final_loss'),
    *('steps', 'tokens', 'seconds', 'error', 'actions', 'optimizer.learning_rate'),
    *SIZE_FIELDS,
}


@dataclasses.dataclass(frozen=True)
class Arms:
  """The columns that define interventions."""

  values: dict[str, list[Any]]  # name -> value of each run
  columns: dict[str, str]  # name -> column
  rejected: dict[str, str]  # other columns that vary -> why they do not count


def choose(
    table: Table, runs: Sequence[Run], found: Mapping[str, str], options: Options
) -> Arms:
  """Chooses the columns of --group_by or, without it, every setting that varies on its own.

  Args:
    table: a row per run.
    runs: the runs of some of its rows.
    found: see runs.recognise.
    options: the user's.
  """
  candidates = _candidates(table, found)
  if options.group_by is not None:
    chosen = {}
    for asked in options.group_by:
      column = candidates.get(asked, asked)
      names = [name for name, c in candidates.items() if c == column]
      if not names:
        _refuse(table, asked, found, candidates)
      chosen[names[0]] = column
    values = {name: _values(table, runs, name, column) for name, column in chosen.items()}
    return Arms(values, chosen, {})
  arms = Arms({}, {}, {})
  keys = _keys(runs)
  for name, column in candidates.items():
    if columns_lib.is_about(column):
      continue
    values = _values(table, runs, name, column)
    if len(set(values)) == 1:
      continue
    reason = _reason(column, values, keys, arms.values)
    if reason is None:
      arms.values[name], arms.columns[name] = values, column
    else:
      arms.rejected[column] = reason
  return arms


def _candidates(table: Table, found: Mapping[str, str]) -> dict[str, str]:
  """The columns that may be arms, by the name that the arm would have."""
  names = {column: name for name, column in found.items()}
  candidates = {}
  for column in table.columns:
    name = names.get(column)
    if columns_lib.is_measured(column):
      continue
    if name is None:
      name = column
      for prefix in columns_lib.SETTINGS:
        name = name.removeprefix(prefix)
    elif _is_no_arm(name):
      continue
    if name in _TAKEN or name in candidates or not all(name.split('.')):
      name = f'column.{len(candidates)}' if column in candidates else column
    if name in _TAKEN:
      name = f'config.{name}'
    candidates[name] = column
  return candidates


def _is_no_arm(name: str) -> bool:
  """Whether a recognised column cannot be an arm."""
  is_known = name in columns_lib.RUN_COLUMNS and name not in SCHEDULE_FIELDS
  return is_known or name in columns_lib.CURVE_COLUMNS or name.startswith('block_')


def _refuse(
    table: Table, asked: str, found: Mapping[str, str], candidates: Mapping[str, str]
) -> None:
  if asked in found or asked in table.columns:
    raise BadInput(f'--group_by={asked}: cannot be an intervention')
  raise BadInput(
      f'--group_by={asked}: {table.source} has no such column;'
      f' {columns_lib.nearest(asked, list(candidates))}'
  )


def _values(table: Table, runs: Sequence[Run], name: str, column: str) -> list[Any]:
  """The values of a column: numbers if all are that are there, otherwise text.

  Equal numbers are one value, and so are empty cells and NaN.
  """
  texts = [table.text(column, run.row) for run in runs]
  texts = ['' if is_nan(text) else text for text in texts]
  found = {text: parse_number(text) for text in {*texts} - {''}}
  numbers = {
      text: _exact(text, number)
      for text, number in found.items()
      if number is not None and number == number
  }
  paper = fields_lib.paper_values().get(name)
  known = [paper] if isinstance(paper, int | float) and not isinstance(paper, bool) else []
  values, first = same_number.merged(numbers, known)
  if len(values) < len(found):
    values = {text: first.get(text, text) for text in found}
  return [values[text] if text else UNSET for text in texts]


def _exact(text: str, number: float) -> float:
  """The number as an integer if it is written as one, so that large ones stay apart."""
  try:
    return int(text)
  except ValueError:
    return number


@dataclasses.dataclass(frozen=True)
class _Keys:
  """The values of each run that distinguish runs of the same arm."""

  sizes: list[Hashable]
  rates: list[float]
  seeds: list[int]


def _keys(runs: Sequence[Run]) -> _Keys:
  sizes = [(run.parameters, *(run.fields.get(name) for name in SIZE_FIELDS)) for run in runs]
  return _Keys(sizes, [run.learning_rate for run in runs], [run.seed for run in runs])


def _reason(
    column: str, values: list[Any], keys: _Keys, chosen: Mapping[str, list[Any]]
) -> str | None:
  """Why a column that varies does not define interventions; None if it does."""
  given = [value for value in values if value != UNSET]
  if len(set(given)) == len(given) > 1:
    return 'has a different value in each run'
  both = list(zip(keys.sizes, keys.rates, strict=True))
  for known, name in (
      (keys.rates, 'the learning rate'),
      (keys.sizes, 'the size'),
      (keys.seeds, 'the seed'),
      (both, 'size and learning rate'),
  ):
    if len(set(known)) < len(values) and _follows(values, known):
      return f'determined by {name}'
  for name, other in chosen.items():
    if _follows(values, other) and _follows(other, values):
      return f'determined by {name}'
  is_setting = column.startswith(columns_lib.SETTINGS) or '.' in column
  if not is_setting and all(isinstance(value, int | float) for value in given):
    rates: dict[Any, set[float]] = {}
    for value, rate in zip(values, keys.rates, strict=True):
      rates.setdefault(value, set()).add(rate)
    if any(len(rates[value]) == 1 for value in given):
      return 'has values that occur at one learning rate only'
  return None


def _follows(values: list[Any], known: Sequence[Hashable]) -> bool:
  """Whether a value is a function of what is known."""
  of_known: dict[Hashable, Any] = {}
  return all(of_known.setdefault(k, v) == v for k, v in zip(known, values, strict=True))
