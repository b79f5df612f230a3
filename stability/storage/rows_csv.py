"""Tables of measurements on finished runs: CSV files in DIR/report/ with a dataclass for a row."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from stability.errors import BadInput
from stability.storage import files, leases


class Row(Protocol):
  """A dataclass whose fields are str, int, float or float | None.

  A file may lack the columns that have a default.
  """

  @property
  def key(self) -> tuple[str, ...]:
    """What was measured: a new row with the same key replaces an old one."""


AnyRow = TypeVar('AnyRow', bound=Row)


def read(file: Path, kind: type[AnyRow]) -> list[AnyRow]:
  """The rows of a file; none if there is no file, BadInput if it is damaged.

  Args:
    file: the CSV file.
    kind: the dataclass of a row. Its constructor raises ValueError for values that it refuses.
  """
  if not file.is_file():
    return []
  try:
    text = file.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise BadInput(f'{file}: cannot be read: {error}') from None
  rows = []
  try:
    lines = csv.DictReader(io.StringIO(text), strict=True)
    for line in lines:
      rows.append(_parse(line, kind))
  except (ValueError, csv.Error) as error:
    raise BadInput(f'{file}, line {len(rows) + 2}: damaged: {error}') from None
  return rows


def add(file: Path, kind: type[AnyRow], new: Iterable[AnyRow]) -> None:
  """Adds rows to a file; those that measure the same as an old one replace it."""
  with leases.acquire(file.parent):  # another program may add rows, too
    rows = {row.key: row for row in read(file, kind)}
    rows |= {row.key: row for row in new}
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(kind)]
    writer = csv.DictWriter(buffer, names, lineterminator='\n')
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows.values())
    files.write_atomic(file, buffer.getvalue())


def _parse(found: dict[str, Any], kind: type[AnyRow]) -> AnyRow:
  """The row of a line as csv.DictReader gives it; ValueError if it is damaged."""
  if None in found:
    raise ValueError('too many cells')
  values = {}
  for field in dataclasses.fields(kind):
    text = found.get(field.name)
    if field.name not in found and field.default is not dataclasses.MISSING:
      continue  # an older file
    if text is None:
      raise ValueError(f'{field.name} is missing')
    if field.type == float | None and not text:
      values[field.name] = None
    elif field.type is str:
      values[field.name] = text
    else:
      values[field.name] = (int if field.type is int else float)(text)
      if not math.isfinite(values[field.name]):
        raise ValueError(f'{field.name}={text}: must be a finite number')
  return kind(**values)
