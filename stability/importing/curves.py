"""Per-step logs: one file of all runs, or a folder with files of each; cleaned, a curve per run."""

import dataclasses
import itertools
import re
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pandas as pd

from stability.errors import BadInput
from stability.importing import columns as columns_lib
from stability.importing import events
from stability.importing.options import Options
from stability.importing.tables import Table, read_chunks

ENDINGS = ('.csv', '.tsv', '.jsonl', '.ndjson')
# A column of W&B's chart exports: the run, the metric, and the range over a group of runs.
_WIDE = re.compile(r'(?P<run>.+) - (?P<metric>.+?)(?P<range>__MIN|__MAX)?')
_MAX_STEP = 2**53
MAX_RESTARTS = 0.1  # of a curve's rows: more of them go back because the rows are not in order


@dataclasses.dataclass(frozen=True)
class Curve:
  """What a run logged, by ascending step."""

  steps: np.ndarray  # whole numbers
  values: dict[str, np.ndarray]  # metric -> value of each step; NaN: not logged or not a number
  repeated: int  # rows that a restart logged again


@dataclasses.dataclass(frozen=True)
class Curves:
  """The curves of several runs."""

  by_run: dict[tuple[str, ...], Curve]  # names that the run may have, the most likely first
  columns: dict[str, str]  # the columns of the files -> the names under which they are stored
  files: list[Path]
  seen: set[str]  # all columns of the files
  left_out: list[str]  # columns of text


class _Reader:
  """Collects the rows of files."""

  def __init__(self, options: Options):
    self._options = options
    # Rows of a run with the same metrics go back in step only at a restart.
    self._codes: dict[tuple[tuple[str, ...], Hashable], int] = {}
    self._parts: list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
    self.columns: dict[str, str] = {}
    self.left_out: dict[str, None] = {}
    self.seen: set[str] = set()

  def add(self, table: Table, run: tuple[str, ...]) -> None:
    """Adds rows; `run` are the names that the run of the file may have."""
    columns = {name: c for name, c in self._options.mapping.items() if c in table.columns}
    step_column = columns.get('step') or self._find_step(table)
    steps = self._steps(table, step_column)
    self.seen.update(table.columns)
    run_column = columns.get('run') or _first(table, 'run')
    wide = {c: match for c in table.columns if (match := _WIDE.fullmatch(c))}
    used = {step_column, run_column}
    if wide and run_column is None:
      for column, match in wide.items():
        metric = match['metric']
        self.seen.add(metric)
        if not match['range'] and columns_lib.key(metric) not in ('step', ''):
          values = self._values(table, column, metric)
          if values is not None:
            logged = ~np.isnan(values[1])
            code = np.full(logged.sum(), self._code((match['run'],), values[0]))
            self._parts.append((code, steps[logged], {values[0]: values[1][logged]}))
      return
    found: dict[str, np.ndarray] = {}
    for column in table.columns:
      if column not in used and not columns_lib.is_about(column):
        named = self._values(table, column, column)
        # Of two columns for the same name, the first is taken.
        if named is not None and named[0] not in ('run', 'step', *found):
          found[named[0]] = named[1]
    if not found:
      raise BadInput(f'{table.source}: has no column of numbers beside {step_column}')
    series = frozenset(found)
    if run_column is None:
      codes = np.full(len(steps), self._code(run, series))
    else:
      codes = np.array([self._code((name,), series) for name in table.texts(run_column)])
    self._parts.append((codes, steps, found))

  def add_scalars(self, run: tuple[str, ...], tag: str, steps: np.ndarray, values: np.ndarray):
    """Adds what an event file has under a tag."""
    if (name := self._name(tag)) not in ('run', 'step'):
      self.columns.setdefault(tag, name)
      code = np.full(len(steps), self._code(run, name))
      self._parts.append((code, steps, {name: values * self._scale(name, tag)}))

  def _code(self, run: tuple[str, ...], series: Hashable) -> int:
    return self._codes.setdefault((run, series), len(self._codes))

  def _name(self, column: str) -> str:
    inverse = {c: name for name, c in self._options.mapping.items()}
    return inverse.get(column) or columns_lib.curve_name(column)

  def _scale(self, name: str, column: str) -> float:
    is_loss = name == 'loss' or columns_lib.key(column) in columns_lib.VALIDATION
    if is_loss and self._options.loss_unit is None and columns_lib.mentions_bits(column):
      raise BadInput(f'--loss_unit: missing; {column} may be in nats or in bits')
    return self._options.nats if is_loss else 1.0

  def _values(self, table: Table, column: str, metric: str) -> tuple[str, np.ndarray] | None:
    """The name of a metric and its values; None for a column of text."""
    name = self._name(metric)
    is_needed = name in columns_lib.CURVE_COLUMNS or column in self._options.mapping.values()
    if column in self.left_out or (not is_needed and table.is_text(column)):
      self.left_out[column] = None
      return None
    self.columns.setdefault(metric, name)
    return name, table.numbers(column) * self._scale(name, metric)

  def _find_step(self, table: Table) -> str:
    step, tokens = _first(table, 'step'), _first(table, 'tokens')
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
      raise BadInput(
          f'{table.source}: has no column step; {columns_lib.nearest("step", table.columns)}; name'
          ' it with --map=step=COLUMN'
      )
    return found

  def _steps(self, table: Table, column: str) -> np.ndarray:
    steps = table.numbers(column)
    with np.errstate(invalid='ignore'):
      wrong = np.flatnonzero(~((steps >= 0) & (steps < _MAX_STEP) & (steps % 1 == 0)))
    if len(wrong):
      raise table.error(wrong[0], column, 'a whole number from 0 to 2^53')
    return steps.astype(np.int64)

  def curves(self) -> dict[tuple[str, ...], Curve]:
    """The curve of each run."""
    if not self._parts:
      return {}
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
    found: dict[tuple[str, ...], list[Curve]] = {}
    for (run, _), code in self._codes.items():
      rows = order[bounds[code] : bounds[code + 1]]
      if len(rows):
        curve = tidy(steps[rows], {name: column[rows] for name, column in values.items()})
        found.setdefault(run, []).append(curve)
    return {run: joined(parts) for run, parts in found.items()}


