"""Building blocks of the figures: style, colours, panels, axes and legends."""

import io
import math
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.instability import UNSTABLE_LOGIT
from stability.analysis.results import Results
from stability.errors import BadInput
from stability.report import labels

WIDTH = 8  # inches; at a displayed width of 800 pixels, one point is 1.4 pixels
MAX_COLUMNS = 4  # of panels
MAX_PANELS = 40  # hundreds take minutes to draw and cannot be read
MAX_LINES = 200  # with different labels
STYLE = {
    'font.family': 'DejaVu Sans',  # comes with Matplotlib, so that every machine has it
    'font.size': 9,
    'axes.titlesize': 9.5,
    'figure.labelsize': 10,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#888888',
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#e6e6e6',
    'grid.linewidth': 0.6,
    'xtick.color': '#444444',
    'ytick.color': '#444444',
    'xtick.minor.size': 0,
    'ytick.minor.size': 0,
    'lines.linewidth': 1.6,
    'lines.markersize': 4.5,
    'figure.constrained_layout.use': True,
    'text.parse_math': False,  # a $ in a field's value is a dollar sign
    'svg.fonttype': 'path',  # looks the same in every browser
    'svg.hashsalt': 'stability',  # ids are not random, so equal figures give equal files
}
GREY = '#555555'
SIZE_COLOURS = ('viridis', 0.82, 0.0)  # larger is darker; the lightest is visible on white
RATE_COLOURS = ('plasma', 0.0, 0.85)  # higher is brighter
# The palette of Okabe and Ito, which most colour-blind readers can distinguish.
INTERVENTION_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
INTERVENTION_MARKERS = ('o', 's', '^', 'D', 'v', 'P')  # not as many as colours: pairs rarely repeat
RING = {'marker': 'o', 'markersize': 9, 'markerfacecolor': 'none', 'linestyle': ''}
CROSS = {'marker': 'x', 'markersize': 8, 'markeredgewidth': 2, 'linestyle': ''}
HOLLOW = {'markersize': 6, 'markerfacecolor': 'white', 'markeredgewidth': 1.3}
LOGIT_LABEL = 'highest attention logit of block 0\nover training'


class FigureTooLarge(BadInput):
  """A figure would have too many panels or lines."""


styled = matplotlib.rc_context(STYLE)


@styled
def save(figure: Figure, kind: str) -> bytes:
  """The content of a figure's file of kind svg or png. Equal figures give equal bytes."""
  content = io.BytesIO()
  metadata = {'Date': None} if kind == 'svg' else None
  figure.savefig(content, format=kind, dpi=200, metadata=metadata)
  return content.getvalue()


# Runs prepared for figures.


def labelled(results: Results, curves: pd.DataFrame | None = None) -> pd.DataFrame:
  """The runs with added columns for figures.

  Columns: loss (min(final, initial), nats), rate and size (labels) and, if there are curves, logit
  (the highest attention logit of block 0).
  """
  runs = results.runs.assign(loss=lr_sensitivity.counted_loss(results.runs))
  runs['rate'] = runs['learning_rate'].map(labels.number)
  runs['size'] = labels.sizes(runs, results.sizes)
  if curves is not None:
    highest = curves.groupby('run', observed=True)[results_lib.LOGIT].max()
    runs['logit'] = runs['run'].map(highest)
  return runs


