"""Reports on predictions for larger sizes: sentences, tables, figures and files."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability import config as config_lib
from stability.analysis import results as results_lib
from stability.analysis.prediction import observations as observations_lib
from stability.analysis.prediction import predict, predictors
from stability.analysis.prediction.observations import Observations
from stability.analysis.results import Results
from stability.errors import BadInput
from stability.report import labels
from stability.report.plots import style
from stability.report.plots.selection import Plot
from stability.storage import files

FIGURES = ('critical_learning_rate', 'predicted_against_measured')
FAR = 30  # predictions beyond this many times the largest trained size are guesses
NEXT_SIZES = 2  # number of named sizes to predict if no target is given
NEXT_FACTOR = 4  # size to predict if no named size is larger, relative to the largest trained size
ABOVE, BELOW = ({'marker': arrow, 'markerfacecolor': 'white'} for arrow in '^v')
_CURVE_POINTS = 60  # in an extrapolated curve
_MANY_TICKS = 100  # an axis that spans this factor or more has at most one tick per decade


@dataclasses.dataclass(frozen=True)
class Predictions:
  """A sweep's predictions for sizes beyond it, and their test on its largest size."""

  results: Results
  observations: dict[tuple, Observations]  # by intervention
  forecasts: pd.DataFrame  # see prediction.predict.predict

  @classmethod
  def make(
      cls, results: Results, curves: pd.DataFrame, target: float | None = None
  ) -> 'Predictions | None':
    """Predicts a target size, or the next sizes after the largest one; None if no run counts.

    Args:
      results: the runs of a sweep.
      curves: see results.load_curves, with the columns of observations.PROBES.
      target: the parameters of the size to predict; None: the next sizes.
    """
    observations = observations_lib.by_intervention(results, curves)
    if not observations:
      return None
    largest = max(of_group.sizes[-1] for of_group in observations.values())
    parameters = next_sizes(largest) if target is None else [target]
    return cls(results, observations, predict.predict(results, observations, parameters))

  @functools.cached_property
  def held_out(self) -> pd.DataFrame:
    """The test on the largest size, see prediction.predict.hold_out."""
    return predict.hold_out(self.results, self.observations)

  def label(self, values: tuple) -> str:
    """The intervention with these values, as figures and sentences name it."""
    return labels.pairs(self.results.groups, values)


def next_sizes(largest: float) -> list[float]:
  """The next named sizes above this parameter count; if there are none, one 4 times as large."""
  named = map(config_lib.parameters, map(config_lib.unflatten, config_lib.SIZES.values()))
  larger = [float(parameters) for parameters in named if parameters > largest]
  return larger[:NEXT_SIZES] or [NEXT_FACTOR * largest]


def target_parameters(target: str | float) -> float:
  """The parameters of a target: a named size such as '4.8B', or a parameter count."""
  if target in config_lib.SIZES:
    return float(config_lib.parameters(config_lib.unflatten(config_lib.size(target))))
  try:
    count = float(target)
  except ValueError:
    count = math.nan
  if not 1 <= count < math.inf:
    raise BadInput(f'target={target}: must be one of {", ".join(config_lib.SIZES)}, or a number')
  return count


# Sentences and tables.


def sentences(predictions: Predictions) -> list[str]:
  """Sentences on the critical learning rate of each target size and intervention."""
  forecasts = predictions.forecasts
  found = []
  for values, of_group in results_lib.split(forecasts, predictions.results.groups):
    critical = of_group[of_group['predictor'] == predictors.CriticalRatePredictor.name]
    label = predictions.label(values)
    where = f' with {label}' if label else ''
    for parameters, of_size in critical.groupby('parameters', dropna=False, sort=False):
      row = of_size.iloc[0]
      if pd.isna(parameters):
        found.append(f'The critical learning rate{where} cannot be predicted: {row["note"]}.')
        continue
      found.append(
          f'{labels.parameters(parameters)} parameters{where}: unstable above a learning rate of'
          f' {_two_digits(row["value"])} (90 % interval {_two_digits(row["low"])} to'
          f' {_two_digits(row["high"])}), at {_factor(row["times"])} times the largest trained'
          ' size.'
      )
  if (forecasts['times'] > FAR).any():
    found.append(
        f'That is more than {FAR} times the largest trained size. Predictions have not been tested'
        ' over such a distance; treat them as guesses.'
    )
  return found


