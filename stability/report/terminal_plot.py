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
    points: points to plot; non-finite values are left out.
    marks: step -> a character placed below it.
    steps: the steps of the whole run.
    width: columns of the plot; each shows the mean of its points, or else its left neighbour.
    height: lines of the plot.
  """
  columns: list[list[float]] = [[] for _ in range(width)]
  for step, value in points:
    if math.isfinite(value):
      columns[_column(step, steps, width)].append(value)
  means: list[float] = []
  for column in columns:  # a column without points repeats the previous one
    last = means[-1] if means and any(columns[len(means) :]) else math.nan
    means.append(sum(column) / len(column) if column else last)
  there = [mean for mean in means if math.isfinite(mean)]
  if not there:
    return 'nothing logged yet'
  low, high = min(there), max(there)
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
