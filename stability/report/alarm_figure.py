"""The reliability diagram of the alarms: how often runs became unstable after them."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.report.plots import style
from stability.storage import files

NAME = 'alarm_reliability'


def write(table: pd.DataFrame, folder: Path) -> None:
  """Draws the figure to SVG and PNG files; `table` is that of alarm_scores.reliability."""
  figure = draw(table)
  for kind in ('svg', 'png'):
    files.write_atomic(folder / f'{NAME}.{kind}', style.save(figure, kind))


@style.styled
def draw(table: pd.DataFrame, ax: Axes | None = None) -> Figure:
  """Draws how often runs became unstable after alarms against the probability of the alarms."""
  figure, axes = style.grid([''], 4, ax=ax)
  axis = axes[0, 0]
  axis.plot([0, 1], [0, 1], color=style.GREY, linestyle='--')
  axis.plot(table['probability'], table['unstable'], 'o')
  for row in table.itertuples():
    axis.annotate(f'{row.alarms} ', (row.probability, row.unstable), ha='right', va='center')
  axis.set(
      xlim=(0, 1.02),
      ylim=(-0.02, 1.02),
      xlabel='mean probability of alarms, by tenths',
      ylabel='share followed by instability',
  )
  return figure
