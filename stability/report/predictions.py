"""Reports on predictions for larger sizes: sentences, tables, figures and files."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis import results as results_lib
from stability.analysis.prediction import answers as answers_lib
from stability.analysis.prediction import helps as helps_lib
from stability.analysis.prediction import observations as observations_lib
from stability.analysis.prediction import predict, predictor, predictors, rates
from stability.analysis.prediction import surface as surface_lib
from stability.analysis.prediction import targets as targets_lib
from stability.analysis.prediction.observations import Observations
from stability.analysis.prediction.targets import Target
from stability.analysis.results import Results
from stability.report import answers as answer_text
from stability.report import figure_files, labels
from stability.report.options import Options
from stability.report.plots import style
from stability.report.plots.selection import Plot
from stability.storage import files

FIGURES = ('critical_learning_rate', 'predicted_against_measured')
ABOVE, BELOW = ({'marker': arrow, 'markerfacecolor': 'white'} for arrow in '^v')
_CURVE_POINTS = 60  # in an extrapolated curve
_MANY_TICKS = 100  # an axis that spans this factor or more has at most one tick per decade


@dataclasses.dataclass(frozen=True)
class Predictions:
  """A sweep's predictions for sizes beyond it, and their test on its largest size."""

  results: Results
  by_arm: dict[tuple, Observations]
  surface: surface_lib.RateSurface  # fitted to all runs, or to those of small sizes
  forecasts: pd.DataFrame  # see prediction.predict.predict
  targets: Sequence[Target]
  asked: bool  # whether a person asked for the targets

  @classmethod
  def make(
      cls,
      results: Results,
      curves: pd.DataFrame,
      targets: Sequence[Target] = (),
      risk: float = targets_lib.RISK,
  ) -> 'Predictions':
    """Predicts target sizes or, without targets, the next sizes after the largest trained one.

    Args:
      results: the runs of a sweep.
      curves: see results.load_curves, with the columns of observations.PROBES.
      targets: the sizes to predict; empty: the next sizes.
      risk: the accepted probability of being unstable at the next sizes.

    Raises:
      InsufficientData: no run has finished, the parameters of a finished one are unknown, or no
        size has runs at two learning rates.
    """
    by_arm = observations_lib.by_arm(results, curves)
    if not by_arm:
      raise predictor.InsufficientData('no run has finished yet')
    if any(of_group.runs['parameters'].isna().any() for of_group in by_arm.values()):
      raise predictor.InsufficientData('predictions need the parameters of every finished run')
    predictor.require_curves(by_arm.values())
    largest = max(of_group.sizes[-1] for of_group in by_arm.values())
    shown = targets or [Target(size, risk) for size in targets_lib.next_sizes(largest)]
    parameters = [target.parameters for target in shown]
    surface = surface_lib.fit_arms(by_arm)
    forecasts = predict.predict(results, by_arm, parameters, surface)
    return cls(results, by_arm, surface, forecasts, shown, bool(targets))

  @functools.cached_property
  def held_out(self) -> pd.DataFrame:
    """The test on the largest size, see prediction.predict.hold_out."""
    return predict.hold_out(self.results, self.by_arm)

  @functools.cached_property
  def answers(self) -> list[answers_lib.Answer]:
    """An answer per target and arm."""
    return answers_lib.answer(
        self.results, self.by_arm, self.held_out, self.targets, self.surface
    )

  def sentences(self, answers: Sequence[answers_lib.Answer]) -> list[str]:
    """The answers in words, and which arms help."""
    found = helps_lib.helps(self.results, self.by_arm, self.surface)
    return answer_text.sentences(self.results, answers, found)

  def label(self, values: tuple) -> str:
    """The intervention with these values, as figures and sentences name it."""
    return labels.pairs(self.results.groups, values)


