"""Figures of losses, LR sensitivity, attention logits and training curves."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.results import Results
from stability.report import labels
from stability.report.plots import loss_axis, style


@style.styled
def loss_by_learning_rate(
    results: Results, bigram_loss: float | None = None, ax: Axes | None = None
) -> Figure:
  """Mean and range over seeds of min(final, initial) loss against learning rate.

  A panel per intervention, a line per size. A cross marks a learning rate at which a run diverged,
  a ring the best one, a triangle a loss above the axis and a hollow point a mean of fewer seeds
  (see loss_axis).
  """
  runs = style.labelled(results)
  sizes = style.colours(runs, 'size', 'parameters', style.SIZE_COLOURS)
  panels = style.panels(results, runs)
  figure, axes = style.grid(list(panels), height=3.3, ax=ax)
  losses = loss_axis.LossAxis.of(results, runs)
  handles = style.handles(sizes)
  if lr_sensitivity.trains(runs):
    handles.append(style.handle('best', **style.RING))
  handles += [*style.diverged_handle(runs), *losses.handles()]
  levels = (('initial loss', runs['initial_loss'].mean(), ':'), ('bigram model', bigram_loss, '--'))
  for name, level, linestyle in levels:
    if level is not None:
      text = f'{name}\n{level:.2f}{losses.where(level)}'
      handles.append(style.handle(text, linestyle=linestyle, linewidth=1.1))
      for axis in axes[:, 0]:
        axis.axhline(level, color=style.GREY, linestyle=linestyle, linewidth=1.1)
  drawn = []
  for axis, of_panel in zip(axes[:, 0], panels.values(), strict=True):
    lines = []
    for size, colour in sizes.items():
      of_size = of_panel[of_panel['size'] == size]
      line = style.line(axis, of_size, 'learning_rate', 'loss', 'mean', colour)
      lines.append(loss_axis.Line.of(line, of_size, 'learning_rate', colour))
      if lr_sensitivity.trains(of_size):
        axis.plot(line[line == line.min()], color=colour, **style.RING)
    style.learning_rate_axis(axis)
    losses.draw_marks(axis, lines)
    drawn += lines
  handles += loss_axis.fewer_seeds_handle(drawn)
  style.finish(figure, 'learning rate', 'validation loss (nats)', handles, 'parameters', ax=ax)
  return figure


@style.styled
def sensitivity_by_parameters(
    results: Results, table: pd.DataFrame, ax: Axes | None = None
) -> Figure:
  """LR sensitivity and its intervals against parameters, with a line per intervention."""
  figure, axes = style.grid([''], height=3.3, ax=ax)
  axis = axes[0, 0]
  handles = []
  for i, (values, rows) in enumerate(results_lib.split(table, results.groups)):
    look = {
        'marker': style.INTERVENTION_MARKERS[i % len(style.INTERVENTION_MARKERS)],
        'color': style.INTERVENTION_COLOURS[i % len(style.INTERVENTION_COLOURS)],
    }
    x, is_complete = rows['parameters'].astype(float), rows['missing'] == 0
    y = rows['lr_sensitivity']
    axis.plot(x[is_complete], y[is_complete], markersize=6, **look)
    axis.plot(x[~is_complete], y[~is_complete], linestyle='', **style.HOLLOW, **look)
    # errorbar does not draw intervals from resampling that do not contain the estimate.
    axis.vlines(x, rows['low'], rows['high'], color=look['color'], linewidth=5, alpha=0.35)
    name = labels.wrapped(labels.pairs(results.groups, values), 30)
    handles.append(style.handle(name, **look))
  if not results.groups:
    handles = []
  if (table['missing'] > 0).any():
    look = {'marker': 'o', 'linestyle': '', **style.HOLLOW}
    handles.append(style.handle('undecided:\nruns missing', **look))
  style.ratio_axis(axis, table[['lr_sensitivity', 'low', 'high']])
  style.parameters_axis(axis, table['parameters'])
  style.finish(figure, 'parameters', 'LR sensitivity (nats)', handles, '', ax=ax)
  return figure


@style.styled
def logits_by_learning_rate(
    results: Results, curves: pd.DataFrame, ax: Axes | None = None
) -> Figure:
  """Highest attention logit of block 0 over training against learning rate; a line per size."""
  runs = style.labelled(results, curves)
  sizes = style.colours(runs, 'size', 'parameters', style.SIZE_COLOURS)
  figure, axes = style.medians(results, runs, 'learning_rate', 'logit', 'size', sizes, ax)
  for axis in axes:
    style.logit_axis(axis)
    style.learning_rate_axis(axis)
  handles = [*style.handles(sizes), style.logit_handle()]
  style.finish(figure, 'learning rate', style.LOGIT_LABEL, handles, 'parameters', ax=ax)
  return figure


@style.styled
def logits_by_parameters(results: Results, curves: pd.DataFrame, ax: Axes | None = None) -> Figure:
  """Highest attention logit of block 0 over training against parameters; a line per LR."""
  runs = style.labelled(results, curves)
  rates = style.colours(runs, 'rate', 'learning_rate', style.RATE_COLOURS)
  figure, axes = style.medians(results, runs, 'parameters', 'logit', 'rate', rates, ax)
  for axis in axes:
    style.logit_axis(axis)
    style.parameters_axis(axis, runs['parameters'])
  handles = [*style.handles(rates), style.logit_handle()]
  style.finish(figure, 'parameters', style.LOGIT_LABEL, handles, 'learning rate', ax=ax)
  return figure


@style.styled
def training_curves(results: Results, curves: pd.DataFrame, ax: Axes | None = None) -> Figure:
  """Training loss and attention logit of block 0 over training steps, for the largest size.

  A column per intervention, a line per learning rate, with the first seed only. A cross marks where
  a run diverged.
  """
  runs = style.labelled(results)
  rates = style.colours(runs, 'rate', 'learning_rate', style.RATE_COLOURS)
  logged = runs['run'].isin(curves['run'][curves['loss'].notna()])
  runs = runs[logged].sort_values('parameters', kind='stable')
  size = runs['size'].iloc[-1]
  runs = runs[runs['size'] == size]
  runs = runs[runs['seed'] == runs['seed'].min()]
  curves = curves[curves['run'].isin(runs['run'])].set_index('step')
  shown = ['loss']
  if curves[results_lib.LOGIT].notna().any():
    shown.append(results_lib.LOGIT)
  panels = style.panels(results, runs)
  figure, axes = style.grid(list(panels), height=2.5, rows=len(shown), ax=ax)
  for column, of_panel in zip(axes, panels.values(), strict=True):
    for _, run in of_panel.iterrows():
      for axis, name in zip(column, shown, strict=True):
        curve = curves[name][curves['run'] == run['run']].dropna()
        axis.plot(curve, color=rates[run['rate']], linewidth=1.2)
        if run['status'] == 'diverged':
          axis.plot(curve.iloc[-1:], color=rates[run['rate']], **style.CROSS)
    column[0].set_yscale('log')
    column[0].set_ylim(curves['loss'].min() / 1.05, style.ceiling(runs, curves['loss']) * 1.05)
    style.plain_ticks(column[0].yaxis, (1, 1.5, 2, 3, 4, 6, 8))
    for axis in column[1:]:
      style.logit_axis(axis)
  axes[0, 0].set_ylabel('training loss (nats)')
  handles = [*style.handles(rates), *style.diverged_handle(runs)]
  if len(shown) > 1:
    axes[0, 1].set_ylabel('highest attention\nlogit of block 0')
    handles.append(style.logit_handle())
  style.finish(figure, f'step ({size} parameters)', '', handles, 'learning rate', ax=ax)
  return figure
