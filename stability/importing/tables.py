"""CSV files, JSON lines and data frames as columns of cells that know their file and line."""

import csv
import dataclasses
import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from stability.config import safe_repr
from stability.errors import BadInput

CHUNK = 50_000  # rows that are held as cells at a time
_EMPTY = {'', 'null', 'none', 'na', 'n/a', '#n/a', '<na>', '-'}
_NAN = {'nan', '-nan', '+nan', 'nan(ind)', '-nan(ind)'}
_MEANT_AS_NUMBER = re.compile(r"[+-]?[0-9][0-9.,'\u2019 \u00a0\u202f]*%?")
_MAX_DEPTH = 20  # of objects within objects


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of a file. A cell is text, or a value that JSON or a data frame gives a type.

  A cell that is empty or that its row lacks is ''.
  """

  source: str  # the path of the file, or the name of the data frame
  columns: dict[str, list[Any]]  # name -> cells
  lines: Sequence[int]  # the line of each row
  unit: str = 'line'  # what `lines` counts

  def where(self, row: int) -> str:
    """The file and line of a row, for messages."""
    return f'{self.source}, {self.unit} {self.lines[row]}'

  def error(self, row: int, column: str, allowed: str) -> BadInput:
    """The error for a cell that is not allowed."""
    cell = safe_repr(self.columns[column][row])
    return BadInput(f'{self.where(row)}: {column}={cell}: must be {allowed}')

  def texts(self, column: str) -> list[str]:
    """The cells of a column as text without surrounding space."""
    return [_text(cell) for cell in self.columns[column]]

  def text(self, column: str, row: int) -> str:
    """A cell as text without surrounding space."""
    return _text(self.columns[column][row])

  def numbers(self, column: str) -> np.ndarray:
    """The cells of a column as floats; NaN for an empty cell and for NaN in any spelling.

    Raises BadInput for a cell that is not a number, such as 1,000 or 2,31.
    """
    cells = self.columns[column]
    try:
      return np.array(cells, float)  # fast, but knows neither empty cells nor all spellings
    except (ValueError, TypeError, OverflowError):
      pass
    found = np.empty(len(cells))
    for row, cell in enumerate(cells):
      number = parse_number(cell)
      if number is None:
        raise self.error(row, column, 'a number, with a point and without separators of thousands')
      found[row] = number
    return found

  def is_text(self, column: str) -> bool:
    """Whether the first cell of a column that is not empty cannot be meant as a number."""
    cells = (cell for cell in self.columns[column] if not is_empty(cell))
    first = next(cells, 0)
    return parse_number(first) is None and not _MEANT_AS_NUMBER.fullmatch(str(first).strip())

  def selected(self, rows: Sequence[int]) -> 'Table':
    """Some of the rows."""
    columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
    return Table(self.source, columns, [self.lines[row] for row in rows], self.unit)


def parse_number(cell: Any) -> float | None:
  """A cell as a float, NaN for an empty one; None if it is not a number."""
  try:
    return float(cell)
  except (TypeError, ValueError):
    return math.nan if is_empty(cell) or is_nan(cell) else None
  except OverflowError:  # an integer with more than 308 digits
    return math.inf


def is_empty(cell: Any) -> bool:
  """Whether a cell says that there is no value."""
  return str(cell).strip().lower() in _EMPTY


def is_nan(cell: Any) -> bool:
  """Whether a cell is NaN in any spelling, which is a value."""
  return str(cell).strip().lower() in _NAN


def _is_number(text: str) -> bool:
  return math.isfinite(math.nan if (number := parse_number(text)) is None else number)


def _text(cell: Any) -> str:
  if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
    return str(int(cell))  # a data frame makes floats of integers if a cell is empty
  return str(cell).strip()


def read(path: Path) -> Table:
  """The rows of a CSV file or of JSON; BadInput if it cannot be read or has none."""
  chunks = list(read_chunks(path))
  names = list(dict.fromkeys(name for chunk in chunks for name in chunk.columns))
  columns = {
      name: [c for chunk in chunks for c in chunk.columns.get(name) or [''] * len(chunk.lines)]
      for name in names
  }
  lines = [line for chunk in chunks for line in chunk.lines]
  return Table(str(path), columns, lines, chunks[0].unit)


def read_chunks(path: Path) -> Iterator[Table]:
  """The same rows, at most CHUNK at a time; JSON objects may lack columns of other chunks."""
  has_rows = False
  try:
    with _opened(path) as file:
      start = file.read(4096)
      file.seek(0)
      first = start.lstrip()[:1]
      if first == '[':
        rows = _read_array(path, file)
      else:
        rows = _read_json(path, file) if first == '{' else _read_csv(path, file, start)
      for chunk in rows:
        has_rows = True
        yield chunk
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise BadInput(f'{path}: is damaged or no gzip file: {error}') from error
  except OSError as error:
    raise BadInput(f'{path}: cannot be read: {error.strerror}') from error
  except (csv.Error, UnicodeDecodeError) as error:
    raise BadInput(f'{path}: is neither CSV nor JSON: {error}') from error
  if not has_rows:
    raise BadInput(f'{path}: contains no rows')


def _opened(path: Path) -> TextIO:
  if path.suffix.lower() == '.gz':
    return gzip.open(path, 'rt', newline='', encoding='utf-8-sig')
  return path.open(newline='', encoding='utf-8-sig')


def _read_csv(path: Path, file: Iterable[str], start: str) -> Iterator[Table]:
  header_line = start.lstrip('\r\n').splitlines()[0] if start.strip() else ''
  present = [separator for separator in ',\t;' if separator in header_line]
  separator = max(present, key=header_line.count) if present else ','
  reader = csv.reader(file, strict=True, delimiter=separator)
  rows = ((reader.line_num, row) for row in reader if row and (row[0] or any(row)))
  _, header = next(rows, (1, []))
  names = [name.strip() for name in header]
  for name in names:
    if _is_number(name):
      raise BadInput(f'{path}: has no header: {name!r} in its first line is a number')
    if name and names.count(name) > 1:
      raise BadInput(f'{path}: has more than one column {name!r}')
  while chunk := list(itertools.islice(rows, CHUNK)):
    lines, cells = zip(*chunk, strict=True)
    if set(map(len, cells)) != {len(names)}:
      line, row = next((line, row) for line, row in chunk if len(row) != len(names))
      raise BadInput(
          f'{path}, line {line}: has {len(row)} cells, the header {len(names)} (separated by'
          f' {separator!r})'
      )
    columns = dict(zip(names, map(list, zip(*cells, strict=True)), strict=True))
    columns.pop('', None)  # the index of a data frame
    yield Table(str(path), columns, lines)


def _read_json(path: Path, file: Iterable[str]) -> Iterator[Table]:
  numbered = enumerate(file, 1)
  while chunk := list(itertools.islice(numbered, CHUNK)):
    lines, objects = [], []
    for line, text in chunk:
      if not text.strip():
        continue
      try:
        found = json.loads(text)
      except (ValueError, RecursionError) as error:
        if not text.endswith(('\n', '\r')):
          break  # the last line, which its trainer is still writing
        raise BadInput(f'{path}, line {line}: is not JSON: {error}') from error
      lines.append(line)
      objects.append(_object(found, f'{path}, line {line}'))
    if objects:
      yield Table(str(path), _columns(objects), lines)


def _read_array(path: Path, file: TextIO) -> Iterator[Table]:
  try:
    found = json.load(file)
  except (ValueError, RecursionError) as error:
    raise BadInput(f'{path}: is not JSON: {error}') from error
  objects = [_object(item, f'{path}, item {i}') for i, item in enumerate(found, 1)]
  if objects:
    yield Table(str(path), _columns(objects), range(1, len(objects) + 1), 'item')


def _object(found: Any, where: str) -> dict[str, Any]:
  if not isinstance(found, dict):
    raise BadInput(f'{where}: is not a JSON object')
  return dict(_flat(found, where))


def _columns(objects: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
  names = dict.fromkeys(name for found in objects for name in found)
  return {name: [found.get(name, '') for found in objects] for name in names}


def _flat(
    found: dict[str, Any], where: str, prefix: str = '', depth: int = 0
) -> Iterator[tuple[str, Any]]:
  """The entries of an object with dotted names; lists become text, null an empty cell."""
  if depth > _MAX_DEPTH:
    raise BadInput(f'{where}: has objects nested more deeply than {_MAX_DEPTH}')
  for key, value in found.items():
    if isinstance(value, dict):
      yield from _flat(value, where, f'{prefix}{key}.', depth + 1)
    elif isinstance(value, list):
      yield prefix + key, json.dumps(value)
    else:
      yield prefix + key, '' if value is None else value


def of_frame(frame: pd.DataFrame, name: str) -> Table:
  """The rows of a data frame and of named levels of its index; messages call it `name`."""
  if not isinstance(frame, pd.DataFrame):
    raise BadInput(f'{name}: must be a pandas DataFrame')
  levels = [
      number
      for number, level in enumerate(frame.index.names)
      if level is not None and level not in frame.columns
  ]
  if levels:
    frame = frame.reset_index(level=levels, allow_duplicates=True)
  if frame.empty:
    raise BadInput(f'{name}: contains no rows')
  names = [str(column) for column in frame.columns]
  if len(set(names)) < len(names):
    raise BadInput(f'{name}: has more than one column of the same name')
  columns = {
      column: frame.iloc[:, i].astype(object).where(frame.iloc[:, i].notna(), '').tolist()
      for i, column in enumerate(names)
  }
  return Table(name, columns, range(len(frame)), 'row')
