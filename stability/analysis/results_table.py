"""Loads results from a CSV file with a row per run, such as those of another trainer."""

import csv
import difflib
import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stability import same_number
from stability.analysis import reserved
from stability.analysis import windows as windows_lib
from stability.analysis.results import Results, groups_and_sizes, split
from stability.config import fields as fields_lib
from stability.errors import BadInput
from stability.storage import run_files

_COLUMNS = ('run', 'status', 'parameters', 'learning_rate', 'seed', 'initial_loss', 'final_loss')
_STATUSES = (*run_files.STATUSES, 'missing')

_MAX_LOSS = 1e30  # sums and plot axes overflow near the largest float
_LOSS = f'a number from -{_MAX_LOSS:g} to {_MAX_LOSS:g}'
_WHOLE_NUMBER = 'a whole number from 0 to 2^53 - 1'
_EXAMPLES = 3  # of merged values in a note
# The end of the errors for tables that launch.import_runs reads.
_OTHERS = '; python -m launch.import_runs --runs={} reads tables of other trainers'


def load_csv(
    path: Path,
    *,
    group_by: list[str] | None = None,
    initial_loss: float | None = None,
    windows: Sequence[windows_lib.Window] = (),
    window_where: Mapping[str, str] | None = None,
    not_comparable: str | None = None,
) -> Results:
  """Loads the runs of any trainer from a CSV file with a row per run.

  Args:
    path: a CSV file with a header. Required columns: learning_rate, final_loss. Optional columns:
      parameters, seed, run, initial_loss, status (done, diverged, failed, stopped or missing; if
      empty, it is derived from the losses; of a diverged run, a final_loss below the initial one is
      left out), forked_from (a row that has it is left out: a fork is in no comparison).
    group_by: the columns that define the intervention; None: arm and those with a dot in their
      name. One with a reserved name, such as window, becomes config.window.
    initial_loss: the initial loss of all runs (nats), instead of the column.
    windows: windows of learning rates, see windows.py.
    window_where: column -> value, of size or intervention: the rows that the windows apply to; None
      or empty: all.
    not_comparable: a column of size or intervention that makes LR sensitivities incomparable.

  Raises:
    BadInput: the file cannot be read, or a cell or an argument is invalid.
  """
  cells = _read_csv(path)
  is_fork = cells['forked_from'] != '' if 'forked_from' in cells else pd.Series(False, cells.index)
  if is_fork.all():
    raise BadInput(f'{path}: contains no runs but forks, which are in no comparison')
  cells = cells[~is_fork]
  missing = [name for name in ('learning_rate', 'final_loss') if name not in cells]
  if missing:
    raise BadInput(
        f'{path}: has no column {" and ".join(missing)}; its columns are {", ".join(cells)}'
        + _OTHERS.format(path)
    )
  if initial_loss is not None and not abs(initial_loss) <= _MAX_LOSS:
    raise BadInput(f'--initial_loss={initial_loss}: must be {_LOSS}')
  if initial_loss is None and 'initial_loss' not in cells:
    raise BadInput(f'{path}: has no column initial_loss; add it or give --initial_loss')
  groups, sizes = groups_and_sizes([name for name in cells if '.' in name or name == 'arm'])
  if group_by is not None:
    groups = _checked_groups(path, cells, group_by)
    names = reserved.free_names(groups, cells.columns)
    cells = cells.rename(columns=names)
    groups = [names.get(name, name) for name in groups]
    window_where = {names.get(name, name): value for name, value in (window_where or {}).items()}
    not_comparable = names.get(not_comparable, not_comparable)
    sizes = [name for name in sizes if name not in groups]

  numbers = functools.partial(_numbers, path, cells)
  runs = pd.DataFrame(index=cells.index)
  runs['run'] = cells['run'] if 'run' in cells else [f'line {line}' for line in cells.index]
  runs['parameters'] = pd.NA
  if 'parameters' in cells:
    runs['parameters'] = numbers('parameters', _WHOLE_NUMBER, _is_whole)
  numbers('learning_rate', 'a number above 0', lambda rate: np.isfinite(rate) & (rate > 0))
  runs['learning_rate'] = _values(cells['learning_rate']).astype(float)
  runs['seed'] = 0
  if 'seed' in cells:
    runs['seed'] = numbers('seed', _WHOLE_NUMBER, _is_whole).astype(int)
  runs['initial_loss'] = initial_loss
  if initial_loss is None:
    runs['initial_loss'] = numbers('initial_loss', _LOSS, lambda loss: ~(loss.abs() > _MAX_LOSS))
  runs['final_loss'] = numbers(
      'final_loss',
      f'a number, -{_MAX_LOSS:g} or more, or empty',
      lambda loss: ~(loss < -_MAX_LOSS),
  )
  runs['status'] = _statuses(path, cells, runs)
  is_earlier = (runs['status'] == 'diverged') & (runs['final_loss'] <= runs['initial_loss'])
  runs.loc[is_earlier, 'final_loss'] = np.nan
  for name in (*sizes, *groups):
    runs[name] = _values(cells[name])
  fields = [*sizes, *groups]
  notes = [_note(cells[name], runs[name]) for name in ('learning_rate', *fields)]
  if is_earlier.any():
    notes.append(
        f'{is_earlier.sum()} of its rows are diverged, with a final_loss below the initial one,'
        ' which is left out'
    )
  if is_fork.any():
    notes.append(f'{is_fork.sum()} of its rows are forks, which are in no comparison, and left out')
  notes = tuple(filter(None, notes))
  _refuse_duplicates(path, cells, runs, ['parameters', *fields, 'learning_rate', 'seed'], notes)
  where = {
      column: _window_value(path, cells, runs, fields, column, value)
      for column, value in (window_where or {}).items()
  }
  if not_comparable is not None and not_comparable not in fields:
    raise BadInput(f'--not_comparable={not_comparable}: must be one of {_names(fields)}')
  return Results(
      runs.astype({'parameters': 'Int64'}).reset_index(drop=True),
      groups,
      sizes,
      [{'where': where, 'windows': windows}] if windows else (),
      not_comparable,
      notes,
  )


