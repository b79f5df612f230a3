"""Figures of probes, and of the loss against numbers that a sweep varies."""

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis import results as results_lib
from stability.analysis.results import Results
from stability.report import labels
from stability.report.plots import loss_axis, style

LAYER = 'block_0/mlp/up'  # the layer whose gradients the paper shows (section 3.4)
GRADIENT, UPDATE = f'gradient_rms/{LAYER}', f'update_rms/{LAYER}'
EPS = 'optimizer.eps'
NORMS = {  # probe -> label; attention logits are the product of these
    'block_0/query_norm': 'query norm',
    'block_0/key_norm': 'key norm',
    'block_0/query_key_cosine': 'cosine',
}
MIN_VALUES = 3  # a field with fewer values gets no figure of its own


def output_rms(results: Results) -> str | None:
  """The output probe that is drawn; None if a size has no block."""
  if 'model.depth' not in results.runs or results.runs['model.depth'].min() < 1:
    return None
  return results_lib.output_probe(results.runs)


def probes(results: Results) -> list[str]:
  """The probes that these figures need."""
  return list(filter(None, [GRADIENT, UPDATE, output_rms(results), *NORMS]))


def numbers(results: Results) -> list[str]:
  """The swept numeric fields with at least MIN_VALUES values; the first of those that covary."""
  found = []
  for field in results.groups:
    values = results.runs[field]
    has_axis = pd.api.types.is_numeric_dtype(values) and values.nunique() >= MIN_VALUES
    if has_axis and all(values.groupby(results.runs[other]).nunique().max() > 1 for other in found):
      found.append(field)
  return found


def axis_label(results: Results, field: str) -> str:
  """The label of a swept number on its axis."""
  shown, short = (names(results.groups)[field] for names in (labels.fields, labels.short_names))
  return short.replace('_', ' ') if shown == short else shown


@style.styled
def loss_by_number(results: Results, field: str, ax: Axes | None = None) -> Figure:
  """Final loss against a swept number, with a panel per size and intervention and a line per LR.

  Fields that are a function of the number, such as a warm-up in proportion to the steps, add no
  panels. A model without blocks is a horizontal line in all panels.
  """
  runs = style.labelled(results)
  blocks = runs
  if 'model.depth' in results.sizes:
    blocks = runs[runs['model.depth'] > 0]
  rates = style.colours(blocks, 'rate', 'learning_rate', style.RATE_COLOURS)
  panels = _panels(blocks, results, field)
  figure, axes = style.grid(list(panels), height=2.8, ax=ax)
  losses = loss_axis.LossAxis.of(results, runs)
  handles = [*style.handles(rates), *style.diverged_handle(blocks), *losses.handles()]
  if len(blocks) < len(runs):
    level = runs.drop(blocks.index)['loss'].mean()
    handles.append(style.handle('no blocks:\na bigram model', linestyle='--', linewidth=1.1))
    for axis in axes[:, 0]:
      axis.axhline(level, color=style.GREY, linestyle='--', linewidth=1.1)
  drawn = []
  for axis, of_panel in zip(axes[:, 0], panels.values(), strict=True):
    lines = []
    for name, colour in rates.items():
      of_rate = of_panel[of_panel['rate'] == name]
      line = style.line(axis, of_rate, field, 'loss', 'mean', colour)
      lines.append(loss_axis.Line.of(line, of_rate, field, colour))
    _number_axis(axis, runs[field])
    losses.draw_marks(axis, lines)
    drawn += lines
  handles += loss_axis.fewer_seeds_handle(drawn)
  name = axis_label(results, field)
  style.finish(figure, name, 'validation loss (nats)', handles, 'learning rate', ax=ax)
  return figure


@style.styled
def gradients(results: Results, curves: pd.DataFrame, ax: Axes | None = None) -> Figure:
  """Gradient RMS and update RMS of block 0's first MLP layer at the end of training.

  The x axis is eps if the sweep varies it, otherwise parameters. A panel per intervention, a line
  per learning rate. The dashed line is eps.
  """
  x = EPS if EPS in numbers(results) else 'parameters'
  runs = style.labelled(results)
  rates = style.colours(runs, 'rate', 'learning_rate', style.RATE_COLOURS)
  shown = {GRADIENT: 'gradient RMS', UPDATE: 'update RMS'}
  for probe in shown:
    runs[probe] = runs['run'].map(results_lib.at_end(curves, probe))
  panels = _panels(runs, results, x) if x == EPS else style.panels(results, runs)
  figure, axes = style.grid(list(panels), height=2.2, rows=len(shown), ax=ax)
  for column, of_panel in zip(axes, panels.values(), strict=True):
    for axis, probe in zip(column, shown, strict=True):
      for name, colour in rates.items():
        style.line(axis, of_panel[of_panel['rate'] == name], x, probe, 'median', colour)
      _power_axis(axis, runs[probe])
      if x == EPS:
        _number_axis(axis, runs[x])
      else:
        style.parameters_axis(axis, runs['parameters'])
    if EPS in of_panel:
      eps = of_panel.groupby(x)[EPS].max()
      # Drawn after the limits of the axis are set, so that they depend on the gradients alone.
      column[0].plot(eps, color=style.GREY, linestyle='--', linewidth=1.1)
  for axis, name in zip(axes[0], shown.values(), strict=True):
    axis.set_ylabel(name)
  handles = style.handles(rates)
  if EPS in runs:
    handles.append(style.handle(_eps_label(runs), linestyle='--', linewidth=1.1))
  style.finish(figure, 'eps' if x == EPS else 'parameters', '', handles, 'learning rate', ax=ax)
  return figure