def accuracy_sentence(scores: pd.DataFrame) -> str:
  """States how accurate the answers' predictor was on held-out sizes, or why that is unknown."""
  if scores.empty:
    return (
        'No size could be held out as a test: that takes three sizes with at most a quarter of the'
        " largest one's parameters."
    )
  row = scores[scores['predictor'] == rates.CRITICAL_OF_ALL].iloc[0]
  text = (
      'Test on the largest size, predicted from sizes at most a quarter of it:'
      f' {row["accuracy"]:.0%} of {row["runs"]} runs were correctly predicted as stable or'
      f' unstable. Brier score {row["brier"]:.3f}; {row["base_brier"]:.3f} for the base rate'
  )
  if not pd.isna(row['paper_brier']):
    text += f", {row['paper_brier']:.3f} for the paper's fit"
  intervals = scores[scores['event'] == predictor.UNSTABLE].dropna(subset='coverage')
  parts = [
      f'{part["predictor"]} {part["coverage"]:.0%} of {part["intervals"]}'
      for _, part in intervals[intervals['predictor'] != predict.CHOSEN].iterrows()
  ]
  return f'{text}. Coverage of the 90 % intervals: {", ".join(parts)}.' if parts else f'{text}.'


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
  text['in 90 % interval'] = _coverage(scores)
  text['median error (decades)'] = scores['error'].map(lambda error: labels.decimals(error, 2))
  text = text.replace({'nan%': '', 'nan': ''})
  return text[(scores['runs'] > 0) | (scores['numbers'] > 0)]


def by_size_table(scores: pd.DataFrame) -> pd.DataFrame:
  """The scores of instability and of learning rates by prediction.predict.score_by_size as text."""
  rows = scores[(scores['event'] != predictors.GradientPredictor.event)]
  text = pd.DataFrame({
      'size': rows['parameters'].map(labels.parameters),
      'times': rows['times'].map(answer_text.factor),
      'predictor': rows['predictor'],
      'runs': rows['runs'].astype(str),
      'accuracy': rows['accuracy'].map('{:.0%}'.format),
      'Brier score': rows['brier'].map(labels.decimals),
      'log score': rows['log_score'].map(lambda score: labels.decimals(score, 2)),
      'in 90 % interval': _coverage(rows),
      'width (decades)': rows['width'].map(lambda width: labels.decimals(width, 2)),
      'median error (decades)': rows['error'].map(lambda error: labels.decimals(error, 2)),
  }).replace({'nan%': '', 'nan': ''})
  return text[(rows['runs'] > 0) | (rows['numbers'] > 0)]


def _coverage(scores: pd.DataFrame) -> list[str]:
  return [
      f'{share:.0%} of {count}' if count else ''
      for share, count in zip(scores['coverage'], scores['intervals'], strict=True)
  ]


# Figures.