def accuracy_sentence(scores: pd.DataFrame) -> str | None:
  """States how accurate the chosen predictor was on held-out sizes; None if there are none."""
  if scores.empty or not (scores['predictor'] == predict.CHOSEN).any():
    return None
  row = scores[scores['predictor'] == predict.CHOSEN].iloc[0]
  text = (
      'Test on the largest size, predicted from sizes at most a quarter of it:'
      f' {row["accuracy"]:.0%} of {row["runs"]} runs were correctly predicted as stable or'
      f' unstable. Brier score {row["brier"]:.3f}; {row["base_brier"]:.3f} for the base rate'
  )
  if not pd.isna(row['paper_brier']):
    text += f", {row['paper_brier']:.3f} for the paper's fit"
  intervals = scores[scores['event'] == predictors.UNSTABLE].dropna(subset='coverage')
  parts = [
      f'{part["predictor"]} {part["coverage"]:.0%} of {part["intervals"]}'
      for _, part in intervals[intervals['predictor'] != predict.CHOSEN].iterrows()
  ]
  return f'{text}. Coverage of the 90 % intervals: {", ".join(parts)}.' if parts else f'{text}.'


def table(predictions: Predictions) -> pd.DataFrame:
  """The predictions as text: a row per intervention, size and learning rate."""
  forecasts = predictions.forecasts.dropna(subset='parameters')
  keys = [*predictions.results.groups, 'parameters', 'learning_rate']
  columns = {}
  chosen = forecasts[forecasts['chosen']].set_index(keys)
  columns['unstable'] = chosen['probability'].map('{:.0%}'.format)
  for predictor in (predictors.LOGIT, predictors.GradientPredictor()):
    rows = forecasts[forecasts['predictor'] == predictor.name].set_index(keys)
    numbers = rows[['value', 'low', 'high']].map(_two_digits).itertuples(index=False)
    columns[f'{predictor.quantity} (90 % interval)'] = pd.Series(
        [f'{value} ({low} to {high})' for value, low, high in numbers], rows.index, object
    )
  text = pd.DataFrame(columns).dropna(axis='columns', how='all')
  text = text.reindex(forecasts.set_index(keys).index.unique()).fillna('').reset_index()
  text['parameters'] = text['parameters'].map(labels.parameters)
  text['learning_rate'] = text['learning_rate'].map(labels.number)
  for field in predictions.results.groups:
    text[field] = text[field].map(labels.value)
  names = labels.fields(predictions.results.groups) | {'learning_rate': 'learning rate'}
  return text.rename(columns=names)


def score_table(scores: pd.DataFrame) -> pd.DataFrame:
  """The result of prediction.predict.score as text."""
  text = pd.DataFrame({'predictor': scores['predictor'], 'event': scores['event']})
  text['runs'] = scores['runs'].astype(str)
  text['accuracy'] = scores['accuracy'].map('{:.0%}'.format)
  for column, title in (
      ('brier', 'Brier score'),
      ('base_brier', 'base rate'),
      ('paper_brier', "paper's fit"),
  ):
    text[title] = scores[column].map(labels.decimals)
  text['in 90 % interval'] = [
      f'{share:.0%} of {count}' if count else ''
      for share, count in zip(scores['coverage'], scores['intervals'], strict=True)
  ]
  text['median error (decades)'] = scores['error'].map(lambda error: labels.decimals(error, 2))
  text = text.replace({'nan%': '', 'nan': ''})
  return text[(scores['runs'] > 0) | (scores['numbers'] > 0)]


