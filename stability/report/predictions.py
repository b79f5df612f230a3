"""What is predicted of larger sizes, for people: sentences, tables and figures."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stability import config as config_lib
from stability.analysis import results as results_lib
from stability.analysis.prediction import observations, predict, predictors
from stability.analysis.results import Results
from stability.report import labels
from stability.report.plots import style
from stability.report.plots.selection import Plot
from stability.storage import files

FAR = 30  # times the largest trained size: from here on a prediction is a guess
NEXT_SIZES = 2  # of the named ones, where no target is given
NEXT_FACTOR = 4  # beyond the named ones
ABOVE, BELOW = ({'marker': arrow, 'markerfacecolor': 'white'} for arrow in '^v')
_CURVE = 60  # points of a drawn law
_MANY_TICKS = 100  # times the lowest learning rate shown: from here on a tick per decade or more


@dataclasses.dataclass(frozen=True)
class Predicted:
  """Everything a sweep says of sizes beyond it."""

  results: Results
  seen: dict[tuple, observations.Observations]  # by intervention
  said: pd.DataFrame  # see prediction.predict
  held_out: pd.DataFrame  # see prediction.hold_out

  @classmethod
  def of(
      cls, results: Results, curves: pd.DataFrame, target: float | None = None
  ) -> 'Predicted | None':
    """Of the next sizes, or of the target's parameters; None while no run counts.

    Args:
      results: of a sweep.
      curves: with the columns of observations.PROBES, see tables.load_curves.
      target: parameters.
    """
    seen = observations.of(results, curves)
    if not seen:
      return None
    largest = max(of_group.sizes[-1] for of_group in seen.values())
    parameters = next_sizes(largest) if target is None else [target]
    said = predict.predict(results, seen, parameters)
    return cls(results, seen, said, predict.hold_out(results, seen))

  def name(self, values: tuple) -> str:
    """Of an intervention."""
    return labels.pairs(self.results.groups, values)


def next_sizes(largest: float) -> list[float]:
  """The named sizes after this many parameters, or one 4 times as large."""
  named = map(config_lib.parameters, map(config_lib.unflatten, config_lib.SIZES.values()))
  above = [float(parameters) for parameters in named if parameters > largest]
  return above[:NEXT_SIZES] or [NEXT_FACTOR * largest]


# The words.


def sentences(predicted: Predicted) -> list[str]:
  """What to expect of each target, with each intervention, and how far away it is."""
  said = predicted.said
  found = []
  for values, of_group in results_lib.split(said, predicted.results.groups):
    critical = of_group[of_group['predictor'] == predictors.ByCriticalRate.name]
    name = predicted.name(values)
    where = f' with {name}' if name else ''
    for parameters, of_size in critical.groupby('parameters', dropna=False, sort=False):
      row = of_size.iloc[0]
      if pd.isna(parameters):
        found.append(f'Where instability begins{where} cannot be predicted: {row["note"]}.')
        continue
      found.append(
          f'{labels.parameters(parameters)} parameters{where}: unstable from a learning rate of'
          f' {_short(row["value"])} (90 %: {_short(row["low"])} to {_short(row["high"])}),'
          f' {_times(row["times"])} times the largest trained size.'
      )
  if (said['times'] > FAR).any():
    found.append(
        f'That is more than {FAR} times the largest trained size: no such distance has been put to'
        ' the test here, take it as a guess.'
    )
  return found


def verdict(scores: pd.DataFrame) -> str | None:
  """How right the chosen predictor was where it could be checked; None where it could not."""
  if scores.empty or not (scores['predictor'] == predict.CHOSEN).any():
    return None
  row = scores[scores['predictor'] == predict.CHOSEN].iloc[0]
  text = (
      'The largest size, predicted from those at most a quarter of it:'
      f' {row["accuracy"]:.0%} of {row["runs"]} runs rightly called stable or unstable;'
      f' Brier score {row["brier"]:.3f}, of the base rate {row["base_brier"]:.3f}'
  )
  if not pd.isna(row['paper_brier']):
    text += f", of the paper's fit {row['paper_brier']:.3f}"
  intervals = scores[scores['event'] == predictors.UNSTABLE].dropna(subset='coverage')
  parts = [
      f'{part["predictor"]} in {part["coverage"]:.0%} of {part["intervals"]}'
      for _, part in intervals[intervals['predictor'] != predict.CHOSEN].iterrows()
  ]
  return f'{text}. Within 90 % intervals: {", ".join(parts)}.' if parts else f'{text}.'


def table(predicted: Predicted) -> pd.DataFrame:
  """A row per intervention, size and learning rate: what is expected there, as text."""
  said = predicted.said.dropna(subset='parameters')
  keys = [*predicted.results.groups, 'parameters', 'learning_rate']
  columns = {}
  chosen = said[said['chosen']].set_index(keys)
  columns['unstable'] = chosen['probability'].map('{:.0%}'.format)
  for predictor in (predictors.LOGIT, predictors.ByGradient()):
    of_one = said[said['predictor'] == predictor.name].set_index(keys)
    numbers = of_one[['value', 'low', 'high']].itertuples(index=False)
    columns[f'{predictor.quantity} (90 %)'] = pd.Series(
        [f'{_short(value)} ({_short(low)} to {_short(high)})' for value, low, high in numbers],
        of_one.index,
        object,
    )
  text = pd.DataFrame(columns).dropna(axis='columns', how='all')
  text = text.reindex(said.set_index(keys).index.unique()).fillna('').reset_index()
  text['parameters'] = text['parameters'].map(labels.parameters)
  text['learning_rate'] = text['learning_rate'].map(labels.number)
  for field in predicted.results.groups:
    text[field] = text[field].map(labels.value)
  names = labels.fields(predicted.results.groups) | {'learning_rate': 'learning rate'}
  return text.rename(columns=names)


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
  """The scores as text."""
  text = pd.DataFrame({'predictor': scores['predictor'], 'event': scores['event']})
  text['runs'] = scores['runs'].astype(str)
  text['right'] = scores['accuracy'].map('{:.0%}'.format)
  for column, title in (
      ('brier', 'Brier'),
      ('base_brier', 'base rate'),
      ('paper_brier', "paper's fit"),
  ):
    text[title] = scores[column].map(labels.decimals)
  text['in 90 % intervals'] = [
      f'{share:.0%} of {count}' if count else ''
      for share, count in zip(scores['coverage'], scores['intervals'], strict=True)
  ]
  text['median miss (decades)'] = scores['miss'].map(lambda miss: labels.decimals(miss, 2))
  text = text.replace({'nan%': '', 'nan': ''})
  return text[(scores['runs'] > 0) | (scores['numbers'] > 0)]


def _times(factor: float) -> str:
  """2.25, 16, 8,192."""
  return f'{factor:.3g}' if factor < 100 else f'{factor:,.0f}'


def _short(value: float) -> str:
  """Two digits."""
  return labels.number(float(f'{value:.1e}')) if np.isfinite(value) else ''


# The figures.


@style.styled
def critical_rates(predicted: Predicted) -> Figure:
  """Critical learning rate against parameters: measured, the law with its interval, the targets."""
  figure, axes = style.grid([''], height=3.3)
  axis = axes[0, 0]
  handles = []
  targets = predicted.said['parameters'].dropna().unique()
  for i, (values, seen) in enumerate(predicted.seen.items()):
    look = {
        'color': (colour := style.INTERVENTION_COLOURS[i % len(style.INTERVENTION_COLOURS)]),
        'marker': style.INTERVENTION_MARKERS[i % len(style.INTERVENTION_MARKERS)],
    }
    rates = seen.runs.drop_duplicates('row')
    for beyond, marker in ((0, {}), (1, ABOVE), (-1, BELOW)):
      of_kind = rates[rates['beyond'] == beyond]
      axis.plot(of_kind['parameters'], 10 ** of_kind['critical'], linestyle='', **look | marker)
    handles.append(style.handle(predicted.name(values) or 'measured', **look))
    if len(seen.sizes) < predictors.FEWEST_SIZES:
      continue
    sizes = np.geomspace(seen.sizes[0], max([*targets, seen.sizes[-1]]), _CURVE)
    try:
      law = predictors.ByCriticalRate().forecast(
          seen, observations.targets(sizes, seen.learning_rates[:1])
      )
    except predictors.TooLittle:
      continue
    band = 10 ** law.cells[['value', 'low', 'high']]
    axis.plot(sizes, band['value'], color=colour, linewidth=1.1)
    axis.fill_between(sizes, band['low'], band['high'], color=colour, alpha=0.15, linewidth=0)
  for target in targets:
    axis.axvline(target, color=style.GREY, linestyle=':', linewidth=1.1)
  handles.append(style.handle('predicted size', linestyle=':', linewidth=1.1))
  for beyond, marker, text in ((1, ABOVE, 'above'), (-1, BELOW, 'below')):
    if any((seen.runs['beyond'] == beyond).any() for seen in predicted.seen.values()):
      handles.append(style.handle(f'{text} the grid', linestyle='', **marker))
  axis.set_yscale('log')
  low, high = axis.get_ylim()
  style.plain_ticks(axis.yaxis, (1, 2, 5) if high < _MANY_TICKS * low else (1,))
  sizes = [*np.concatenate([seen.sizes for seen in predicted.seen.values()]), *targets]
  style.parameters_axis(axis, pd.Series(sizes))
  style.finish(figure, 'parameters', 'unstable from this learning rate', handles, '')
  return figure


@style.styled
def predicted_against_measured(predicted: Predicted) -> Figure:
  """The size held out: a panel per intervention of its logits and, beneath, of instability."""
  held_out = predicted.held_out.dropna(subset='run')
  said_colour, measured_colour = style.INTERVENTION_COLOURS[:2]
  panels = {
      predicted.name(values): rows
      for values, rows in results_lib.split(held_out, predicted.results.groups)
  }
  figure, axes = style.grid(list(panels), height=2.4, rows=2)
  dots = {'color': measured_colour, 'marker': 'o', 'linestyle': ''}
  for (logits, events), rows in zip(axes, panels.values(), strict=True):
    numbers = rows[rows['predictor'] == predictors.LOGIT.name].sort_values('learning_rate')
    x = numbers['learning_rate']
    logits.plot(x, numbers['value'], color=said_colour)
    logits.fill_between(x, numbers['low'], numbers['high'], color=said_colour, alpha=0.2, lw=0)
    logits.plot(x, numbers['measured'], **dots)
    logits.set_yscale('log')
    style.plain_ticks(logits.yaxis, (1,))
    chosen = rows[rows['chosen']].sort_values('learning_rate')
    events.plot(chosen['learning_rate'], chosen['probability'], color=said_colour)
    events.plot(chosen['learning_rate'], chosen['happened'].astype(float), **dots)
    events.set_ylim(-0.06, 1.06)
    style.rate_axis(events)
  axes[0, 0].set_ylabel('attention logit')
  axes[0, 1].set_ylabel('unstable')
  handles = [
      style.handle('predicted,\n90 % interval', color=said_colour),
      style.handle('measured', **dots),
  ]
  size = labels.parameters(held_out['parameters'].iloc[0])
  style.finish(figure, f'learning rate ({size} parameters, held out)', '', handles, '')
  return figure


# The files, and the section of the page.


def figures(predicted: Predicted) -> list[Plot]:
  """Those there is something to draw for."""
  found = [
      Plot(
          'critical_learning_rate',
          'Critical learning rate against size',
          'The learning rate from which runs are unstable: where the loss passes the margin,'
          ' between two of the grid. The law goes on to larger sizes; bands are 90 % intervals.',
          functools.partial(critical_rates, predicted),
          absent='',
      )
  ]
  if not predicted.held_out.empty:
    found.append(
        Plot(
            'predicted_against_measured',
            'Predicted against measured',
            'The largest size, predicted from those with at most a quarter of its parameters and'
            ' then looked at: the highest attention logit by the step at which it is read, and the'
            ' probability of being unstable.',
            functools.partial(predicted_against_measured, predicted),
            absent='',
        )
    )
  return found


def write_tables(predicted: Predicted, folder: Path) -> None:
  """Writes predictions.csv and, if a size could be held out, predictions_held_out.csv."""
  files.write_atomic(folder / 'predictions.csv', predicted.said.to_csv(index=False))
  if not predicted.held_out.empty:
    held_out = predicted.held_out.to_csv(index=False)
    files.write_atomic(folder / 'predictions_held_out.csv', held_out)


def write(predicted: Predicted, folder: Path) -> None:
  """Writes the tables and the figures."""
  write_tables(predicted, folder)
  for plot in figures(predicted):
    figure = plot.draw()
    for kind in ('svg', 'png'):
      files.write_atomic(folder / f'{plot.name}.{kind}', style.save(figure, kind))


@dataclasses.dataclass(frozen=True)
class Section:
  """What the page says of larger sizes."""

  predicted: Predicted
  sentences: list[str]
  table: pd.DataFrame
  scores: pd.DataFrame | None
  plots: list[Plot]


def section(results: Results, curves: pd.DataFrame) -> Section | None:
  """The page's section; None where the sweep is not one of sizes, or too few have finished.

  Args:
    results: of a sweep.
    curves: with the columns of observations.PROBES, see tables.load_curves.
  """
  if results.runs['parameters'].nunique() < predictors.FEWEST_SIZES:
    return None
  predicted = Predicted.of(results, curves)
  if predicted is None or not predicted.said['chosen'].any():
    return None
  scores = predict.score([predicted.held_out])
  said = [*sentences(predicted), verdict(scores)]
  return Section(
      predicted,
      [sentence for sentence in said if sentence is not None],
      table(predicted),
      None if scores.empty else score_table(scores),
      figures(predicted),
  )