def _window_value(
    path: Path,
    cells: pd.DataFrame,
    runs: pd.DataFrame,
    columns: list[str],
    column: str,
    text: str,
) -> object:
  """The value in `runs` of the rows that have the value given in --window_where."""
  name = f'--window_where={column}={text}'
  if column not in columns:
    raise BadInput(f'{name}: the column must be one of {_names(columns)}')
  values = _values(pd.concat([cells[column], pd.Series([text], name=column)]))
  matching = runs[column][(values.iloc[:-1] == values.iloc[-1]).to_numpy()]
  if matching.empty:
    raise BadInput(f'{name}: no row of {path} has this value')
  return matching.iloc[0]


def _names(columns: list[str]) -> str:
  return ', '.join(columns) or 'the columns of --group_by, but there are none'


def _read_csv(path: Path) -> pd.DataFrame:
  """The cells as text; the index is the line number, starting at 1."""
  try:
    with path.open(newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file, strict=True)
      # Spreadsheets write rows of empty cells.
      rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
  except OSError as error:
    raise BadInput(f'{path}: cannot be read: {error.strerror}') from error
  except (csv.Error, UnicodeDecodeError) as error:
    raise BadInput(f'{path}: is not a CSV file: {error}{_OTHERS.format(path)}') from error
  if len(rows) < 2:
    raise BadInput(f'{path}: contains no runs; it needs a header and a row per run')
  (_, header), *body = rows
  names = [name.strip() for name in header]
  for name in names:
    if names.count(name) > 1:
      raise BadInput(f'{path}: has more than one column {name!r}')
  for line, row in body:
    if len(row) != len(names):
      raise BadInput(f'{path}, line {line}: has {len(row)} cells, the header {len(names)}')
  index, lines = zip(*body, strict=True)
  return pd.DataFrame(lines, index, names, dtype=str).apply(lambda column: column.str.strip())


def _checked_groups(path: Path, cells: pd.DataFrame, group_by: list[str]) -> list[str]:
  for name in group_by:
    if name in _COLUMNS:
      raise BadInput(f'--group_by={name}: cannot be an intervention')
    if name not in cells:
      nearest = difflib.get_close_matches(name, cells, n=1, cutoff=0.0)[0]
      raise BadInput(f'--group_by={name}: {path} has no such column; the nearest is {nearest}')
  return list(dict.fromkeys(group_by))


def _is_whole(values: pd.Series) -> pd.Series:
  return (values >= 0) & (values % 1 == 0) & (values < 2**53)