def _factor(factor: float) -> str:
  """A factor with three significant digits below 100, else whole: 2.25, 16, 8,192."""
  return f'{factor:.3g}' if factor < 100 else f'{factor:,.0f}'


def _two_digits(value: float) -> str:
  """A number rounded to two significant digits; empty if it is not finite."""
  return labels.number(float(f'{value:.1e}')) if np.isfinite(value) else ''


# Figures.


@style.styled
def critical_rates(predictions: Predictions, ax: Axes | None = None) -> Figure:
  """Critical learning rate against parameters: measured, and extrapolated with its interval.

  A line per intervention; arrows mark sizes whose critical rate lies outside the grid.
  """
  figure, axes = style.grid([''], height=3.3, ax=ax)
  axis = axes[0, 0]
  handles = []
  targets = predictions.forecasts['parameters'].dropna().unique()
  for i, (values, observations) in enumerate(predictions.observations.items()):
    look = {
        'color': (colour := style.INTERVENTION_COLOURS[i % len(style.INTERVENTION_COLOURS)]),
        'marker': style.INTERVENTION_MARKERS[i % len(style.INTERVENTION_MARKERS)],
    }
    curves = observations.runs.drop_duplicates('curve')
    for censored, marker in ((0, {}), (1, ABOVE), (-1, BELOW)):
      of_kind = curves[curves['censored'] == censored]
      rates = 10 ** of_kind['log_critical']
      axis.plot(of_kind['parameters'], rates, linestyle='', **look | marker)
    handles.append(style.handle(predictions.label(values) or 'measured', **look))
    if len(observations.sizes) < predictors.MIN_SIZES:
      continue
    smallest, largest = observations.sizes[[0, -1]]
    sizes = np.geomspace(smallest, max([*targets, largest]), _CURVE_POINTS)
    try:
      forecast = predictors.CriticalRatePredictor().forecast(
          observations, observations_lib.cells(sizes, observations.learning_rates[:1])
      )
    except predictors.InsufficientData:
      continue
    band = 10 ** forecast.cells[['value', 'low', 'high']]
    axis.plot(sizes, band['value'], color=colour, linewidth=1.1)
    axis.fill_between(sizes, band['low'], band['high'], color=colour, alpha=0.15, linewidth=0)
  for target in targets:
    axis.axvline(target, color=style.GREY, linestyle=':', linewidth=1.1)
  handles.append(style.handle('predicted size', linestyle=':', linewidth=1.1))
  groups = predictions.observations.values()
  for censored, marker, text in ((1, ABOVE, 'above'), (-1, BELOW, 'below')):
    if any((group.runs['censored'] == censored).any() for group in groups):
      handles.append(style.handle(f'{text} the grid', linestyle='', **marker))
  axis.set_yscale('log')
  low, high = axis.get_ylim()
  style.plain_ticks(axis.yaxis, (1, 2, 5) if high < _MANY_TICKS * low else (1,))
  trained = [group.sizes for group in groups]
  style.parameters_axis(axis, pd.Series([*np.concatenate(trained), *targets]))
  style.finish(figure, 'parameters', 'critical learning rate', handles, '', ax=ax)
  return figure


