"""Checks of the field that holds a document's text, shared by all input formats."""

from collections.abc import Iterable, Mapping
from typing import Any

from stability.errors import BadInput

Row = bytes | BadInput  # a document as UTF-8, or why a row has none

_SHOWN_FIELDS = 8


def check_present(field: str, fields: Iterable[str], where: str) -> None:
  """Raises BadInput, located by `where`, if `field` is not among a row's fields."""
  fields = list(fields)
  if field not in fields:
    shown = ', '.join(map(repr, fields[:_SHOWN_FIELDS])) or 'none'
    raise BadInput(f'{where}: has no field {field!r} (--field); it has {shown}')


def text(row: Mapping[str, Any], field: str, where: str) -> Row:
  """The text of a row, or the BadInput, located by `where`, that says why it has none."""
  try:
    check_present(field, row, where)
    return utf8(row[field], field, where)
  except BadInput as error:
    return error


def utf8(value: Any, field: str, where: str) -> bytes:
  """A field's value as UTF-8 bytes; raises BadInput, located by `where`, if it is not text.

  A value of type bytes is text as parquet stores it, not yet decoded.
  """
  try:
    if isinstance(value, str):
      return value.encode()
    if isinstance(value, bytes):
      value.decode()
      return value
  except UnicodeEncodeError:
    raise BadInput(f'{where}: field {field!r} contains half of a surrogate pair') from None
  except UnicodeDecodeError as error:
    raise BadInput(f'{where}: field {field!r}: bad UTF-8 at byte {error.start}') from None
  raise BadInput(f'{where}: field {field!r} must be text, not {describe(value)}')


def describe(value: Any) -> str:
  """The JSON type of a value, with its article."""
  names = {dict: 'an object', list: 'an array', str: 'a string', bool: 'a boolean'}
  return 'null' if value is None else names.get(type(value), 'a number')
