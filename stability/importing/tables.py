"""CSV files, JSON lines and data frames as columns of cells that know their file and line."""

import codecs
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
_MEANT_AS_NUMBER = re.compile(r"[+-]?[0-9][0-9.,'\u2019 \u00a0\u202f]*([eE][+-]?[0-9]+)?%?")
_MAX_DEPTH = 20  # of objects within objects
_MAX_DAMAGED = 10  # lines of a file, or a tenth of its rows; more are no accident


class UnusableFile(BadInput):
  """A file that cannot be used as it is, while others may be."""


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of a file. A cell is text, or a value that JSON or a data frame gives a type.

  A cell that is empty or that its row lacks is ''.
  """

  source: str  # the path of the file, or the name of the data frame
  columns: dict[str, list[Any]]  # name -> cells
  lines: Sequence[int | str]  # the line, or the name, of each row
  unit: str = 'line'  # what `lines` counts
  damaged: tuple[str, ...] = ()  # lines that are left out, and why

  def where(self, row: int) -> str:
    """The file and line of a row, for messages."""
    return f'{self.source}, {self.unit} {self.lines[row]}'

  def error(self, row: int, column: str, allowed: str) -> BadInput:
    """The error for a cell that is not allowed."""
    cell = safe_repr(self.columns[column][row])
    return UnusableFile(f'{self.where(row)}: {column}={cell}: must be {allowed}')

  def texts(self, column: str) -> list[str]:
    """The cells of a column as text without surrounding space."""
    return [_text(cell) for cell in self.columns[column]]

  def text(self, column: str, row: int) -> str:
    """A cell as text without surrounding space."""
    return _text(self.columns[column][row])

  def numbers(self, column: str) -> np.ndarray:
    """The cells of a column as floats; NaN for an empty cell and for NaN in any spelling.

    Raises BadInput for a cell that is not a number, such as 1,000, 2,31 or true in JSON.
    """
    cells = self.columns[column]
    if bool not in set(map(type, cells)):
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


  def with_columns(self, columns: dict[str, list[Any]]) -> 'Table':
    """The same rows with other columns."""
    return dataclasses.replace(self, columns=columns)


def parse_number(cell: Any) -> float | None:
  """A cell as a float, NaN for an empty one; None if it is not a number."""
  if isinstance(cell, bool):
    return None
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
  """The rows of a CSV file or of JSON; BadInput if it cannot be read or has none.

  Only a last line that was cut off is left out.
  """
  damaged: list[str] = []
  chunks = list(read_chunks(path, damaged, is_log=False))
  names = list(dict.fromkeys(name for chunk in chunks for name in chunk.columns))
  columns = {
      name: [c for chunk in chunks for c in chunk.columns.get(name) or [''] * len(chunk.lines)]
      for name in names
  }
  lines = [line for chunk in chunks for line in chunk.lines]
  return Table(str(path), columns, lines, chunks[0].unit, tuple(damaged))


def read_chunks(path: Path, damaged: list[str], *, is_log: bool = True) -> Iterator[Table]:
  """The same rows, at most CHUNK at a time; chunks may lack columns of others.

  Args:
    path: the file.
    damaged: lines that are left out are added, with the reason.
    is_log: whether damaged lines may be anywhere, as a crash leaves one where a restart goes on.
  """
  rows_read, before = 0, len(damaged)
  try:
    with _opened(path) as file:
      start = file.read(4096)
      file.seek(0)
      first = start.lstrip()[:1]
      if first == '[':
        rows = _read_array(path, file)
      else:
        lines = _Lines(file, path, damaged, is_log)
        rows = _read_json(lines) if first == '{' else _read_csv(lines, start)
      for chunk in rows:
        rows_read += len(chunk.lines)
        yield chunk
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UnusableFile(f'{path}: is damaged or no gzip file: {error}') from error
  except OSError as error:
    raise UnusableFile(f'{path}: cannot be read: {error.strerror}') from error
  except (csv.Error, UnicodeDecodeError) as error:
    raise UnusableFile(f'{path}: is neither CSV nor JSON: {error}') from error
  count = len(damaged) - before
  if not rows_read:
    raise UnusableFile(damaged[before] if count else f'{path}: contains no rows')
  if count > max(_MAX_DAMAGED, rows_read / 10):
    raise UnusableFile(f'{damaged[before]}; {count - 1:,} more lines are damaged')


def _opened(path: Path) -> TextIO:
  opened = gzip.open if path.suffix.lower() == '.gz' else open
  with opened(path, 'rb') as file:
    if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
      raise UnusableFile(f'{path}: is UTF-16; save it as UTF-8')
  return opened(path, 'rt', newline='', encoding='utf-8-sig')


class _Lines:
  """The lines of a file, which says of a damaged one whether it may be left out."""

  def __init__(self, file: Iterable[str], path: Path, damaged: list[str], is_log: bool):
    self.path = path
    self._file, self._damaged, self._is_log = iter(file), damaged, is_log
    self._last = ''

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    self._last = next(self._file)
    return self._last

  def leave_out(self, line: int, reason: str, *, is_newest: bool) -> None:
    """Leaves a line out; raises UnusableFile if it is wrong and not merely cut off.

    Args:
      line: its number.
      reason: what is wrong with it.
      is_newest: whether it is the last one that was read.
    """
    is_cut = is_newest and not self._last.endswith(('\n', '\r'))
    if not self._is_log and not is_cut:
      raise UnusableFile(f'{self.path}, line {line}: {reason}')
    self._damaged.append(f'{self.path}, line {line}: {"is cut off" if is_cut else reason}')


def _read_csv(file: _Lines, start: str) -> Iterator[Table]:
  header_line = start.lstrip('\r\n').splitlines()[0] if start.strip() else ''
  present = [separator for separator in ',\t;' if separator in header_line]
  separator = max(present, key=header_line.count) if present else ','
  reader = csv.reader(file, strict=True, delimiter=separator)
  rows = _csv_rows(reader, file)
  _, header = next(rows, (1, []))
  names = _names(header, file.path)
  while chunk := list(itertools.islice(rows, CHUNK)):
    newest, known = reader.line_num, {*names}
    same_header: list[tuple[int, list[str]]] = []
    if all(len(row) == len(names) and row[0].strip() not in known for _, row in chunk):
      same_header, chunk = chunk, []
    for line, row in chunk:
      if _is_header(row, names):  # of a restart, which may log other columns
        if same_header:
          yield _csv_table(file.path, names, same_header)
        names, same_header = _names(row, file.path), []
      elif len(row) == len(names):
        same_header.append((line, row))
      else:
        file.leave_out(
            line,
            f'has {len(row)} cells, the header {len(names)} (separated by {separator!r})',
            is_newest=line == newest,
        )
    if same_header:
      yield _csv_table(file.path, names, same_header)


def _csv_rows(reader: Any, file: _Lines) -> Iterator[tuple[int, list[str]]]:
  """The rows that are not empty, each with its line."""
  while True:
    before = reader.line_num
    try:
      row = next(reader, None)
    except csv.Error as error:
      if before == 0 or reader.line_num - before > _MAX_DAMAGED:  # a quote that is never closed
        raise
      file.leave_out(reader.line_num, f'is neither CSV nor JSON: {error}', is_newest=True)
      continue
    if row is None:
      return
    if row and (row[0] or any(row)):
      yield reader.line_num, row


def _names(header: Sequence[str], path: Path) -> list[str]:
  names = [name.strip() for name in header]
  for name in names:
    if _is_number(name):
      raise UnusableFile(f'{path}: has no header: {name!r} in its first line is a number')
    if name and names.count(name) > 1:
      raise UnusableFile(f'{path}: has more than one column {name!r}')
  return names


def _is_header(row: Sequence[str], names: Sequence[str]) -> bool:
  """Whether a row repeats the header: it holds names of columns, most of them known."""
  cells = [cell.strip() for cell in row]
  known = sum(cell in names for cell in cells if cell)
  return 2 * known > len(list(filter(None, names))) and not any(map(_is_number, cells))


def _csv_table(
    path: Path, names: Sequence[str], rows: Sequence[tuple[int, list[str]]]
) -> Table:
  lines, cells = zip(*rows, strict=True)
  columns = dict(zip(names, map(list, zip(*cells, strict=True)), strict=True))
  columns.pop('', None)  # the index of a data frame
  return Table(str(path), columns, lines)


def _read_json(file: _Lines) -> Iterator[Table]:
  numbered = enumerate(file, 1)
  while chunk := list(itertools.islice(numbered, CHUNK)):
    lines, objects = [], []
    for line, text in chunk:
      if not text.strip():
        continue
      try:
        objects.append(_object(_DECODER.decode(text)))
      except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, BadInput) else f'is not JSON: {error}'
        # A last line that is cut off is one that its trainer is still writing.
        file.leave_out(line, reason, is_newest=line == chunk[-1][0])
      else:
        lines.append(line)
    if objects:
      yield Table(str(file.path), _columns(objects), lines)


def _read_array(path: Path, file: TextIO) -> Iterator[Table]:
  try:
    found = _DECODER.decode(file.read())
  except BadInput as error:
    raise UnusableFile(f'{path}: {error}') from error
  except (ValueError, RecursionError) as error:
    raise UnusableFile(f'{path}: is not JSON: {error}') from error
  objects = []
  for number, item in enumerate(found, 1):
    try:
      objects.append(_object(item))
    except BadInput as error:
      raise UnusableFile(f'{path}, item {number}: {error}') from error
  if objects:
    yield Table(str(path), _columns(objects), range(1, len(objects) + 1), 'item')


def _object(found: Any) -> dict[str, Any]:
  if not isinstance(found, dict):
    raise BadInput('is not a JSON object')
  return _once(list(_flat(found)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of these entries; BadInput if a name is repeated, since one value would be lost."""
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise BadInput(f'has more than one {next(n for n in names if names.count(n) > 1)!r}')
  return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _columns(objects: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
  names = dict.fromkeys(name for found in objects for name in found)
  return {name: [found.get(name, '') for found in objects] for name in names}


def _flat(
    found: dict[str, Any], prefix: str = '', depth: int = 0
) -> Iterator[tuple[str, Any]]:
  """The entries of an object with dotted names; lists become text, null an empty cell."""
  if depth > _MAX_DEPTH:
    raise BadInput(f'has objects nested more deeply than {_MAX_DEPTH}')
  for key, value in found.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.', depth + 1)
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
