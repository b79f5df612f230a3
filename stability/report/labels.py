"""Labels of numbers, sizes and interventions in figures and tables.

A person can replace them: within the context of `replaced`, fields, values, arms and the texts of
axes and legends have the labels given there.
"""

import contextlib
import contextvars
import functools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from stability.errors import BadInput

# Names of other columns in the tables of the report.
_COLUMNS = (
    *('parameters', 'seed', 'seeds', 'status', 'run', 'error', 'actions', 'missing', 'pairs'),
    'unstable',
)

_given: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    'labels', default=MappingProxyType({})
)


@contextlib.contextmanager
def replaced(given: Mapping[str, str]) -> Iterator[None]:
  """A context in which figures and tables use the labels that a person gives.

  Args:
    given: name -> label. A name is a field (`model.qk_norm` or `qk_norm`), a value as it is
      otherwise shown (`none`), a field with its value (`qk_norm=none`), which replaces both, a
      whole arm (`qk_norm=none, eps=1e-8`) or a text of axes and legends (`learning rate`).
  """
  token = _given.set(given)
  try:
    yield
  finally:
    _given.reset(token)


def text(name: str) -> str:
  """The label given for a text; without one, the text."""
  given = _given.get()
  return printable(given[name]) if name in given else name


def refuse_equal(shown: Sequence[str], what: str) -> None:
  """Raises BadInput if labels that a person gave make different things look the same."""
  for label in shown:
    if _given.get() and shown.count(label) > 1:
      raise BadInput(f'labels: {label!r} stands for several {what}; labels must differ')


def parameters(count: float) -> str:
  """A parameter count, abbreviated: 9216 -> 9.2K, 147456 -> 147K, 2359296 -> 2.4M; NaN -> `?`."""
  if pd.isna(count):
    return '?'
  for unit, scale in (('', 1), ('K', 1e3), ('M', 1e6), ('B', 1e9), ('T', 1e12)):
    scaled = count / scale
    text = f'{scaled:.1f}'.removesuffix('.0') if scaled < 9.95 else f'{scaled:.0f}'
    if len(text) < 4:
      return text + unit
  return f'{count:.1e}'


def number(value: float) -> str:
  """A number as papers write learning rates: 0.0003 -> 3e-4, 0.1 -> 1e-1, 1 -> 1, 15 -> 15.

  All digits are kept, so that different numbers have different labels.
  """
  if value == 0 or 1 <= abs(value) < 1e3 or not np.isfinite(value):
    return np.format_float_positional(value, trim='-')
  return np.format_float_scientific(value, trim='-', exp_digits=1).replace('e+', 'e')


def rounded(value: float, digits: int = 3) -> str:
  """A number rounded to some significant digits; empty for NaN."""
  return '' if pd.isna(value) else number(float(f'{value:.{digits}g}'))


def decimals(value: float, places: int = 3) -> str:
  """A loss or a difference of losses; empty for NaN."""
  return '' if pd.isna(value) else f'{value:.{places}f}'


def value(entry: Any) -> str:
  """The value of a field as text; `unset` if it is missing."""
  return text(_plain_value(entry))


def _plain_value(entry: Any) -> str:
  if pd.isna(entry):
    return 'unset'
  return number(entry) if isinstance(entry, float) else printable(str(entry))


def printable(text: str) -> str:
  """Escapes control characters, which fonts lack and SVG forbids."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def fields(names: Sequence[str]) -> dict[str, str]:
  """The label of each field: the one given for it or, without one, its short name.

  Returns:
    Field -> label.
  """
  given = _given.get()
  short = short_names(names)
  shown = {name: text(name if name in given else short[name]) for name in names}
  refuse_equal([*shown.values(), *_COLUMNS], 'columns')
  return shown


def short_names(names: Sequence[str]) -> dict[str, str]:
  """The short name of each field: its last part, or its full name if the last part is in use.

  The short name of SECTION.name is the section, such as optimizer.

  Returns:
    Field -> short name.
  """
  last = [name.removesuffix('.name').split('.')[-1] for name in names]
  return {
      name: printable(name if last.count(short) > 1 or short in _COLUMNS else short)
      for name, short in zip(names, last, strict=True)
  }


def sizes(rows: pd.DataFrame, shape: Sequence[str]) -> pd.Series:
  """The label of each row's size: its parameters, and its shape if several shapes have as many.

  Different sizes have different labels.

  Args:
    rows: a table with the columns parameters and those of `shape`.
    shape: fields, such as model.width.
  """
  text = rows['parameters'].map(parameters)
  is_ambiguous = rows['parameters'].groupby(text).transform('nunique') > 1
  text = text.where(~is_ambiguous, rows['parameters'].map('{:,}'.format))
  distinct = rows.drop_duplicates(['parameters', *shape])['parameters']
  needs_shape = rows['parameters'].isin(distinct[distinct.duplicated()])
  for name, short in fields(shape).items():
    text = text.where(~needs_shape, text + f', {short} ' + rows[name].map(value))
  return text


def wrapped(text: str, width: int) -> str:
  """Wraps a text to lines of `width` characters; longer words are broken after =, then after _."""
  lines = ['']
  for word in text.split(' '):
    halves = re.findall('[^=]*=|[^=]+', word) if len(word) > width else [word]
    pieces = [
        piece
        for half in halves
        for piece in (re.findall('[^_]*_|[^_]+', half) if len(half) > width else [half])
    ]
    for i, piece in enumerate(pieces):
      space = '' if i or not lines[-1] else ' '
      if len(lines[-1] + space + piece) <= width:
        lines[-1] += space + piece
      else:
        lines.extend(textwrap.wrap(piece, width, break_on_hyphens=False))
  return '\n'.join(filter(None, lines))


def pairs(names: Sequence[str], values: Iterable[Any]) -> str:
  """Fields and their values as text, such as `qk_norm=none, norm=rmsnorm`; an `arm` by its name."""
  values = list(values)
  short = short_names(names).values()
  plain = [f'{name}={_plain_value(entry)}' for name, entry in zip(short, values, strict=True)]
  arm = ', '.join(plain)
  if arm in _given.get():
    return text(arm)
  shown = fields(names).values()
  pairs = [f'{name}={value(entry)}' for name, entry in zip(shown, values, strict=True)]
  return ', '.join(
      _of_pair(name, entry) or (value(entry) if name == 'arm' else pair)
      for name, entry, pair in zip(names, values, pairs, strict=True)
  )


def cell(name: str, entry: Any) -> str:
  """The value of a field in a table with a column for the field."""
  return _of_pair(name, entry) or value(entry)


def columns(
    rows: pd.DataFrame, names: Sequence[str], shape: Sequence[str] | None = None
) -> pd.DataFrame:
  """The values of fields as text, a column for each under its label.

  With `shape`, the sizes of the rows are the first column, parameters; see sizes.
  """
  text = {} if shape is None else {'parameters': sizes(rows, shape)}
  for name, shown in fields(names).items():
    text[shown] = rows[name].map(functools.partial(cell, name))
  return pd.DataFrame(text)


def _of_pair(name: str, entry: Any) -> str | None:
  """The label given for a field with its value; None without one."""
  (short,) = short_names([name]).values()
  for field in (name, short):
    if (pair := f'{field}={_plain_value(entry)}') in _given.get():
      return text(pair)
  return None


def joined(words: Iterable[str]) -> str:
  """Words as a list in a sentence: `a, b and c`."""
  *first, last = words
  return f'{", ".join(first)} and {last}' if first else last
