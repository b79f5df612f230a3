"""Tables of the report in LaTeX, for the package booktabs."""

import re
from collections.abc import Collection

import pandas as pd

_SPECIAL = {
    **{character: f'\\{character}' for character in '&%$#_{}'},
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '\\': r'\textbackslash{}',
    '<': r'\textless{}',
    '>': r'\textgreater{}',
    '|': r'\textbar{}',
}


def tabular(table: pd.DataFrame, text_columns: Collection[str]) -> str:
  """A tabular of a table of text, with space between the values of its first column.

  Args:
    table: cells as text.
    text_columns: the columns to align at the left; others are aligned at the right.
  """
  alignment = ''.join('l' if name in text_columns else 'r' for name in table)
  lines = [
      r'% needs \usepackage{booktabs}',
      rf'\begin{{tabular}}{{{alignment}}}',
      r'\toprule',
      _row(table.columns),
      r'\midrule',
  ]
  first = table.iloc[:, 0]
  starts = (first != first.shift()) & (first.groupby(first).transform('size') > 1)
  for number, (row, is_start) in enumerate(zip(table.to_numpy(), starts, strict=True)):
    if number and is_start:
      lines.append(r'\addlinespace')
    lines.append(_row(row))
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}', ''])


def escape(text: str) -> str:
  """The text with LaTeX's special characters escaped, and an en dash in ranges of numbers."""
  escaped = ''.join(_SPECIAL.get(character, character) for character in text)
  return re.sub(r'(?<=\d\.\d{3})-(?=\d)|(?<=\d\.\d{2})-(?=\d)', '--', escaped)


def _row(cells: Collection[str]) -> str:
  return ' & '.join(map(escape, cells)) + r' \\'
