"""Building blocks of the figures: style, colours, panels, axes and legends."""

import contextlib
import contextvars
import functools
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.instability import UNSTABLE_LOGIT
from stability.analysis.results import Results
from stability.errors import BadInput
from stability.report import labels
from stability.report.plots import fonts

WIDTH = 8  # inches; at a displayed width of 800 pixels, one point is 1.4 pixels
NARROW = 5.5  # inches; narrower figures, such as a column of a paper, have their legend on top
NARROW_CHARACTERS = 28  # in a line of the y label of a narrow figure
PANEL_WIDTH = 1.6  # inches, the least that a panel needs
MAX_COLUMNS = 4  # of panels
MAX_PANELS = 40  # hundreds take minutes to draw and cannot be read
MAX_LINES = 200  # with different labels
STYLE = {
    'figure.figsize': (WIDTH, WIDTH),  # the height is that of the panels
    'font.family': fonts.families(),
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
# What differs in the files for a paper: their text can be searched and edited.
PAPER = {'svg.fonttype': 'none', 'pdf.fonttype': 42}
PAPER_NARROW = {
    'font.size': 7,
    'axes.titlesize': 7.5,
    'figure.labelsize': 8,
    'legend.borderpad': 0,
    'legend.handlelength': 1.5,
    'lines.linewidth': 1.1,
    'lines.markersize': 3,
    'xtick.major.pad': 2.5,
    'ytick.major.pad': 2.5,
}
# In axes of the user's own, everything else follows the user's settings.
_WITHIN = {'text.parse_math': False}
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


_style: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar(
    'style', default=MappingProxyType(STYLE)
)


@contextlib.contextmanager
def for_paper(width: float) -> Iterator[None]:
  """A context in which figures are drawn and saved for a paper, `width` inches wide."""
  narrow = PAPER_NARROW if width < NARROW else {}
  token = _style.set({**STYLE, **PAPER, **narrow, 'figure.figsize': (width, width)})
  try:
    yield
  finally:
    _style.reset(token)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
  """Draws a figure in the style of the report; in axes `ax` of the user, in the user's style."""

  @functools.wraps(draw)
  def draw_in_style(*arguments, ax: Axes | None = None, **options) -> Figure:
    with matplotlib.rc_context(dict(_style.get()) if ax is None else _WITHIN), fonts.missing_once():
      return draw(*arguments, ax=ax, **options)

  return draw_in_style


def save(figure: Figure, kind: str) -> bytes:
  """The content of a figure's file of kind svg, png or pdf. Equal figures give equal bytes."""
  content = io.BytesIO()
  metadata = {'svg': {'Date': None}, 'pdf': {'CreationDate': None}}.get(kind)
  with matplotlib.rc_context(dict(_style.get())), fonts.missing_once():
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
  return by_label(
      (labels.pairs(results.groups, values), of_panel)
      for values, of_panel in results_lib.split(runs, results.groups)
  )


def by_label(panels: Iterable[tuple[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
  """A dict of panels; BadInput if labels that a person gave are equal."""
  found = list(panels)
  labels.refuse_equal([label for label, _ in found], 'arms')
  return dict(found)


def colours(
    runs: pd.DataFrame, name: str, order: str, palette: tuple[str, float, float]
) -> dict[str, tuple]:
  """A colour for each entry of the column `name`, in the order of the column `order`."""
  entries = runs.sort_values(order, kind='stable')[name].unique()
  _check(len(entries), MAX_LINES, 'lines')
  colormap, first, last = palette
  colours = matplotlib.colormaps[colormap](np.linspace(first, last, len(entries)))
  return dict(zip(entries, map(tuple, colours), strict=True))


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
    ax.set_title(labels.wrapped(_short(titles[0]), _characters(_width(ax) / 72)))
    return ax.figure, np.array([[ax]])
  _check(len(titles), MAX_PANELS, 'panels')
  width = matplotlib.rcParams['figure.figsize'][0]
  most_columns = max(1, min(MAX_COLUMNS, int(width / PANEL_WIDTH)))
  panel_rows = math.ceil(len(titles) / most_columns)
  columns = math.ceil(len(titles) / panel_rows)
  height *= min(1, (1 + 2 * width / WIDTH) / 3)  # panels of narrow figures are less high
  titles = [labels.wrapped(_short(title), _characters(width) // columns) for title in titles]
  lines = max(title.count('\n') for title in titles)  # beside the first
  title_height = lines * 1.3 * _points('axes.titlesize') / 72
  figure = Figure(figsize=(width, (height * rows + title_height) * panel_rows))
  grid = figure.subplots(panel_rows * rows, columns, squeeze=False, sharex=True)
  axes = grid.reshape(panel_rows, rows, columns).transpose(0, 2, 1).reshape(-1, rows)
  for axis in axes[len(titles) :].flat:
    axis.remove()
  axes = axes[: len(titles)]
  for i, (column, title) in enumerate(zip(axes, titles, strict=True)):
    column[0].set_title(title)
    column[-1].tick_params(labelbottom=True)
    if i:
      for axis, first in zip(column, axes[0], strict=True):
        axis.sharey(first)
        axis.tick_params(labelleft=i % columns == 0)
  return figure, axes


def _characters(width: float) -> int:
  """How many characters of a title fit beside each other on a figure of `width` inches."""
  of_panels = 0.83 if width < NARROW else 0.68  # the rest are tick labels and a legend beside them
  return int(72 * width * of_panels / (0.6 * _points('axes.titlesize')))


def _points(setting: str) -> float:
  """The size of a font in points, which Matplotlib's setting may give as a word."""
  return FontProperties(size=matplotlib.rcParams[setting]).get_size_in_points()


def _check(count: int, most: int, what: str) -> None:
  if count > most:
    raise FigureTooLarge(f'Not drawn: it would have {count:,} {what}, more than {most}.')


def line(
    axis: Axes, runs: pd.DataFrame, x: str, y: str, average: str, colour: tuple
) -> pd.Series:
  """Draws the average of y over seeds (mean or median) and its range; returns the averages."""
  band = runs[[x, y]].astype({x: float}).groupby(x)[y].agg([average, 'min', 'max']).dropna()
  axis.plot(band[average], color=colour, marker='o')
  axis.fill_between(band.index, band['min'], band['max'], color=colour, alpha=0.2, linewidth=0)
  return band[average]


def medians(
    results: Results,
    runs: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    colours: dict[str, tuple],
    ax: Axes | None,
) -> tuple[Figure, np.ndarray]:
  """Draws the median of y over seeds in a panel per intervention, with a line per entry of `by`."""
  of_panels = panels(results, runs)
  figure, axes = grid(list(of_panels), height=3.1, ax=ax)
  for axis, of_panel in zip(axes[:, 0], of_panels.values(), strict=True):
    for name, colour in colours.items():
      line(axis, of_panel[of_panel[by] == name], x, y, 'median', colour)
  return figure, axes[:, 0]


def learning_rate_axis(axis: Axes) -> None:
  """Formats x as an axis of learning rates."""
  axis.set_xscale('log')
  plain_ticks(axis.xaxis, (1,))


def parameters_axis(axis: Axes, parameters: pd.Series) -> None:
  """Formats x as an axis of sizes, with ticks at as many of them as fit."""
  axis.set_xscale('log')
  plain_ticks(axis.xaxis, (1,), labels.parameters)
  sizes = sorted(set(parameters[parameters > 0].astype(float)))
  axis.xaxis.set_major_locator(ticker.FixedLocator(_that_fit(axis, sizes)))


def _that_fit(axis: Axes, values: list[float]) -> list[float]:
  """Those of the values, in ascending order, whose labels fit beside each other on a log x axis."""
  min_gap = 3.5 * _points('xtick.labelsize') / _width(axis) * math.log(values[-1] / values[0])
  shown = values[:1]
  for value in values[1:]:
    if math.log(value / shown[-1]) >= min_gap:
      shown.append(value)
  return shown


def _width(axis: Axes) -> float:
  """The width of axes in points, before legends and labels take their share."""
  return axis.get_window_extent().width / axis.get_figure().dpi * 72


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
  """Adds axis labels and a legend with a title.

  The legend is beside all axes, above them in a narrow figure, or within `ax` if it is given.
  """
  _check(len(entries), MAX_LINES, 'lines')
  x, y, title = labels.text(x), labels.text(y), labels.text(title)
  if ax is not None:
    ax.set_xlabel(_short(x))
    ax.set_ylabel(y or ax.get_ylabel())
    if entries:
      ax.legend(handles=entries, title=title)
    return
  figure.supxlabel(_short(x))
  if figure.get_figwidth() < NARROW:
    of_panels = figure.get_figheight()
    if entries:
      _legend_on_top(figure, entries, title)
    middle = 0.5 * of_panels / figure.get_figheight()
    figure.supylabel(labels.wrapped(y.replace('\n', ' '), NARROW_CHARACTERS), y=middle)
    return
  figure.supylabel(y)
  if not entries:
    return
  lines = sum(1 + entry.get_label().count('\n') for entry in entries)
  figure.set_figheight(max(figure.get_figheight(), 0.6 + 0.22 * lines))
  figure.legend(
      handles=entries, title=title, loc='outside right center', alignment='left', labelspacing=0.7
  )


def _legend_on_top(figure: Figure, entries: list[Line2D], title: str) -> None:
  """A legend in as many columns as fit above the panels of a narrow figure, which grows.

  Beneath the panels, Matplotlib would draw it over the x label.
  """
  size = matplotlib.rcParams['font.size']
  longest = max(len(line) for entry in entries for line in entry.get_label().split('\n'))
  columns = int(72 * figure.get_figwidth() / (size * (0.62 * longest + 3.5)))
  columns = max(1, min(columns, len(entries)))
  rows = math.ceil(len(entries) / columns)
  lines = rows * max(1 + entry.get_label().count('\n') for entry in entries) + bool(title)
  figure.set_figheight(figure.get_figheight() + lines * 1.3 * size / 72)
  figure.legend(
      handles=entries,
      title=title,
      loc='outside upper center',
      alignment='left',
      ncols=columns,
      columnspacing=1.0,
      labelspacing=0.3,
  )
