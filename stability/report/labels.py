"""Labels of numbers, sizes and interventions in figures and tables."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

# Names of other columns in the tables of the report.
_COLUMNS = ('parameters', 'seed', 'seeds', 'status', 'run', 'error')


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


def decimals(value: float, places: int = 3) -> str:
  """A loss or a difference of losses; empty for NaN."""
  return '' if pd.isna(value) else f'{value:.{places}f}'


def value(entry: Any) -> str:
  """The value of a field as text; `unset` if it is missing."""
  if pd.isna(entry):
    return 'unset'
  return number(entry) if isinstance(entry, float) else _printable(str(entry))


def _printable(text: str) -> str:
  """Escapes control characters, which fonts lack and SVG forbids."""
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def fields(names: Sequence[str]) -> dict[str, str]:
  """The label of each field: its last part, or its full name if the last part is already in use.

  The label of SECTION.name is the section, such as optimizer.

  Returns:
    Field -> label.
  """
  last = [name.removesuffix('.name').split('.')[-1] for name in names]
  return {
      name: name if last.count(short) > 1 or short in _COLUMNS else short
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
  """Fields and their values as text, such as `qk_norm=none, norm=rmsnorm`."""
  short = fields(names).values()
  return ', '.join(f'{name}={value(entry)}' for name, entry in zip(short, values, strict=True))


def joined(words: Iterable[str]) -> str:
  """Words as a list in a sentence: `a, b and c`."""
  *first, last = words
  return f'{", ".join(first)} and {last}' if first else last
