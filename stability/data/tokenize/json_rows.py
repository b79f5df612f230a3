"""The texts of JSON files: JSON lines, and documents in the layouts that pandas writes."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from stability.data.tokenize import text_field
from stability.data.tokenize.text_field import Row
from stability.errors import BadInput

MAX_BYTES = 2**28  # a longer line is unlikely to be JSON, and would fill the memory

_Lines = Iterable[tuple[int, bytes]]  # with their numbers


class JsonReader:
  """Reads one file; a row that is not a text is yielded as its BadInput."""

  def __init__(self, path: Path, field: str, line: list[int]):
    """Reads the texts of `field`; line[0] becomes the number of the last line read."""
    self._path = path
    self._field = field
    self._line = line

  def lines(self, stream: BinaryIO, skip: int) -> Iterator[Row]:
    """The texts of JSON lines after the first `skip`; empty lines do not count."""
    return self._texts_of_lines(self._raw_lines(stream), skip)

  def any_json(self, stream: BinaryIO, skip: int) -> Iterator[Row]:
    """The texts of JSON lines, of an array of objects, or of a document in a layout of pandas."""
    lines = self._raw_lines(stream)
    first = list(itertools.islice(lines, 1))
    if first and _is_object(first[0][1]):
      first += itertools.islice(lines, 1)
    if len(first) == 2:
      yield from self._texts_of_lines(itertools.chain(first, lines), skip)
    elif first:
      document = first[0][1] + stream.read(MAX_BYTES)
      if len(document) > MAX_BYTES:
        raise BadInput(
            f'{self._path}: one JSON document of more than {MAX_BYTES:,} bytes; must be JSON lines,'
            ' an object per line'
        )
      rows = self._rows_of_document(document, first[0][0])
      for number, row in enumerate(itertools.islice(rows, skip, None), skip + 1):
        yield self._text(row, f'{self._path}: row {number}')

  def _raw_lines(self, stream: BinaryIO) -> _Lines:
    """The lines that are not empty."""
    while text := stream.readline(MAX_BYTES):
      self._line[0] += 1
      if len(text) == MAX_BYTES:
        raise BadInput(
            f'{self._path}:{self._line[0]}: longer than {MAX_BYTES:,} bytes; is this JSON lines?'
        )
      if not text.isspace():
        yield self._line[0], text

  def _texts_of_lines(self, lines: _Lines, skip: int) -> Iterator[Row]:
    for number, line in itertools.islice(lines, skip, None):
      try:
        row = self._parse(line, number)
      except BadInput as error:
        yield error
      else:
        yield self._text(row, f'{self._path}:{number}')

  def _text(self, row: Any, where: str) -> Row:
    """The text of a parsed row, or what is wrong with it."""
    if not isinstance(row, dict):
      return BadInput(f'{where}: must be a JSON object, not {text_field.describe(row)}')
    return text_field.text(row, self._field, where)

  def _parse(self, text: bytes, first_line: int) -> Any:
    """The JSON value of a text that begins in this line."""
    where = f'{self._path}:{first_line}'
    try:
      return json.loads(text.decode())
    except UnicodeDecodeError as error:
      raise BadInput(f'{where}: bad UTF-8 at byte {error.start} of the line') from None
    except json.JSONDecodeError as error:
      where = f'{self._path}:{first_line + error.lineno - 1}'
      raise BadInput(f'{where}: bad JSON: {error.msg} at character {error.colno - 1}') from None
    except (RecursionError, ValueError) as error:  # nesting too deep; a number too long
      raise BadInput(f'{where}: bad JSON: {error}') from None

  def _rows_of_document(self, text: bytes, first_line: int) -> Iterable[Any]:
    """The rows of a document; `orient` is the argument of pandas' to_json that writes it."""
    value = self._parse(text, first_line)
    if isinstance(value, list):  # records
      return value
    if not isinstance(value, dict):
      return [value]  # refused as a row
    column = value.get(self._field)
    if isinstance(column, dict | list):  # columns; list is to_dict's
      texts = column.values() if isinstance(column, dict) else column
      return [{self._field: text} for text in texts]
    data, names = value.get('data'), value.get('columns')
    if column is None and isinstance(data, list):
      if isinstance(names, list):  # split
        return [dict(zip(names, row)) if isinstance(row, list) else row for row in data]
      return data  # table
    if column is None and value and all(isinstance(row, dict) for row in value.values()):  # index
      return value.values()
    return [value]


def _is_object(line: bytes) -> bool:
  """Whether a line is a whole JSON object."""
  try:
    return isinstance(json.loads(line), dict)
  except (ValueError, RecursionError):
    return False
