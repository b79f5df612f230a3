"""Per-step logs: one file of all runs, or a folder with files of each; read as a curve per run."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stability.errors import BadInput
from stability.importing import columns as columns_lib
from stability.importing import events, log_files
from stability.importing.cleaning import SAID_NAN, Curve, alone, joined, tidy, without_filled
from stability.importing.options import Options
from stability.importing.tables import Table, UnusableFile, is_empty, read_chunks

# A column of W&B's chart exports: the run, the metric, and the range over a group of runs.
_WIDE = re.compile(r'(?P<run>.+) - (?P<metric>.+?)(?P<range>__MIN|__MAX)?')
_MAX_STEP = 2**53


@dataclasses.dataclass(frozen=True)
class Notes:
  """How the files were read, which the program tells the user."""

  names: dict[tuple[str, str], None]  # pairs of a column and the name under which it is stored
  second: dict[tuple[str, str, str], None]  # (name, its column, another that it could be)
  step_columns: dict[str, None]
  other_steps: dict[str, None]  # columns that could be the step and are not used
  without_step: Counter[str]  # step column -> rows that lack it, left out
  first_without_step: dict[str, str]  # step column -> file and line of the first such row
  damaged: list[str]  # lines, or ends of event files, that are left out, and why
  unusable: list[str]  # files that are left out, and why
  left_out: dict[str, None]  # columns
  ignored: list[Path]  # files in the folder


@dataclasses.dataclass(frozen=True)
class Curves:
  """The curves of several runs."""

  by_run: dict[tuple[str, ...], Curve]  # names that the run may have, the most likely first
  files: list[Path]
  seen: set[str]  # all columns of the files
  notes: Notes


class _NoStep(UnusableFile):
  """A file or a part of it without a column of steps."""


class _Reader:
  """Collects the rows of files; those of a file count once it is complete."""

  def __init__(self, options: Options, ignored: list[Path]):
    self._options = options
    self._mapping = options.mapping
    # Rows of a run with the same metrics go back in step only at a restart.
    self._codes: dict[tuple[tuple[str, ...], frozenset[str]], int] = {}
    self._parts: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
    # Of metrics that are logged one by one, for each run and metric: steps and values.
    self._scalars: dict[tuple[tuple[str, ...], str], list[tuple[np.ndarray, np.ndarray]]] = {}
    # The same of the file that is being read.
    self._new_parts: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
    self._new_scalars: list[tuple[tuple[str, ...], str, np.ndarray, np.ndarray]] = []
    self._step_column = ''
    self.notes = Notes({}, {}, {}, {}, Counter(), {}, [], [], {}, ignored)
    self.seen: set[str] = set()

  def commit(self) -> None:
    """Keeps the rows of a file."""
    self._parts += self._new_parts
    for run, tag, steps, values in self._new_scalars:
      self._scalars.setdefault((run, tag), []).append((steps, values))
    self.discard()

  def discard(self) -> None:
    """Leaves out the rows of a file that turned out to be unusable."""
    self._new_parts, self._new_scalars, self._step_column = [], [], ''

  def add(self, table: Table, run: tuple[str, ...], tag: str | None = None) -> None:
    """Adds rows.

    Args:
      table: some rows of a file.
      run: the names that the run of the file may have.
      tag: the metric in the column `Value` of the file; None: the file says it.
    """
    table, steps, step_column = self._with_steps(self._spelled(table))
    self.seen.update(table.columns)
    if not len(steps):
      return
    run_column = self._column(table, 'run')
    runs = [run] * len(steps)
    if run_column is not None:
      runs = [(name,) for name in table.texts(run_column)]
    free = [c for c in table.columns if c not in (step_column, run_column)]
    value = _first([c for c in free if c not in self._mapping.values()], columns_lib.LONG_VALUE)
    metric = _first([c for c in free if table.is_text(c)], columns_lib.LONG_METRIC)
    wide = {c: match for c in free if (match := _WIDE.fullmatch(c))}
    if value is not None and (metric is not None or tag is not None):
      tags = [tag] * len(steps) if metric is None else table.texts(metric)
      self._add_long(runs, tags, steps, _numbers(table, value))
      self._leave_out(c for c in free if c not in (value, metric))
    elif wide and run_column is None:
      for column, match in wide.items():
        metric = match['metric']
        self.seen.add(metric)
        is_metric = not match['range'] and columns_lib.key(metric) not in ('step', '')
        if is_metric and self._is_read(table, column, metric):
          self.add_scalars((match['run'],), metric, steps, _numbers(table, column))
    else:
      self._add_columns(table, free, runs, steps)

  def _add_columns(
      self, table: Table, columns: list[str], runs: list[tuple[str, ...]], steps: np.ndarray
  ) -> None:
    """Adds a table with a column per metric."""
    found: dict[str, np.ndarray] = {}
    for column in columns:
      name = self._name(column)
      if name == 'step':
        self.notes.other_steps[column] = None
      elif name == 'run':
        self._leave_out([column])
      elif not columns_lib.is_about(column) and self._is_read(table, column, column):
        found[column] = _numbers(table, column) * self._scale(column)
    if not found:
      raise UnusableFile(f'{table.source}: has no column of numbers beside the step')
    series = frozenset(found)
    codes = np.array([self._codes.setdefault((r, series), len(self._codes)) for r in runs], int)
    self._new_parts.append((codes, steps, found))

  def _add_long(
      self, runs: list[tuple[str, ...]], tags: list[str], steps: np.ndarray, values: np.ndarray
  ) -> None:
    """Adds a table with a row per metric and step."""
    rows: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for row, of_row in enumerate(zip(runs, tags, strict=True)):
      rows.setdefault(of_row, []).append(row)
    for (run, tag), of_tag in rows.items():
      self.seen.add(tag)
      self.add_scalars(run, tag, steps[of_tag], values[of_tag])

  def add_scalars(
      self, run: tuple[str, ...], tag: str, steps: np.ndarray, values: np.ndarray
  ) -> None:
    """Adds the values of one metric."""
    logged = ~np.isnan(values)
    if logged.any() and self._name(tag) not in ('run', 'step'):
      self._new_scalars.append((run, tag, steps[logged], values[logged] * self._scale(tag)))

  def _leave_out(self, columns: Iterable[str]) -> None:
    self.notes.left_out.update((c, None) for c in columns if not columns_lib.is_about(c))

  def _spelled(self, table: Table) -> Table:
    """The table with each column that the user names as the user spells it.

    Columns that differ in case alone and never have a value in the same row are one, as data frames
    of several trainers have them.
    """
    mapped = {*self._mapping.values()}
    by_key: dict[str, list[str]] = {}
    for column in table.columns:
      by_key.setdefault(column.lower(), []).append(column)
    given = {column.lower(): column for column in self._mapping.values() if column}
    columns: dict[str, list[Any]] = {}
    for key, names in by_key.items():
      cells = [table.columns[name] for name in names]
      if len(names) > 1 and all(sum(cell != '' for cell in row) < 2 for row in zip(*cells)):
        cells = [[next((cell for cell in row if cell != ''), '') for row in zip(*cells)]]
      if len(cells) == 1:
        name = next((name for name in names if name in mapped), None)
        columns[name or given.get(key, names[0])] = cells[0]
      else:
        columns.update(zip(names, cells))
    return table.with_columns(columns)

  def _name(self, column: str) -> str:
    """The name of a metric, if no likelier column has it."""
    for name, mapped in self._mapping.items():
      if mapped == column:
        return name
    for name, mapped in self._mapping.items():
      if mapped and mapped.lower() == column.lower():
        return name
    name = columns_lib.curve_name(column)
    return column if self._mapping.get(name) == '' else name

  def _scale(self, column: str) -> float:
    name = self._name(column)
    is_loss = name == 'loss' or columns_lib.key(name) in columns_lib.VALIDATION
    if is_loss and self._options.loss_unit is None and columns_lib.mentions_bits(column):
      raise BadInput(f'--loss_unit: missing; {column} may be in nats or in bits')
    return self._options.nats if is_loss else 1.0

  def _is_read(self, table: Table, column: str, metric: str) -> bool:
    """Whether a column is read: not if it has text, or if the user says that there is none."""
    name = self._name(metric)
    is_needed = name in columns_lib.CURVE_COLUMNS or column in self._mapping.values()
    is_left_out = column in self.notes.left_out or self._mapping.get(name) == ''
    if is_left_out or (not is_needed and table.is_text(column)):
      self._leave_out([column])
      return False
    return True

  def _with_steps(self, table: Table) -> tuple[Table, np.ndarray, str]:
    """The rows with a step, their steps, and the column of these.

    Rows without one are of what else was logged, such as a config or a summary.
    """
    column = self._mapping.get('step')
    if column not in table.columns:
      try:
        column = self._find_step(table)
      except _NoStep:
        if not self._step_column:
          raise
        column = self._step_column  # other rows of the file have it
    steps = np.full(len(table.lines), np.nan)
    if column in table.columns:
      steps = table.numbers(column)
    lacking = np.isnan(steps)
    if lacking.all() and not self._step_column:
      raise _NoStep(f'{table.source}: {column} is empty in every row')
    self.notes.step_columns[column] = None
    self._step_column = column
    if lacking.any():
      self.notes.without_step[column] += int(lacking.sum())
      first = table.where(int(np.flatnonzero(lacking)[0]))
      self.notes.first_without_step.setdefault(column, first)
      table, steps = table.selected(np.flatnonzero(~lacking)), steps[~lacking]
      only_there = [c for c, cells in table.columns.items() if all(cell == '' for cell in cells)]
      for name in only_there:
        del table.columns[name]
    with np.errstate(invalid='ignore'):
      wrong = np.flatnonzero(~((steps >= 0) & (steps < _MAX_STEP) & (steps % 1 == 0)))
    if len(wrong):
      raise table.error(wrong[0], column, 'a whole number from 0 to 2^53')
    return table, steps.astype(np.int64), column

  def _column(self, table: Table, name: str) -> str | None:
    """The column that the user names, else the likeliest."""
    mapped = self._mapping.get(name)
    if mapped == '' or mapped in table.columns:
      return mapped or None
    return _first(table.columns, columns_lib.CURVE_COLUMNS[name])

  def _find_step(self, table: Table) -> str:
    step, tokens = self._column(table, 'step'), self._column(table, 'tokens')
    unit = self._options.step_unit
    if unit == 'tokens':
      found = tokens or step
    elif unit is None and step is None and tokens is not None:
      raise BadInput(
          f'--step_unit: missing; {table.source} has no column of steps, but {tokens}: give'
          ' --step_unit=tokens if it counts tokens'
      )
    else:
      found = step
    if found is None:
      raise _NoStep(
          f'{table.source}: has no column step; {columns_lib.nearest("step", table.columns)}; name'
          ' it with --map=step=COLUMN'
      )
    return found

  def curves(self) -> dict[tuple[str, ...], Curve]:
    """The curve of each run."""
    found: dict[tuple[str, ...], list[Curve]] = {}
    for (run, tag), parts in self._scalars.items():
      steps, values = map(np.concatenate, zip(*parts))
      found.setdefault(run, []).append(alone(tidy(steps, {tag: values})))
    for run, curve in self._curves_of_columns():
      found.setdefault(run, []).append(curve)
    return {run: self._named(joined(parts)) for run, parts in found.items()}

  def _curves_of_columns(self) -> Iterator[tuple[tuple[str, ...], Curve]]:
    """The curves in tables with a column per metric; of a run, one for each set of columns."""
    if not self._parts:
      return
    codes = np.concatenate([part[0] for part in self._parts])
    steps = np.concatenate([part[1] for part in self._parts])
    values = {name: np.full(len(codes), np.nan) for part in self._parts for name in part[2]}
    start = 0
    for part_codes, _, found in self._parts:
      for name, column in found.items():
        values[name][start : start + len(part_codes)] = column
      start += len(part_codes)
    self._parts.clear()
    order = np.argsort(codes, kind='stable')
    bounds = np.searchsorted(codes[order], np.arange(len(self._codes) + 1))
    for (run, _), code in self._codes.items():
      rows = order[bounds[code] : bounds[code + 1]]
      yield run, tidy(steps[rows], {name: column[rows] for name, column in values.items()})

  def _named(self, curve: Curve) -> Curve:
    """The curve with our names of metrics; of several columns for one, the likeliest has it."""
    by_name: dict[str, list[str]] = {}
    curve = without_filled(curve, {column: self._name(column) for column in curve.values})
    for column in curve.values:
      by_name.setdefault(self._name(column), []).append(column)
    if self._options.step_unit == 'tokens':  # another column is the tokens
      self._leave_out(by_name.pop('tokens', []))
    values = {}
    for name, columns in by_name.items():
      aliases = columns_lib.CURVE_COLUMNS.get(name, ())
      keys = [columns_lib.key(column) for column in columns]
      ranks = [aliases.index(key) if key in aliases else len(aliases) for key in keys]
      given = self._mapping.get(name, '')
      ranks = [-1 if c.lower() == given.lower() else r for c, r in zip(columns, ranks)]
      ranks = [-2 if c == given else r for c, r in zip(columns, ranks)]
      first, *others = [columns[i] for i in np.argsort(ranks, kind='stable')]
      values[name] = curve.values[first]
      self.notes.names[first, name] = None
      for other in others:
        self.notes.second[name, first, other] = None
        if other in by_name:
          self._leave_out([other])
        else:
          values[other] = curve.values[other]
          self.notes.names[other, other] = None
    return dataclasses.replace(curve, values=values)


def read(path: Path, options: Options) -> Curves:
  """Reads a file of per-step logs, or all files in a folder.

  Files that cannot be used are left out, and so are damaged lines. Raises BadInput if no file can
  be used, or if each run has a single step.
  """
  files, ignored = log_files.find(path) if path.is_dir() else ([path], [])
  reader, used = _Reader(options, ignored), []
  damaged = reader.notes.damaged
  for file in files:
    before = len(damaged)
    try:
      _add_file(reader, path, file)
    except UnusableFile as error:
      reader.discard()
      del damaged[before:]
      reader.notes.unusable.append(str(error))
    else:
      reader.commit()
      used.append(file)
  if not used:
    first, *others = reader.notes.unusable
    raise BadInput(f'{first}; no other file in {path} can be used either' if others else first)
  return _checked(reader, str(path), used)


def _add_file(reader: _Reader, root: Path, file: Path) -> None:
  """Adds the rows of a file; UnusableFile if it has none."""
  names = log_files.names(root, file)
  if events.is_event_file(file):
    for tag, steps, values in events.read(file, reader.notes.damaged):
      reader.seen.add(tag)
      reader.add_scalars(names, tag, steps, _marked(values, np.isnan(values)))
  else:
    for chunk in read_chunks(file, reader.notes.damaged):
      reader.add(chunk, names, log_files.tag(file))


def of_table(table: Table, options: Options) -> Curves:
  """The curves in a table, such as a data frame."""
  reader = _Reader(options, [])
  reader.add(table, (table.source,))
  reader.commit()
  return _checked(reader, table.source, [])


def _checked(reader: _Reader, source: str, files: list[Path]) -> Curves:
  by_run = reader.curves()
  if not by_run:
    raise BadInput(f'{source}: has no logged values')
  if all(len(curve.steps) < 2 for curve in by_run.values()):
    raise BadInput(
        f'{source}: has a single step of each run, which is no curve; give final losses in --runs'
    )
  return Curves(by_run, files, reader.seen, reader.notes)


def _numbers(table: Table, column: str) -> np.ndarray:
  """The cells of a column as floats; NaN for an empty one, SAID_NAN for one that says NaN."""
  values, cells = table.numbers(column), table.columns[column]
  said = [row for row in np.flatnonzero(np.isnan(values)) if not is_empty(cells[row])]
  return _marked(values, np.isin(np.arange(len(values)), said))


def _marked(values: np.ndarray, says_nan: np.ndarray) -> np.ndarray:
  """The values with SAID_NAN where a cell says NaN; what is infinite is positive."""
  return np.where(says_nan, SAID_NAN, np.where(np.isinf(values), np.inf, values))


def _first(columns: Iterable[str], aliases: Iterable[str]) -> str | None:
  """The first column that could be what has these names."""
  by_key: dict[str, str] = {}
  for column in columns:
    by_key.setdefault(columns_lib.key(column), column)
  return next((by_key[alias] for alias in aliases if alias in by_key), None)