@style.styled
def outputs(results: Results, curves: pd.DataFrame, ax: Axes | None = None) -> Figure:
  """RMS of a block's output at the end of training against parameters; a line per LR."""
  probe = output_rms(results)
  runs = style.labelled(results)
  runs['rms'] = runs['run'].map(results_lib.at_end(curves, probe))
  rates = style.colours(runs, 'rate', 'learning_rate', style.RATE_COLOURS)
  figure, axes = style.medians(results, runs, 'parameters', 'rms', 'rate', rates, ax)
  for axis in axes:
    _power_axis(axis, runs['rms'])
    style.parameters_axis(axis, runs['parameters'])
  block = probe.split('/')[0].replace('_', ' ')
  name = f'RMS of the output of {block}\nat the end of training'
  style.finish(figure, 'parameters', name, style.handles(rates), 'learning rate', ax=ax)
  return figure


@style.styled
def by_learning_rate(
    results: Results, curves: pd.DataFrame, probe: str, ax: Axes | None = None
) -> Figure:
  """Any probe at the end of training against learning rate; a line per size."""
  runs = style.labelled(results)
  runs['probe'] = runs['run'].map(results_lib.at_end(curves, probe))
  sizes = style.colours(runs, 'size', 'parameters', style.SIZE_COLOURS)
  figure, axes = style.medians(results, runs, 'learning_rate', 'probe', 'size', sizes, ax)
  for axis in axes:
    style.learning_rate_axis(axis)
    if runs['probe'].min() > 0:
      _power_axis(axis, runs['probe'])
  name = f'{labels.wrapped(labels.printable(probe), 40)}\nat the end of training'
  style.finish(figure, 'learning rate', name, style.handles(sizes), 'parameters', ax=ax)
  return figure


@style.styled
def norms(results: Results, curves: pd.DataFrame, ax: Axes | None = None) -> Figure:
  """Norms of block 0's queries and keys, and their cosine, over steps, for the largest size.

  A column per intervention, a line per learning rate, with the first seed only.
  """
  runs = style.labelled(results)
  rates = style.colours(runs, 'rate', 'learning_rate', style.RATE_COLOURS)
  shown = [probe for probe in NORMS if curves[probe].notna().any()]
  measured = runs['run'].isin(curves['run'][curves[shown].notna().any(axis='columns')])
  runs = runs[measured].sort_values('parameters', kind='stable')
  size = runs['size'].iloc[-1]
  runs = runs[runs['size'] == size]
  runs = runs[runs['seed'] == runs['seed'].min()]
  panels = style.panels(results, runs)
  figure, axes = style.grid(list(panels), height=1.9, rows=len(shown), ax=ax)
  for column, of_panel in zip(axes, panels.values(), strict=True):
    for axis, probe in zip(column, shown, strict=True):
      for run, rate in zip(of_panel['run'], of_panel['rate'], strict=True):
        curve = curves[curves['run'] == run].set_index('step')[probe].dropna()
        axis.plot(curve, color=rates[rate], linewidth=1.2)
      if NORMS[probe] != 'cosine':
        of_all = curves[probe][curves['run'].isin(runs['run'])]
        _power_axis(axis, of_all)
  for axis, probe in zip(axes[0], shown, strict=True):
    axis.set_ylabel(NORMS[probe])
  handles = style.handles({name: rates[name] for name in rates if name in set(runs['rate'])})
  style.finish(figure, f'step ({size} parameters)', '', handles, 'learning rate', ax=ax)
  return figure


def _panels(runs: pd.DataFrame, results: Results, field: str) -> dict[str, pd.DataFrame]:
  """Label of a panel -> its runs, for each size and intervention, not counting `field`."""
  others = [name for name in results.groups if name != field]
  others = [name for name in others if runs.groupby(field)[name].nunique().max() > 1]
  found = []
  for values, of_panel in results_lib.split(runs, ['size', *others]):
    parts = [f'{values[0]} parameters'] if runs['size'].nunique() > 1 else []
    if others:
      parts.append(labels.pairs(others, values[1:]))
    found.append((', '.join(parts), of_panel))
  return style.by_label(found)


def _eps_label(runs: pd.DataFrame) -> str:
  eps = sorted(set(runs[EPS]))
  if len(eps) > 1:
    return 'eps'
  below = eps[0] < runs[GRADIENT].min() / 2
  return f'eps {labels.number(eps[0])}' + (' (below)' if below else '')


def _power_axis(axis: Axes, values: pd.Series) -> None:
  """Formats y as a log axis over these values, and over at least a factor of 4."""
  axis.set_yscale('log')
  logs = np.log(values[values > 0])
  if len(logs):
    span = logs.max() - logs.min()
    middle, half = logs.min() + span / 2, max(np.log(2), 0.55 * span)
    axis.set_ylim(np.exp(middle - half), np.exp(middle + half))
    style.plain_ticks(axis.yaxis, (1, 2, 5) if span < np.log(30) else (1,))


def _number_axis(axis: Axes, values: pd.Series) -> None:
  """Formats x: log axis if the positive values span a factor of ten, with zero at the left end."""
  values = values.astype(float)
  positive = values[values > 0]
  if len(positive) and positive.max() >= 10 * positive.min():
    if (values == 0).any():
      axis.set_xscale('symlog', linthresh=positive.min(), linscale=0.5)
      axis.set_xlim(left=-0.2 * positive.min())
      axis.xaxis.set_major_locator(ticker.FixedLocator(sorted({0.0, *positive})))
    else:
      axis.set_xscale('log')
      decades = np.log10(positive.max() / positive.min())
      axis.xaxis.set_major_locator(ticker.LogLocator(numticks=6 if decades > 5 else 12))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.xaxis.set_major_formatter(lambda value, position: labels.number(float(f'{value:.6g}')))
