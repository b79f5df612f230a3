"""The axis of final losses: it shows the basin, and marks what lies above it at its top edge."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, blended_transform_factory

from stability.analysis import instability
from stability.analysis.results import Results
from stability.report.plots import style

# The axis ends at this many times the excess over the best loss from which a run is unstable.
MARGINS = 4
# Arms whose best loss is further above the best of their size, as a fraction of what was learned,
# do not stretch the axis.
_FAR = 0.5
_ABOVE = {'marker': '^', 'linestyle': ''}
_FEWER = {'marker': 'o', 'linestyle': '', **style.HOLLOW}


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of mean losses."""

  means: pd.Series  # nats, by x
  diverged: Collection[float]  # the x at which a run diverged
  lacking: Collection[float]  # the x at which a seed of the line has no loss
  colour: tuple

  @classmethod
  def of(cls, means: pd.Series, runs: pd.DataFrame, x: str, colour: tuple) -> 'Line':
    """The line of these runs, whose losses the column `loss` has, by the column x."""
    runs = runs[[x, 'loss', 'seed', 'status']].astype({x: float})  # not its hundred other columns
    counted = runs[runs['loss'].notna()]
    seeds = counted.groupby(x)['seed'].nunique()
    lacking = seeds.index[seeds < counted['seed'].nunique()]
    return cls(means, set(runs[x][runs['status'] == 'diverged']), set(lacking), colour)


@dataclasses.dataclass(frozen=True)
class LossAxis:
  """The limits of an axis of losses."""

  low: float
  high: float
  is_cut: bool  # whether losses lie above `high`

  @classmethod
  def of(cls, results: Results, runs: pd.DataFrame) -> 'LossAxis':
    """The axis on which the best losses of all sizes and arms, and where they rise, can be seen.

    It ends where the losses do, or at MARGINS times the excess from which a run is unstable.

    Args:
      results: the runs of a sweep.
      runs: those to show, with the column loss (see style.labelled).
    """
    best = runs['loss'].groupby(runs['size'].astype(str)).transform('min')
    learned = runs['initial_loss'] - best
    arm = [runs[name].astype(str) for name in ('size', *results.groups)]
    of_arm = runs['loss'].groupby(arm).transform('min')
    of_arm = of_arm.where(of_arm - best < _FAR * learned, best)
    margin = MARGINS * instability.MARGIN * (runs['initial_loss'] - of_arm)
    lowest, highest = runs['loss'].min(), runs['loss'].max()
    top = (of_arm + margin.clip(lower=0)).max()
    is_cut = bool(highest > top > lowest)
    pad = 0.06 * ((top if is_cut else highest) - lowest) or 0.1
    return cls(lowest - pad, top if is_cut else highest + pad, is_cut)

  def where(self, level: float) -> str:
    """Says where a level is that the axis does not show; empty for one that it shows."""
    return ' (above)' if level > self.high else ' (below)' if level < self.low else ''

  def draw_marks(self, axis: Axes, lines: Sequence[Line]) -> None:
    """Sets the limits, and marks means above them, of fewer seeds and where a run diverged.

    Marks above the axis that have the same x are drawn beside each other.
    """
    axis.set_ylim(self.low, self.high)
    above: dict[float, list[tuple[Any, dict[str, Any]]]] = {}
    for line in lines:
      diverged = line.means.index.isin(line.diverged)
      is_above = (line.means > self.high).to_numpy() & self.is_cut
      lacking = line.means.index.isin(line.lacking)
      axis.plot(line.means[lacking & ~is_above], color=line.colour, **_FEWER)
      axis.plot(line.means[diverged & ~is_above], color=line.colour, **style.CROSS)
      for x in line.means.index[is_above]:
        look = style.CROSS if x in line.diverged else _ABOVE
        above.setdefault(x, []).append((line.colour, look))
    at_edge = blended_transform_factory(axis.transData, axis.transAxes)
    step = 1.1 * matplotlib.rcParams['lines.markersize']
    for x, marks in above.items():
      for i, (colour, look) in enumerate(marks):
        points = step * (i - (len(marks) - 1) / 2)
        beside = ScaledTranslation(points / 72, 0, axis.get_figure().dpi_scale_trans)
        axis.plot(x, 1, color=colour, clip_on=False, transform=at_edge + beside, **look)

  def handles(self) -> list[Line2D]:
    """The legend entry of what lies above the axis, if anything does."""
    if not self.is_cut:
      return []
    text = f'above {self.high:.2f}: drawn\nat the top edge'
    return [style.handle(text, **_ABOVE)]


def fewer_seeds_handle(lines: Iterable[Line]) -> list[Line2D]:
  """The legend entry of the means of fewer seeds, if there are any."""
  return [style.handle('seeds missing', **_FEWER)] if any(line.lacking for line in lines) else []
