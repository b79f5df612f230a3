"""A small line plot for the terminal, drawn with block characters."""

import math
from collections.abc import Mapping, Sequence

BLOCKS = ' ▁▂▃▄▅▆▇█'


def plot(
    points: Sequence[tuple[int, float]],
    marks: Mapping[int, str],
    steps: int,
    width: int = 60,
    height: int = 6,
) -> str:
  """The points (step, value) plotted over the steps of a run, as lines of text.

  Args:
    points: the points to plot; non-finite values are left out.
    marks: step -> the character to print below it.
    steps: the number of steps of the whole run.
    width: the number of columns. A column shows the mean of its points; one without points repeats
      the column on its left, up to the last column with points.
    height: the number of lines.
  """
  columns: list[list[float]] = [[] for _ in range(width)]
  for step, value in points:
    if math.isfinite(value):
      columns[_column(step, steps, width)].append(value)
  means: list[float] = []
  for column in columns:
    last = means[-1] if means and any(columns[len(means) :]) else math.nan
    means.append(sum(column) / len(column) if column else last)
  finite = [mean for mean in means if math.isfinite(mean)]
  if not finite:
    return 'nothing logged yet'
  low, high = min(finite), max(finite)
  eighths = [
      1 + round((mean - low) / ((high - low) or 1) * (8 * height - 1)) if mean == mean else 0
      for mean in means
  ]
  lines = []
  for line in reversed(range(height)):
    label = f'{high:.4g}' if line == height - 1 else f'{low:.4g}' if line == 0 else ''
    blocks = ''.join(BLOCKS[min(max(count - 8 * line, 0), 8)] for count in eighths)
    lines.append(f'{label:>9} {blocks}'.rstrip())
  below = [' '] * width
  for step, mark in marks.items():
    below[_column(step, steps, width)] = mark
  return '\n'.join([*lines, f'{"":>9} {"".join(below)}'.rstrip()])


def _column(step: int, steps: int, width: int) -> int:
  return min(width - 1, step * width // max(steps, 1))