def panels(results: Results, runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
  """Label of an intervention -> its runs."""
  split = results_lib.split(runs, results.groups)
  return {labels.pairs(results.groups, values): of_panel for values, of_panel in split}


def colours(
    runs: pd.DataFrame, name: str, order: str, palette: tuple[str, float, float]
) -> dict[str, tuple]:
  """A colour for each entry of the column `name`, in the order of the column `order`."""
  entries = runs.sort_values(order, kind='stable')[name].unique()
  _check(len(entries), MAX_LINES, 'lines')
  colormap, first, last = palette
  colours = matplotlib.colormaps[colormap](np.linspace(first, last, len(entries)))
  return dict(zip(entries, map(tuple, colours), strict=True))


def padded(values: pd.Series) -> tuple[float, float]:
  """Limits of an axis that shows these values, with a margin."""
  margin = 0.06 * (values.max() - values.min()) or 0.1
  return values.min() - margin, values.max() + margin


def ceiling(runs: pd.DataFrame, losses: pd.Series) -> float:
  """The highest loss to show; it is limited, since exploding runs would flatten all others."""
  return np.nanmin([losses.max(), 1.3 * runs['initial_loss'].mean()])


# Panels, axes and legends.


def grid(
    titles: list[str], height: float, rows: int = 1, ax: Axes | None = None
) -> tuple[Figure, np.ndarray]:
  """Makes a figure with a panel per title, of `rows` axes below each other.

  Args:
    titles: the titles of the panels.
    height: the height of each of the axes, in inches.
    rows: the number of axes in a panel.
    ax: axes to use instead, for a figure with a single panel and row.

  Returns:
    The figure and its axes [panel, row].
  """
  if ax is not None:
    if len(titles) * rows > 1:
      raise BadInput(f'ax: the figure has {len(titles) * rows} panels; leave ax out to draw it')
    ax.set_title(labels.wrapped(_short(titles[0]), 68))
    return ax.figure, np.array([[ax]])
  _check(len(titles), MAX_PANELS, 'panels')
  panel_rows = math.ceil(len(titles) / MAX_COLUMNS)
  columns = math.ceil(len(titles) / panel_rows)
  figure = Figure(figsize=(WIDTH, height * rows * panel_rows))
  grid = figure.subplots(panel_rows * rows, columns, squeeze=False, sharex=True)
  axes = grid.reshape(panel_rows, rows, columns).transpose(0, 2, 1).reshape(-1, rows)
  for axis in axes[len(titles) :].flat:
    axis.remove()
  axes = axes[: len(titles)]
  for i, (column, title) in enumerate(zip(axes, titles, strict=True)):
    column[0].set_title(labels.wrapped(_short(title), 68 // columns))
    column[-1].tick_params(labelbottom=True)
    if i:
      for axis, first in zip(column, axes[0], strict=True):
        axis.sharey(first)
        axis.tick_params(labelleft=i % columns == 0)
  return figure, axes


def _check(count: int, most: int, what: str) -> None:
  if count > most:
    raise FigureTooLarge(f'Not drawn: it would have {count:,} {what}, more than {most}.')


def line(
    axis: Axes, runs: pd.DataFrame, x: str, y: str, average: str, colour: tuple
) -> pd.Series:
  """Draws the average of y over seeds (mean or median) and its range; returns the averages."""
  band = runs.astype({x: float}).groupby(x)[y].agg([average, 'min', 'max']).dropna()
  axis.plot(band[average], color=colour, marker='o')
  axis.fill_between(band.index, band['min'], band['max'], color=colour, alpha=0.2, linewidth=0)
  return band[average]


def learning_rate_axis(axis: Axes) -> None:
  """Formats x as an axis of learning rates."""
  axis.set_xscale('log')
  plain_ticks(axis.xaxis, (1,))


def parameters_axis(axis: Axes, parameters: pd.Series) -> None:
  """Formats x as an axis of sizes, with ticks at as many of them as fit."""
  axis.set_xscale('log')
  plain_ticks(axis.xaxis, (1,), labels.parameters)
  sizes = sorted(set(parameters[parameters > 0].astype(float)))
  spec = axis.get_gridspec()  # None for axes that were placed by hand
  min_gap = 0.07 * (spec.ncols if spec else 1) * math.log(sizes[-1] / sizes[0])
  shown = sizes[:1]
  for size in sizes[1:]:
    if math.log(size / shown[-1]) >= min_gap:
      shown.append(size)
  axis.xaxis.set_major_locator(ticker.FixedLocator(shown))


def ratio_axis(axis: Axes, values: pd.DataFrame) -> None:
  """Formats y as a log axis over a factor of 4 or more, since noise must not look like a trend."""
  axis.set_yscale('log')
  logs = np.log(values.where(values > 0))
  middle = (logs.max(axis=None) + logs.min(axis=None)) / 2
  half = max(math.log(2), 0.6 * (logs.max(axis=None) - logs.min(axis=None)))
  axis.set_ylim(math.exp(middle - half), math.exp(middle + half))
  plain_ticks(axis.yaxis, (1, 2, 3, 5, 7), '{:g}'.format)


def logit_axis(axis: Axes) -> None:
  """Formats y as an axis of attention logits, with a line at UNSTABLE_LOGIT."""
  axis.set_yscale('log')
  plain_ticks(axis.yaxis, (1,))
  axis.axhline(UNSTABLE_LOGIT, color=GREY, linestyle='--', linewidth=1.1)


def plain_ticks(
    axis: XAxis | YAxis, multiples: tuple[float, ...], text: Callable[[float], str] = labels.number
) -> None:
  """Sets labelled ticks at these multiples of powers of ten."""
  axis.set_major_locator(ticker.LogLocator(subs=multiples))
  axis.set_minor_locator(ticker.NullLocator())
  # Rounded: a tick may be 3.0000000000000004e-1.
  axis.set_major_formatter(lambda value, position: text(float(f'{value:.6g}')))


def _short(text: str) -> str:
  """The text, cut in the middle if it would leave no room and take minutes to draw."""
  return text if len(text) <= 160 else f'{text[:100]} ... {text[-50:]}'


def handle(label: str, **look) -> Line2D:
  """A legend entry."""
  return Line2D([], [], label=_short(label), **({'color': GREY} | look))


def logit_handle() -> Line2D:
  """The legend entry of the line in logit_axis."""
  return handle('1e4: unstable\nin the paper', linestyle='--', linewidth=1.1)


def diverged_handle(runs: pd.DataFrame) -> list[Line2D]:
  """The legend entry of diverged runs, if there are any."""
  return [handle('diverged', **CROSS)] if (runs['status'] == 'diverged').any() else []


def handles(colours: dict[str, tuple]) -> list[Line2D]:
  """The legend entries of lines in these colours."""
  return [handle(name, color=colour, marker='o') for name, colour in colours.items()]


def finish(
    figure: Figure, x: str, y: str, entries: list[Line2D], title: str, ax: Axes | None = None
) -> None:
  """Adds axis labels and a legend with a title, beside all axes or, if `ax` is given, within it."""
  _check(len(entries), MAX_LINES, 'lines')
  if ax is not None:
    ax.set_xlabel(_short(x))
    ax.set_ylabel(y or ax.get_ylabel())
    if entries:
      ax.legend(handles=entries, title=title)
    return
  figure.supxlabel(_short(x))
  figure.supylabel(y)
  if entries:
    lines = sum(1 + entry.get_label().count('\n') for entry in entries)
    figure.set_figheight(max(figure.get_figheight(), 0.6 + 0.22 * lines))
    figure.legend(
        handles=entries, title=title, loc='outside right center', alignment='left', labelspacing=0.7
    )