def _numbers(
    path: Path,
    cells: pd.DataFrame,
    column: str,
    allowed: str,
    is_allowed: Callable[[pd.Series], pd.Series],
) -> pd.Series:
  """A column as floats; empty cells and `nan` become NaN.

  Raises:
    BadInput: a cell is not a number, or `is_allowed` is false for it.
  """
  text = cells[column]
  values = pd.to_numeric(text, errors='coerce').astype(float)
  not_a_number = values.isna() & ~text.str.lower().isin(['', 'nan'])
  wrong = text[not_a_number | ~is_allowed(values)]
  if len(wrong):
    raise BadInput(
        f'{path}, line {wrong.index[0]}: {column}={wrong.iloc[0]!r}: must be {allowed}'
        + (_OTHERS.format(path) if column == 'parameters' else '')
    )
  return values


def _values(cells: pd.Series) -> pd.Series:
  """The cells as numbers if all of them are numbers, otherwise as text.

  Cells with the same number (stability/same_number.py) have the same value, as text too. A number
  that a claim compares with has exactly that value.
  """
  floats = pd.to_numeric(cells, errors='coerce').astype(float)
  numbers = {
      text: int(text) if re.fullmatch('[+-]?[0-9]+', text) else float(number)
      for text, number in zip(cells, floats, strict=True)
      if not np.isnan(number)
  }
  paper = fields_lib.paper_values().get(cells.name)
  known = [paper] if isinstance(paper, int | float) else []
  values, texts = same_number.merged(numbers, known)
  if len(values) == cells.nunique() and _fit_in_a_column(values.values()):
    return cells.map(values)
  return cells.map(lambda text: texts.get(text, text))


def _fit_in_a_column(values: Collection[float]) -> bool:
  """Whether a column of these numbers, which pandas stores as one type, keeps them apart."""
  is_integers = all(isinstance(value, int) for value in values)
  limit = 2**63 if is_integers else 2**53
  return all(abs(value) < limit for value in values if isinstance(value, int))


def _note(cells: pd.Series, values: pd.Series) -> str | None:
  """A sentence on the numbers of a column that are written in several ways; None if none is."""
  numbers = pd.to_numeric(cells, errors='coerce')
  table = pd.DataFrame({'text': cells, 'number': numbers, 'value': values}).dropna()
  table = table.drop_duplicates('number')
  merged = [of_value['text'] for _, of_value in table.groupby('value') if len(of_value) > 1]
  if not merged:
    return None
  examples = [' = '.join(texts) for texts in merged[:_EXAMPLES]]
  if len(merged) > _EXAMPLES:
    examples.append(f'and {len(merged) - _EXAMPLES} more')
  name = cells.name if cells.name.isprintable() else repr(cells.name)
  return (
      f'{name}: numbers that differ in the last digits only are taken as one:'
      f' {", ".join(examples)}'
  )


def _statuses(path: Path, cells: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
  """The status of each run, derived from the losses if the file gives none.

  Raises:
    BadInput: a status is unknown, or a run that counts has no initial loss.
  """
  given = cells['status'] if 'status' in cells else pd.Series('', cells.index)
  wrong = given[~given.isin(['', *_STATUSES])]
  if len(wrong):
    raise BadInput(
        f'{path}, line {wrong.index[0]}: status={wrong.iloc[0]!r}: must be one of'
        f' {", ".join(_STATUSES)}, or empty{_OTHERS.format(path)}'
    )
  incomplete = runs.index[runs['initial_loss'].isna() & given.isin(['', 'done', 'diverged'])]
  if len(incomplete):
    raise BadInput(f'{path}, line {incomplete[0]}: initial_loss is empty: must be {_LOSS}')
  derived = [
      run_files.final_status(*losses)
      for losses in zip(runs['initial_loss'], runs['final_loss'], strict=True)
  ]
  return given.where(given != '', derived)


def _refuse_duplicates(
    path: Path,
    cells: pd.DataFrame,
    runs: pd.DataFrame,
    columns: list[str],
    notes: Sequence[str],
) -> None:
  """Raises BadInput if rows agree in all columns: they would be averaged as one intervention."""
  for _, equal in split(runs[runs.duplicated(columns, keep=False)], columns):
    first, second = equal.index[:2]
    if cells.loc[first].equals(cells.loc[second]):
      raise BadInput(f'{path}, lines {first} and {second}: are equal; remove one of them')
    raise BadInput(
        f'{path}, lines {first} and {second}: have the same'
        f' {", ".join(columns)}; add a column seed, or name the column that differs in --group_by'
        + ''.join(f'; {note}' for note in notes)
    )
