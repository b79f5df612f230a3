"""Figures of a leaderboard: the front, and the curve of each arm against that of the baseline."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis.leaderboard import table as table_lib
from stability.analysis.results import Results
from stability.report import labels
from stability.report.plots import loss_axis, style

# The axis of best losses ends at this fraction of what the baseline learned, above its best loss.
_SHOWN = 0.1
_MIN_GAP = 0.045  # between the labels of arms, as a fraction of the height of the axes
_FOR_NAMES = 5  # times the pad of the right end, at the left end
_MAX_LABELS = 18  # in a panel
_MAX_NAME = 40  # characters
_FRONT, _OTHER, _BASELINE = '#0072B2', '#9a9a9a', '#D55E00'


@style.styled
def front(results: Results, table: pd.DataFrame, ax: Axes | None = None) -> Figure:
  """Headroom against best loss relative to the baseline's: a panel per size.

  A triangle is a lower bound of headroom. Arms whose loss is beyond the axis are at its right end.
  """
  sizes = table_lib.sizes(results)
  parts = [
      _positions(part, size.initial_loss)
      for part, size in zip(_by_size(table), sizes, strict=True)
      if not np.isnan(part['best_loss'].iloc[0])
  ]
  titles = [f'{labels.parameters(part["parameters"].iloc[0])} parameters' for part in parts]
  figure, axes = style.grid(titles, height=4.4, ax=ax)
  everything = pd.concat(parts)
  drawn = everything.dropna(subset=['headroom'])  # without arms that lack runs or rates
  low, high = drawn['x'].min(), drawn['x'].max()
  pad = 0.05 * (high - low) or 0.02
  for axis, part in zip(axes[:, 0], parts, strict=True):
    axis.set_yscale('log')
    style.plain_ticks(axis.yaxis, (1, 2, 3, 5), '{:g}'.format)
    axis.set_xlim(low - _FOR_NAMES * pad, high + pad)
    axis.set_ylim(everything['headroom'].min() / 1.2, everything['headroom'].max() * 1.5)
    _front_of_size(axis, part.dropna(subset=['x', 'headroom']))
  baseline = everything['arm'].iloc[0]
  handles = [
      style.handle('on the front', color=_FRONT, marker='o'),
      style.handle(f'baseline:\n{_shortened(baseline)}', color=_BASELINE, marker='s', linestyle=''),
      style.handle('other arms', color=_OTHER, marker='o', linestyle=''),
  ]
  if everything['censored'].str.contains('headroom>=').any():
    handles.append(style.handle('at least this\nheadroom', marker='^', linestyle=''))
  x = "best loss minus the baseline's (nats)"
  style.finish(figure, x, 'headroom', handles, '', ax=ax)
  return figure


def _by_size(table: pd.DataFrame) -> list[pd.DataFrame]:
  """The rows of each size, which begin with the baseline."""
  return [part for _, part in table.groupby(table['is_baseline'].cumsum())]


def _positions(rows: pd.DataFrame, initial_loss: float) -> pd.DataFrame:
  """The rows of a size with the column x."""
  reference = rows['best_loss'].iloc[0]
  end = _SHOWN * (initial_loss - reference)
  return rows.assign(x=(rows['best_loss'] - reference).clip(upper=end))


def _front_of_size(axis: Axes, rows: pd.DataFrame) -> None:
  on_front = rows[rows['front']].sort_values('x')
  axis.step(on_front['x'], on_front['headroom'], color=_FRONT, linewidth=1.1, where='post')
  for row in rows.itertuples():
    colour = _BASELINE if row.is_baseline else _FRONT if row.front else _OTHER
    marker = '^' if 'headroom>=' in row.censored else 's' if row.is_baseline else 'o'
    above = 3 + 2 * row.is_baseline + row.front
    axis.plot(row.x, row.headroom, color=colour, marker=marker, zorder=above)
  _label(axis, on_front.sort_values('headroom')[:_MAX_LABELS])


def _label(axis: Axes, rows: pd.DataFrame) -> None:
  """Writes the names to the left of their points, where no arm can be: it would be on the front.

  Names that would overlap are moved up; a thin line leads to the point.
  """
  low, high = np.log10(axis.get_ylim())
  wanted = (np.log10(rows['headroom']) - low) / (high - low)
  left, right = axis.get_xlim()
  placed = -np.inf
  for row, height in zip(rows.itertuples(), wanted, strict=True):
    placed = max(height, placed + _MIN_GAP)
    text = axis.annotate(
        _shortened(row.arm),
        (row.x, row.headroom),
        xytext=(row.x - 0.02 * (right - left), placed),
        textcoords=('data', 'axes fraction'),
        arrowprops={'arrowstyle': '-', 'color': _FRONT, 'linewidth': 0.5, 'shrinkA': 0},
        fontsize='small',
        color=_FRONT,
        ha='right',
        va='center',
        zorder=6,
    )
    text.set_in_layout(False)  # a long name must not shrink the axes


def _shortened(name: str) -> str:
  return name if len(name) <= _MAX_NAME else f'{name[:_MAX_NAME]} ...'


@style.styled
def curves(
    results: Results,
    table: pd.DataFrame,
    sizes: Sequence[table_lib.Size],
    place: str,
    ax: Axes | None = None,
) -> Figure:
  """Mean loss over seeds against learning rate: a panel per arm of a place, a colour per size.

  The dashed lines are those of the baseline.
  """
  wanted = list(dict.fromkeys(table['arm'][(table['place'] == place) & ~table['is_baseline']]))
  runs = style.labelled(results)
  names = table_lib.names(results)
  baselines = [next(iter(size.arms.values())) for size in sizes]
  colours = style.colours(runs, 'size', 'parameters', style.SIZE_COLOURS)
  shown = runs[names.isin([*(base.name for base in baselines), *wanted])]
  of_size = [runs['size'][base.runs.index[0]] for base in baselines]
  palette = [colours[label] for label in of_size]
  panels = {}
  for name in wanted:
    values = runs[results.groups][names == name].iloc[0]
    panels[labels.pairs(results.groups, values)] = name
  figure, axes = style.grid(list(panels), height=1.75, ax=ax)
  losses, drawn = loss_axis.LossAxis.of(results, shown), []
  for axis, name in zip(axes[:, 0], panels.values(), strict=True):
    lines = []
    for size, base, colour in zip(sizes, baselines, palette, strict=True):
      axis.plot(base.losses.mean(axis='columns'), color=style.GREY, linestyle='--', linewidth=1.1)
      if name in size.arms:
        arm = size.arms[name]
        mean = arm.losses.mean(axis='columns').dropna()
        axis.plot(mean, color=colour, marker='o', markersize=3)
        best = mean[(mean == mean.min()) & (mean < size.initial_loss)]
        axis.plot(best, color=colour, **style.RING)
        lines.append(loss_axis.Line.of(mean, arm.runs, 'learning_rate', colour))
    style.learning_rate_axis(axis)
    losses.draw_marks(axis, lines)
    drawn += lines
  handles = [style.handle(of, color=c, marker='o') for of, c in zip(of_size, palette, strict=True)]
  handles += [style.handle('baseline', linestyle='--', linewidth=1.1)]
  handles += [style.handle('best', **style.RING), *style.diverged_handle(shown), *losses.handles()]
  handles += loss_axis.fewer_seeds_handle(drawn)
  style.finish(figure, 'learning rate', 'validation loss (nats)', handles, 'parameters', ax=ax)
  return figure