@style.styled
def critical_rates(predictions: Predictions, ax: Axes | None = None) -> Figure:
  """Critical learning rate against parameters: measured, and extrapolated with its interval.

  A line per intervention; arrows mark sizes of which the grid tells only a bound.
  """
  figure, axes = style.grid([''], height=3.3, ax=ax)
  axis = axes[0, 0]
  handles = []
  targets = [target.parameters for target in predictions.targets]
  for i, (values, observations) in enumerate(predictions.by_arm.items()):
    look = {
        'color': (colour := style.INTERVENTION_COLOURS[i % len(style.INTERVENTION_COLOURS)]),
        'marker': style.INTERVENTION_MARKERS[i % len(style.INTERVENTION_MARKERS)],
    }
    curves = observations.curves
    for censored, marker in ((0, {}), (1, ABOVE), (-1, BELOW)):
      of_kind = curves[curves['critical_censored'] == censored]
      measured = 10 ** of_kind['log_critical']
      axis.plot(of_kind['parameters'], measured, linestyle='', **look | marker)
    name = labels.wrapped(predictions.label(values) or 'measured', 30)
    handles.append(style.handle(name, **look))
    if len(observations.sizes) < predictor.MIN_SIZES:
      continue
    smallest, largest = observations.sizes[[0, -1]]
    # Not exactly at a trained size, where the draws follow the measurements.
    sizes = np.geomspace(1.001 * smallest, max([*targets, 0.999 * largest]), _CURVE_POINTS)
    draws = predictions.surface.critical(values, np.log10(sizes))
    axis.plot(sizes, 10**draws.median_C, color=colour, linewidth=1.1)
    low_C, high_C = 10**draws.interval_2xC
    axis.fill_between(sizes, low_C, high_C, color=colour, alpha=0.15, linewidth=0)
  for target in targets:
    axis.axvline(target, color=style.GREY, linestyle=':', linewidth=1.1)
  handles.append(style.handle('predicted size', linestyle=':', linewidth=1.1))
  groups = predictions.by_arm.values()
  for censored, marker, text in ((1, ABOVE, 'lower bound'), (-1, BELOW, 'upper bound')):
    if any((group.runs['critical_censored'] == censored).any() for group in groups):
      handles.append(style.handle(text, linestyle='', **marker))
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

  A column per intervention: attention logits, if there are any, and, beneath, the probability of
  being unstable. The titles have the sizes if they differ.
  """
  held_out = predictions.held_out.dropna(subset='run')
  predicted_colour, measured_colour = style.INTERVENTION_COLOURS[:2]
  has_one_size, panels = held_out['parameters'].nunique() == 1, {}
  for values, rows in results_lib.split(held_out, predictions.results.groups):
    name, size = predictions.label(values), labels.parameters(rows['parameters'].iloc[0])
    panels[name if has_one_size else f'{name}, {size} parameters'] = rows
  has_logits = (held_out['predictor'] == predictors.ATTENTION_LOGIT.name).any()
  figure, axes = style.grid(list(panels), height=2.4, rows=1 + has_logits, ax=ax)
  dots = {'color': measured_colour, 'marker': 'o', 'linestyle': ''}
  for axes_R, rows in zip(axes, panels.values(), strict=True):
    numbers = rows[rows['predictor'] == predictors.ATTENTION_LOGIT.name]
    numbers = numbers.sort_values('learning_rate')
    if len(numbers):
      logits, x = axes_R[0], numbers['learning_rate']
      logits.plot(x, numbers['value'], color=predicted_colour)
      low, high = numbers['low'], numbers['high']
      logits.fill_between(x, low, high, color=predicted_colour, alpha=0.2, lw=0)
      logits.plot(x, numbers['measured'], **dots)
      logits.set_yscale('log')
      style.plain_ticks(logits.yaxis, (1,))
    events = axes_R[-1]
    predicted = rows[rows['predictor'] == rates.CRITICAL_OF_ALL]
    predicted = predicted.sort_values('learning_rate')
    events.plot(predicted['learning_rate'], predicted['probability'], color=predicted_colour)
    measured = rows[rows['event'] == predictor.UNSTABLE].drop_duplicates('run')
    events.plot(measured['learning_rate'], measured['happened'].astype(float), **dots)
    events.set_ylim(-0.06, 1.06)
    style.learning_rate_axis(events)
  if has_logits:
    axes[0, 0].set_ylabel('attention logit')
  axes[0, -1].set_ylabel('unstable')
  line = 'predicted,\n90 % interval' if has_logits else 'predicted'  # that of the logits
  handles = [
      style.handle(line, color=predicted_colour),
      style.handle('measured', **dots),
  ]
  what = f'{size} parameters, held out' if has_one_size else 'held-out sizes'
  style.finish(figure, f'learning rate ({what})', '', handles, '', ax=ax)
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
      )
  ]
  if not predictions.held_out.empty:
    found.append(
        Plot(
            FIGURES[1],
            'Predicted against measured',
            'A test on the largest size, predicted from sizes with at most a quarter of its'
            ' parameters: the highest attention logit up to the step at which it is read, if it was'
            ' logged, and the probability of being unstable.',
            functools.partial(predicted_against_measured, predictions),
        )
    )
  return found


def write_tables(predictions: Predictions, folder: Path) -> None:
  """Writes answers.csv, predictions.csv and, if a size was held out, predictions_held_out.csv."""
  answers = answer_text.answers_csv(predictions.results, predictions.answers)
  files.write_atomic(folder / 'answers.csv', answers.to_csv(index=False))
  files.write_atomic(folder / 'predictions.csv', predictions.forecasts.to_csv(index=False))
  if not predictions.held_out.empty:
    held_out = predictions.held_out.to_csv(index=False)
    files.write_atomic(folder / 'predictions_held_out.csv', held_out)


def write_test(
    results: Results,
    by_arm: Mapping[tuple, Observations],
    fit_up_to: float,
    targets: Sequence[float],
    folder: Path,
) -> pd.DataFrame:
  """Predicts sizes from those up to one; writes forecast_test.csv and forecast_scores.csv.

  forecast_test.svg and .png show the critical learning rates of the arms that have enough sizes to
  predict from.

  Args:
    results: the runs of a sweep.
    by_arm: see observations.by_arm.
    fit_up_to: parameters of the largest size to predict from. All larger trained ones are predicted
      and scored.
    targets: parameters of other sizes to predict.
    folder: where the files are written.

  Returns:
    The scores, see prediction.predict.score_by_size; empty if no predicted size was trained.

  Raises:
    InsufficientData: there are too few sizes to predict from, or none to predict.
  """
  fitted = predict.up_to(by_arm, fit_up_to)
  if all(len(of_arm.sizes) < predictor.MIN_SIZES for of_arm in fitted.values()):
    raise predictor.InsufficientData(f'{predictor.MIN_SIZES} sizes up to it are needed')
  predictor.require_curves(fitted.values())
  tables = [predict.hold_out(results, by_arm, fit_up_to)]
  surface = surface_lib.fit_arms(fitted)
  if targets:
    tables.append(predict.predict(results, fitted, targets, surface))
  if not any(map(len, tables)):
    raise predictor.InsufficientData('no larger size was trained, and none is a target')
  forecasts = pd.concat(tables)
  files.write_atomic(folder / 'forecast_test.csv', forecasts.to_csv(index=False))
  shown = {
      arm: by_arm[arm]
      for arm, of_arm in fitted.items()
      if len(of_arm.sizes) >= predictor.MIN_SIZES
  }
  predicted = [Target(size) for size in sorted(set(forecasts['parameters'].dropna()))]
  of_test = Predictions(results, shown, surface, forecasts, predicted, asked=bool(targets))
  plot = Plot('forecast_test', '', '', functools.partial(critical_rates, of_test))
  figure_files.write(plot, folder, Options())
  if tables[0].empty:
    return pd.DataFrame()
  scores = predict.score_by_size(tables[0])
  files.write_atomic(folder / 'forecast_scores.csv', scores.to_csv(index=False))
  return scores


@dataclasses.dataclass(frozen=True)
class Section:
  """The page's section on larger sizes."""

  predictions: Predictions
  sentences: list[str]
  table: pd.DataFrame
  scores: pd.DataFrame | None
  plots: list[Plot]


def wanted(
    results: Results, curves: pd.DataFrame, targets: Sequence[Target]
) -> Predictions | None:
  """The predictions that a report shows; None if there is nothing to say.

  Args:
    results: the runs of a sweep.
    curves: see results.load_curves, with the columns of observations.PROBES.
    targets: the sizes to predict; empty: the next sizes, if enough sizes were trained.
  """
  if not targets and results.runs['parameters'].nunique() < predictor.MIN_SIZES:
    return None
  try:
    found = Predictions.make(results, curves, targets)
  except predictor.InsufficientData:
    return None
  return found if targets or found.forecasts['chosen'].any() else None


def section(predictions: Predictions) -> Section:
  """The page's section on larger sizes."""
  scores = predict.score([predictions.held_out])
  return Section(
      predictions,
      [*predictions.sentences(predictions.answers), accuracy_sentence(scores)],
      answer_text.table(predictions.results, predictions.answers),
      None if scores.empty else score_table(scores),
      figures(predictions),
  )
