"""The figures of losses and attention logits: a function each, from results to a figure."""

import pandas as pd
from matplotlib.figure import Figure

from stability.analysis import tables
from stability.analysis.tables import Results
from stability.report import drawing, labels


@drawing.styled
def loss_by_learning_rate(results: Results, bigram_loss: float | None = None) -> Figure:
  """A panel per intervention, a line per size: mean over seeds of min(final, initial), their range.

  A cross marks a learning rate where a run diverged, a ring the best one.
  """
  runs = drawing.labelled(results)
  sizes = drawing.colours(runs, 'size', 'parameters', drawing.SIZE_COLOURS)
  panels = drawing.panels(results, runs)
  figure, axes = drawing.grid(list(panels), height=3.3)
  low, high = drawing.padded(runs['loss'])
  handles = [*drawing.handles(sizes), drawing.handle('best', **drawing.RING)]
  handles += drawing.diverged_handle(runs)
  levels = (('initial loss', runs['initial_loss'].mean(), ':'), ('bigram model', bigram_loss, '--'))
  for name, level, style in levels:
    if level is not None:
      where = ' (above)' if level > high else ' (below)' if level < low else ''
      handles.append(drawing.handle(f'{name}\n{level:.2f}{where}', linestyle=style, linewidth=1.1))
      for axis in axes[:, 0]:
        axis.axhline(level, color=drawing.GREY, linestyle=style, linewidth=1.1)
  for axis, of_panel in zip(axes[:, 0], panels.values(), strict=True):
    for size, colour in sizes.items():
      of_size = of_panel[of_panel['size'] == size]
      line = drawing.line(axis, of_size, 'learning_rate', 'loss', 'mean', colour)
      diverged = of_size['learning_rate'][of_size['status'] == 'diverged']
      axis.plot(line[line.index.isin(diverged)], color=colour, **drawing.CROSS)
      axis.plot(line[line == line.min()], color=colour, **drawing.RING)
    axis.set_ylim(low, high)
    drawing.rate_axis(axis)
  drawing.finish(figure, 'learning rate', 'validation loss (nats)', handles, 'parameters')
  return figure


@drawing.styled
def sensitivity_by_parameters(results: Results, table: pd.DataFrame) -> Figure:
  """LR sensitivity against parameters, a line per intervention, with the table's intervals."""
  figure, axes = drawing.grid([''], height=3.3)
  axis = axes[0, 0]
  handles = []
  for i, (values, rows) in enumerate(tables.split(table, results.groups)):
    look = {
        'marker': drawing.INTERVENTION_MARKERS[i % len(drawing.INTERVENTION_MARKERS)],
        'color': drawing.INTERVENTION_COLOURS[i % len(drawing.INTERVENTION_COLOURS)],
    }
    x, whole = rows['parameters'].astype(float), rows['missing'] == 0
    axis.plot(x[whole], rows['lr_sensitivity'][whole], markersize=6, **look)
    axis.plot(x[~whole], rows['lr_sensitivity'][~whole], linestyle='', **drawing.HOLLOW, **look)
    # Not errorbar: an interval by resampling need not contain the estimate.
    axis.vlines(x, rows['low'], rows['high'], color=look['color'], linewidth=5, alpha=0.35)
    name = labels.wrapped(labels.pairs(results.groups, values), 30)
    handles.append(drawing.handle(name, **look))
  if not results.groups:
    handles = []
  if (table['missing'] > 0).any():
    look = {'marker': 'o', 'linestyle': '', **drawing.HOLLOW}
    handles.append(drawing.handle('undecided:\nruns missing', **look))
  drawing.ratio_axis(axis, table[['lr_sensitivity', 'low', 'high']])
  drawing.parameters_axis(axis, table['parameters'])
  drawing.finish(figure, 'parameters', 'LR sensitivity (nats)', handles, '')
  return figure


