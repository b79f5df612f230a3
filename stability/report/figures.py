"""The figures: a function each, from results to a matplotlib figure."""

import io
import math
import textwrap
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stability.analysis import sensitivity, tables
from stability.analysis.tables import Results
from stability.report import labels

UNSTABLE_LOGIT = 1e4  # runs whose attention logits passed it diverged (paper section 3.3)

WIDTH = 8  # inches; shown at 800 pixels, a point is then 1.4 pixels
ACROSS = 4  # panels side by side, at most
STYLE = {
    'font.family': 'DejaVu Sans',  # comes with matplotlib: the same letters on every machine
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
    'text.parse_math': False,  # a $ in a field's value is a dollar
    'svg.fonttype': 'path',  # the same in every browser
    'svg.hashsalt': 'stability',  # the same ids, hence the same file, every time
}
GREY = '#555555'
SIZE_COLOURS = ('viridis', 0.82, 0.0)  # the larger the darker; the lightest still shows on white
RATE_COLOURS = ('plasma', 0.0, 0.85)  # the higher the hotter
# Okabe and Ito's: most colour-blind readers tell them apart too.
INTERVENTION_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
INTERVENTION_MARKERS = ('o', 's', '^', 'D', 'v', 'P')  # not as many: few pairs repeat
RING = {'marker': 'o', 'markersize': 9, 'markerfacecolor': 'none', 'linestyle': ''}
CROSS = {'marker': 'x', 'markersize': 8, 'markeredgewidth': 2, 'linestyle': ''}
HOLLOW = {'markersize': 6, 'markerfacecolor': 'white', 'markeredgewidth': 1.3}
LOGIT_LABEL = 'highest attention logit of block 0\nover training'

_styled = matplotlib.rc_context(STYLE)


@_styled
def loss_by_learning_rate(results: Results, bigram_loss: float | None = None) -> Figure:
  """A panel per intervention, a line per size: mean over seeds of min(final, initial), their range.

  A cross marks a learning rate where a run diverged, a ring the best one.
  """
  runs = _labelled(results)
  sizes = _colours(runs, 'size', 'parameters', SIZE_COLOURS)
  panels = _panels(results, runs)
  figure, axes = _grid(list(panels), height=3.3)
  low, high = _padded(runs['loss'])
  handles = [*_handles(sizes), _handle('best', **RING), *_diverged_handle(runs)]
  levels = (('initial loss', runs['initial_loss'].mean(), ':'), ('bigram model', bigram_loss, '--'))
  for name, level, style in levels:
    if level is not None:
      where = ' (above)' if level > high else ' (below)' if level < low else ''
      handles.append(_handle(f'{name}\n{level:.2f}{where}', linestyle=style, linewidth=1.1))
      for axis in axes[:, 0]:
        axis.axhline(level, color=GREY, linestyle=style, linewidth=1.1)
  for axis, of_panel in zip(axes[:, 0], panels.values(), strict=True):
    for size, colour in sizes.items():
      of_size = of_panel[of_panel['size'] == size]
      line = _line(axis, of_size, 'learning_rate', 'loss', 'mean', colour)
      diverged = of_size['learning_rate'][of_size['status'] == 'diverged']
      axis.plot(line[line.index.isin(diverged)], color=colour, **CROSS)
      axis.plot(line[line == line.min()], color=colour, **RING)
    axis.set_ylim(low, high)
    _rate_axis(axis)
  _finish(figure, 'learning rate', 'validation loss (nats)', handles, 'parameters')
  return figure