@style.styled
def predicted_against_measured(predictions: Predictions, ax: Axes | None = None) -> Figure:
  """Predictions for the held-out size, and what was measured, against learning rate.

  A column per intervention: attention logits and, beneath, the probability of being unstable.
  """
  held_out = predictions.held_out.dropna(subset='run')
  predicted_colour, measured_colour = style.INTERVENTION_COLOURS[:2]
  panels = {
      predictions.label(values): rows
      for values, rows in results_lib.split(held_out, predictions.results.groups)
  }
  figure, axes = style.grid(list(panels), height=2.4, rows=2, ax=ax)
  dots = {'color': measured_colour, 'marker': 'o', 'linestyle': ''}
  for (logits, events), rows in zip(axes, panels.values(), strict=True):
    numbers = rows[rows['predictor'] == predictors.LOGIT.name].sort_values('learning_rate')
    x, low, high = numbers['learning_rate'], numbers['low'], numbers['high']
    logits.plot(x, numbers['value'], color=predicted_colour)
    logits.fill_between(x, low, high, color=predicted_colour, alpha=0.2, lw=0)
    logits.plot(x, numbers['measured'], **dots)
    logits.set_yscale('log')
    style.plain_ticks(logits.yaxis, (1,))
    chosen = rows[rows['chosen']].sort_values('learning_rate')
    events.plot(chosen['learning_rate'], chosen['probability'], color=predicted_colour)
    events.plot(chosen['learning_rate'], chosen['happened'].astype(float), **dots)
    events.set_ylim(-0.06, 1.06)
    style.learning_rate_axis(events)
  axes[0, 0].set_ylabel('attention logit')
  axes[0, 1].set_ylabel('unstable')
  handles = [
      style.handle('predicted,\n90 % interval', color=predicted_colour),
      style.handle('measured', **dots),
  ]
  size = labels.parameters(held_out['parameters'].iloc[0])
  style.finish(figure, f'learning rate ({size} parameters, held out)', '', handles, '', ax=ax)
  return figure


# Files and the section of the page.


def figures(predictions: Predictions) -> list[Plot]:
  """The figures for which there are data."""
  found = [
      Plot(
          FIGURES[0],
          'Critical learning rate against size',
          'The learning rate above which runs are unstable: where the loss, interpolated between'
          ' learning rates, exceeds the best one by the margin. Lines extrapolate it to larger'
          ' sizes; bands are 90 % intervals.',
          functools.partial(critical_rates, predictions),
          absent='',
      )
  ]
  if not predictions.held_out.empty:
    found.append(
        Plot(
            FIGURES[1],
            'Predicted against measured',
            'A test on the largest size, predicted from sizes with at most a quarter of its'
            ' parameters: the highest attention logit up to the step at which it is read, and the'
            ' probability of being unstable.',
            functools.partial(predicted_against_measured, predictions),
            absent='',
        )
    )
  return found


def write_tables(predictions: Predictions, folder: Path) -> None:
  """Writes predictions.csv and, if a size could be held out, predictions_held_out.csv."""
  files.write_atomic(folder / 'predictions.csv', predictions.forecasts.to_csv(index=False))
  if not predictions.held_out.empty:
    held_out = predictions.held_out.to_csv(index=False)
    files.write_atomic(folder / 'predictions_held_out.csv', held_out)


def write(predictions: Predictions, folder: Path) -> None:
  """Writes the tables as CSV and the figures as SVG and PNG."""
  write_tables(predictions, folder)
  for plot in figures(predictions):
    figure = plot.draw()
    for kind in ('svg', 'png'):
      files.write_atomic(folder / f'{plot.name}.{kind}', style.save(figure, kind))


@dataclasses.dataclass(frozen=True)
class Section:
  """The page's section on larger sizes."""

  predictions: Predictions
  sentences: list[str]
  table: pd.DataFrame
  scores: pd.DataFrame | None
  plots: list[Plot]


def section(results: Results, curves: pd.DataFrame) -> Section | None:
  """The page's section on larger sizes; None if the sweep has too few sizes or finished runs.

  Args:
    results: the runs of a sweep.
    curves: see results.load_curves, with the columns of observations.PROBES.
  """
  parameters = results.runs['parameters']
  if parameters.nunique() < predictors.MIN_SIZES or parameters.isna().any():
    return None
  predictions = Predictions.make(results, curves)
  if predictions is None or not predictions.forecasts['chosen'].any():
    return None
  scores = predict.score([predictions.held_out])
  accuracy = accuracy_sentence(scores)
  return Section(
      predictions,
      sentences(predictions) + ([] if accuracy is None else [accuracy]),
      table(predictions),
      None if scores.empty else score_table(scores),
      figures(predictions),
  )