@drawing.styled
def logits_by_learning_rate(results: Results, curves: pd.DataFrame) -> Figure:
  """Highest attention logit of block 0 over training against learning rate, a line per size."""
  runs = drawing.labelled(results, curves)
  sizes = drawing.colours(runs, 'size', 'parameters', drawing.SIZE_COLOURS)
  figure = _logits(results, runs, 'learning_rate', 'size', sizes)
  for axis in figure.axes:
    drawing.rate_axis(axis)
  handles = [*drawing.handles(sizes), drawing.logit_handle()]
  drawing.finish(figure, 'learning rate', drawing.LOGIT_LABEL, handles, 'parameters')
  return figure


@drawing.styled
def logits_by_parameters(results: Results, curves: pd.DataFrame) -> Figure:
  """Highest attention logit of block 0 over training against parameters, a line per LR."""
  runs = drawing.labelled(results, curves)
  rates = drawing.colours(runs, 'rate', 'learning_rate', drawing.RATE_COLOURS)
  figure = _logits(results, runs, 'parameters', 'rate', rates)
  for axis in figure.axes:
    drawing.parameters_axis(axis, runs['parameters'])
  handles = [*drawing.handles(rates), drawing.logit_handle()]
  drawing.finish(figure, 'parameters', drawing.LOGIT_LABEL, handles, 'learning rate')
  return figure


@drawing.styled
def training_curves(results: Results, curves: pd.DataFrame) -> Figure:
  """Training loss and, beneath it, block 0's attention logit over the steps of the largest size.

  A column per intervention, a line per learning rate, of several seeds the first; a cross where a
  run diverged.
  """
  runs = drawing.labelled(results)
  rates = drawing.colours(runs, 'rate', 'learning_rate', drawing.RATE_COLOURS)
  logged = runs['run'].isin(curves['run'][curves['loss'].notna()])
  runs = runs[logged].sort_values('parameters', kind='stable')
  size = runs['size'].iloc[-1]
  runs = runs[runs['size'] == size]
  runs = runs[runs['seed'] == runs['seed'].min()]
  curves = curves[curves['run'].isin(runs['run'])].set_index('step')
  shown = ['loss']
  if curves[tables.LOGIT].notna().any():
    shown.append(tables.LOGIT)
  panels = drawing.panels(results, runs)
  figure, axes = drawing.grid(list(panels), height=2.5, rows=len(shown))
  for column, of_panel in zip(axes, panels.values(), strict=True):
    for _, run in of_panel.iterrows():
      for axis, name in zip(column, shown, strict=True):
        curve = curves[name][curves['run'] == run['run']].dropna()
        axis.plot(curve, color=rates[run['rate']], linewidth=1.2)
        if run['status'] == 'diverged':
          axis.plot(curve.iloc[-1:], color=rates[run['rate']], **drawing.CROSS)
    column[0].set_yscale('log')
    column[0].set_ylim(curves['loss'].min() / 1.05, drawing.ceiling(runs, curves['loss']) * 1.05)
    drawing.plain_ticks(column[0].yaxis, (1, 1.5, 2, 3, 4, 6, 8))
    for axis in column[1:]:
      drawing.logit_axis(axis)
  axes[0, 0].set_ylabel('training loss (nats)')
  handles = [*drawing.handles(rates), *drawing.diverged_handle(runs)]
  if len(shown) > 1:
    axes[0, 1].set_ylabel('highest attention\nlogit of block 0')
    handles.append(drawing.logit_handle())
  drawing.finish(figure, f'step ({size} parameters)', '', handles, 'learning rate')
  return figure


def _logits(
    results: Results, runs: pd.DataFrame, x: str, line: str, colours: dict[str, tuple]
) -> Figure:
  """A panel per intervention of the highest attention logit against x."""
  panels = drawing.panels(results, runs)
  figure, axes = drawing.grid(list(panels), height=3.1)
  for axis, of_panel in zip(axes[:, 0], panels.values(), strict=True):
    for name, colour in colours.items():
      drawing.line(axis, of_panel[of_panel[line] == name], x, 'logit', 'median', colour)
    drawing.logit_axis(axis)
  return figure