@_styled
def sensitivity_by_parameters(results: Results, table: pd.DataFrame) -> Figure:
  """LR sensitivity against parameters, a line per intervention, with the table's intervals."""
  figure, axes = _grid([''], height=3.3)
  axis = axes[0, 0]
  handles = []
  for i, (values, rows) in enumerate(tables.split(table, results.groups)):
    look = {
        'marker': INTERVENTION_MARKERS[i % len(INTERVENTION_MARKERS)],
        'color': INTERVENTION_COLOURS[i % len(INTERVENTION_COLOURS)],
    }
    x, whole = rows['parameters'].astype(float), rows['missing'] == 0
    axis.plot(x[whole], rows['lr_sensitivity'][whole], markersize=6, **look)
    axis.plot(x[~whole], rows['lr_sensitivity'][~whole], linestyle='', **HOLLOW, **look)
    # Not errorbar: an interval by resampling need not contain the estimate.
    axis.vlines(x, rows['low'], rows['high'], color=look['color'], linewidth=5, alpha=0.35)
    name = textwrap.fill(labels.pairs(results.groups, values), 30, break_on_hyphens=False)
    handles.append(_handle(name, **look))
  if not results.groups:
    handles = []
  if (table['missing'] > 0).any():
    handles.append(_handle('undecided:\nruns missing', marker='o', linestyle='', **HOLLOW))
  _ratio_axis(axis, table[['lr_sensitivity', 'low', 'high']])
  _parameters_axis(axis, table['parameters'])
  _finish(figure, 'parameters', 'LR sensitivity (nats)', handles, '')
  return figure


@_styled
def logits_by_learning_rate(results: Results, curves: pd.DataFrame) -> Figure:
  """Highest attention logit of block 0 over training against learning rate, a line per size."""
  runs = _labelled(results, curves)
  sizes = _colours(runs, 'size', 'parameters', SIZE_COLOURS)
  figure = _logits(results, runs, 'learning_rate', 'size', sizes)
  for axis in figure.axes:
    _rate_axis(axis)
  _finish(figure, 'learning rate', LOGIT_LABEL, [*_handles(sizes), _logit_handle()], 'parameters')
  return figure


@_styled
def logits_by_parameters(results: Results, curves: pd.DataFrame) -> Figure:
  """Highest attention logit of block 0 over training against parameters, a line per LR."""
  runs = _labelled(results, curves)
  rates = _colours(runs, 'rate', 'learning_rate', RATE_COLOURS)
  figure = _logits(results, runs, 'parameters', 'rate', rates)
  for axis in figure.axes:
    _parameters_axis(axis, runs['parameters'])
  _finish(figure, 'parameters', LOGIT_LABEL, [*_handles(rates), _logit_handle()], 'learning rate')
  return figure


@_styled
def training_curves(results: Results, curves: pd.DataFrame) -> Figure:
  """Training loss and, beneath it, block 0's attention logit over the steps of the largest size.

  A column per intervention, a line per learning rate, of several seeds the first; a cross where a
  run diverged.
  """
  runs = _labelled(results)
  rates = _colours(runs, 'rate', 'learning_rate', RATE_COLOURS)
  logged = runs['run'].isin(curves['run'][curves['loss'].notna()])
  runs = runs[logged].sort_values('parameters', kind='stable')
  size = runs['size'].iloc[-1]
  runs = runs[runs['size'] == size]
  runs = runs[runs['seed'] == runs['seed'].min()]
  curves = curves[curves['run'].isin(runs['run'])].set_index('step')
  shown = ['loss']
  if curves[tables.LOGIT].notna().any():
    shown.append(tables.LOGIT)
  panels = _panels(results, runs)
  figure, axes = _grid(list(panels), height=2.5, rows=len(shown))
  for column, of_panel in zip(axes, panels.values(), strict=True):
    for _, run in of_panel.iterrows():
      for axis, name in zip(column, shown, strict=True):
        curve = curves[name][curves['run'] == run['run']].dropna()
        axis.plot(curve, color=rates[run['rate']], linewidth=1.2)
        if run['status'] == 'diverged':
          axis.plot(curve.iloc[-1:], color=rates[run['rate']], **CROSS)
    column[0].set_yscale('log')
    column[0].set_ylim(curves['loss'].min() / 1.05, _ceiling(runs, curves['loss']) * 1.05)
    _plain_ticks(column[0].yaxis, (1, 1.5, 2, 3, 4, 6, 8))
    for axis in column[1:]:
      _logit_axis(axis)
  axes[0, 0].set_ylabel('training loss (nats)')
  handles = [*_handles(rates), *_diverged_handle(runs)]
  if len(shown) > 1:
    axes[0, 1].set_ylabel('highest attention\nlogit of block 0')
    handles.append(_logit_handle())
  _finish(figure, f'step ({size} parameters)', '', handles, 'learning rate')
  return figure