def read(path: Path, options: Options) -> Curves:
  """Reads a file of per-step logs, or all files in a folder.

  Raises BadInput if one cannot be read, or if each run has a single step.
  """
  reader = _Reader(options)
  files = _files(path) if path.is_dir() else [path]
  for file in files:
    names = _names(path, file)
    if events.is_event_file(file):
      for tag, steps, values in events.read(file):
        reader.add_scalars(names, tag, steps, values)
    else:
      for chunk in read_chunks(file):
        reader.add(chunk, names)
  return _checked(reader, str(path), files)


def of_table(table: Table, options: Options) -> Curves:
  """The curves in a table, such as a data frame."""
  reader = _Reader(options)
  reader.add(table, (table.source,))
  return _checked(reader, table.source, [])


def _checked(reader: _Reader, source: str, files: list[Path]) -> Curves:
  by_run = reader.curves()
  if not by_run:
    raise BadInput(f'{source}: has no logged values')
  if all(len(curve.steps) < 2 for curve in by_run.values()):
    raise BadInput(
        f'{source}: has a single step of each run, which is no curve; give final losses in --runs'
    )
  seen = reader.seen | {*reader.columns}
  return Curves(by_run, reader.columns, files, seen, list(reader.left_out))


def tidy(steps: np.ndarray, values: dict[str, np.ndarray]) -> Curve:
  """The rows of a run by ascending step, each step once; of equal steps, the later row counts.

  A restart from an earlier step replaces all rows from that step on. Rows that are merely not in
  order are sorted.
  """
  values = {name: column for name, column in values.items() if not np.isnan(column).all()}
  back = np.flatnonzero(np.diff(steps) < 0) + 1
  keep = np.ones(len(steps), bool)
  if len(back) <= max(1, MAX_RESTARTS * len(steps)):
    for start, end in itertools.pairwise([*back, len(steps)]):
      earlier = np.flatnonzero(keep[:start])
      seen, segment = steps[earlier], steps[start:end]
      if ((seen >= segment[0]) & (seen <= segment.max())).any():
        keep[earlier[seen >= segment[0]]] = False
  rows = np.flatnonzero(keep)
  rows = rows[np.argsort(steps[rows], kind='stable')]
  steps, values = steps[rows], {name: column[rows] for name, column in values.items()}
  return _merged(steps, values, int((~keep).sum()))


def _merged(steps: np.ndarray, values: dict[str, np.ndarray], repeated: int) -> Curve:
  """The curve with one row per step; `steps` ascend."""
  if (np.diff(steps) == 0).any():
    # W&B logs the metrics of a step in several rows. `last` skips NaN.
    merged = pd.DataFrame(values).groupby(steps).last()
    steps = merged.index.to_numpy()
    values = {name: merged[name].to_numpy() for name in merged}
  return Curve(steps, values, repeated)


def joined(parts: list[Curve]) -> Curve:
  """The curve of a run whose metrics were logged separately."""
  if len(parts) == 1:
    return parts[0]
  tables = [pd.DataFrame(part.values, part.steps) for part in parts]
  table = pd.concat(tables).sort_index(kind='stable')
  values = {name: table[name].to_numpy() for name in table}
  return _merged(table.index.to_numpy(), values, max(part.repeated for part in parts))


def _first(table: Table, name: str) -> str | None:
  """The first column that could have `name`."""
  for alias in columns_lib.CURVE_COLUMNS[name]:
    for column in table.columns:
      if columns_lib.key(column) == alias:
        return column
  return None


def _files(folder: Path) -> list[Path]:
  found = sorted(
      path
      for path in folder.rglob('*')
      if path.is_file() and (path.suffix.lower() in ENDINGS or events.is_event_file(path))
  )
  if not found:
    raise BadInput(f'{folder}: has no {", ".join(ENDINGS)} or TensorBoard event files')
  return found


def _names(root: Path, file: Path) -> tuple[str, ...]:
  """The names that the run of a file may have: the file's, those of its folders, its path."""
  if root == file:
    return (file.stem, file.parent.name)
  relative = file.relative_to(root)
  stem = () if events.is_event_file(file) else (file.stem,)
  folders = [str(folder) for folder in relative.parents if folder.name]
  last = [folder.name for folder in relative.parents if folder.name]
  return tuple(dict.fromkeys((*stem, str(relative.with_suffix('')), *folders, *last)))