@_styled
def save(figure: Figure, kind: str) -> bytes:
  """The figure as a file's content; kind is svg or png. Equal figures give equal bytes."""
  content = io.BytesIO()
  metadata = {'Date': None} if kind == 'svg' else None
  figure.savefig(content, format=kind, dpi=200, metadata=metadata)
  return content.getvalue()


# Runs as the figures need them.


def _labelled(results: Results, curves: pd.DataFrame | None = None) -> pd.DataFrame:
  """The runs with loss, the names of their lines and, given the curves, their highest logit."""
  runs = results.runs.assign(loss=sensitivity.counted_loss(results.runs))
  runs['rate'] = runs['learning_rate'].map(labels.number)
  runs['size'] = labels.sizes(runs, results.sizes)
  if curves is not None:
    highest = curves.groupby('run', observed=True)[tables.LOGIT].max()
    runs['logit'] = runs['run'].map(highest)
  return runs


def _panels(results: Results, runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
  """The runs of each intervention, under its name."""
  split = tables.split(runs, results.groups)
  return {labels.pairs(results.groups, values): of_panel for values, of_panel in split}


def _colours(
    runs: pd.DataFrame, name: str, order: str, palette: tuple[str, float, float]
) -> dict[str, tuple]:
  """A colour for each entry of column `name`, ordered by column `order`."""
  entries = runs.sort_values(order, kind='stable')[name].unique()
  colormap, first, last = palette
  colours = matplotlib.colormaps[colormap](np.linspace(first, last, len(entries)))
  return dict(zip(entries, map(tuple, colours), strict=True))


def _padded(values: pd.Series) -> tuple[float, float]:
  margin = 0.06 * (values.max() - values.min()) or 0.1
  return values.min() - margin, values.max() + margin


def _ceiling(runs: pd.DataFrame, losses: pd.Series) -> float:
  """The highest loss worth showing: runs that explode would flatten all others."""
  return np.nanmin([losses.max(), 1.3 * runs['initial_loss'].mean()])


# What the figures are made of.


def _grid(titles: list[str], height: float, rows: int = 1) -> tuple[Figure, np.ndarray]:
  """A figure and its axes [panel, row]: `rows` axes of `height` inches beneath each title."""
  down = math.ceil(len(titles) / ACROSS)
  across = math.ceil(len(titles) / down)
  figure = Figure(figsize=(WIDTH, height * rows * down))
  grid = figure.subplots(down * rows, across, squeeze=False, sharex=True)
  axes = grid.reshape(down, rows, across).transpose(0, 2, 1).reshape(-1, rows)
  for axis in axes[len(titles) :].flat:
    axis.remove()
  axes = axes[: len(titles)]
  for i, (column, title) in enumerate(zip(axes, titles, strict=True)):
    column[0].set_title(textwrap.fill(title, 68 // across, break_on_hyphens=False))
    column[-1].tick_params(labelbottom=True)
    if i:
      for axis, first in zip(column, axes[0], strict=True):
        axis.sharey(first)
        axis.tick_params(labelleft=i % across == 0)
  return figure, axes


def _line(
    axis: Axes, runs: pd.DataFrame, x: str, y: str, middle: str, colour: tuple
) -> pd.Series:
  """Draws the middle of y over seeds at each x, and their range; returns the line."""
  band = runs.astype({x: float}).groupby(x)[y].agg([middle, 'min', 'max']).dropna()
  axis.plot(band[middle], color=colour, marker='o')
  axis.fill_between(band.index, band['min'], band['max'], color=colour, alpha=0.2, linewidth=0)
  return band[middle]


def _logits(
    results: Results, runs: pd.DataFrame, x: str, line: str, colours: dict[str, tuple]
) -> Figure:
  """A panel per intervention of the highest attention logit against x."""
  panels = _panels(results, runs)
  figure, axes = _grid(list(panels), height=3.1)
  for axis, of_panel in zip(axes[:, 0], panels.values(), strict=True):
    for name, colour in colours.items():
      _line(axis, of_panel[of_panel[line] == name], x, 'logit', 'median', colour)
    _logit_axis(axis)
  return figure


def _rate_axis(axis: Axes) -> None:
  axis.set_xscale('log')
  _plain_ticks(axis.xaxis, (1,))


def _parameters_axis(axis: Axes, parameters: pd.Series) -> None:
  """Ticks at the sizes themselves, as many as have room."""
  axis.set_xscale('log')
  _plain_ticks(axis.xaxis, (1,), labels.parameters)
  sizes = sorted(set(parameters[parameters > 0].astype(float)))
  room = 0.07 * axis.get_gridspec().ncols * math.log(sizes[-1] / sizes[0])
  shown = sizes[:1]
  for size in sizes[1:]:
    if math.log(size / shown[-1]) >= room:
      shown.append(size)
  axis.xaxis.set_major_locator(ticker.FixedLocator(shown))


def _ratio_axis(axis: Axes, values: pd.DataFrame) -> None:
  """A log axis over a factor of at least 4, so that noise does not look like a trend."""
  axis.set_yscale('log')
  logs = np.log(values.where(values > 0))
  middle = (logs.max(axis=None) + logs.min(axis=None)) / 2
  half = max(math.log(2), 0.6 * (logs.max(axis=None) - logs.min(axis=None)))
  axis.set_ylim(math.exp(middle - half), math.exp(middle + half))
  _plain_ticks(axis.yaxis, (1, 2, 3, 5, 7), '{:g}'.format)


def _logit_axis(axis: Axes) -> None:
  axis.set_yscale('log')
  _plain_ticks(axis.yaxis, (1,))
  axis.axhline(UNSTABLE_LOGIT, color=GREY, linestyle='--', linewidth=1.1)


def _plain_ticks(
    axis: XAxis | YAxis, multiples: tuple[float, ...], text: Callable[[float], str] = labels.number
) -> None:
  """Ticks at multiples of powers of ten, written out."""
  axis.set_major_locator(ticker.LogLocator(subs=multiples))
  axis.set_minor_locator(ticker.NullLocator())
  # Rounded, for a tick may be 3.0000000000000004e-1.
  axis.set_major_formatter(lambda value, position: text(float(f'{value:.6g}')))


def _handle(label: str, **look) -> Line2D:
  return Line2D([], [], label=label, **({'color': GREY} | look))


def _logit_handle() -> Line2D:
  return _handle('1e4: unstable\nin the paper', linestyle='--', linewidth=1.1)


def _diverged_handle(runs: pd.DataFrame) -> list[Line2D]:
  return [_handle('diverged', **CROSS)] if (runs['status'] == 'diverged').any() else []


def _handles(colours: dict[str, tuple]) -> list[Line2D]:
  return [_handle(name, color=colour, marker='o') for name, colour in colours.items()]


def _finish(figure: Figure, x: str, y: str, handles: list[Line2D], title: str) -> None:
  figure.supxlabel(x)
  figure.supylabel(y)
  if handles:
    lines = sum(1 + handle.get_label().count('\n') for handle in handles)
    figure.set_figheight(max(figure.get_figheight(), 0.6 + 0.22 * lines))
    figure.legend(
        handles=handles, title=title, loc='outside right center', alignment='left', labelspacing=0.7
    )
