"""Predicts sizes beyond a sweep, and tests the predictors on the sweep's own largest size."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stability.analysis.prediction import observations as observations_lib
from stability.analysis.prediction import predictor as predictor_lib
from stability.analysis.prediction import predictors, rates
from stability.analysis.prediction import surface as surface_lib
from stability.analysis.prediction.observations import Observations
from stability.analysis.prediction.predictor import MIN_SIZES, InsufficientData, Predictor
from stability.analysis.results import Results

HELD_OUT_FACTOR = 4  # the held-out size has at least this many times the parameters of the others
CHOSEN = 'chosen by validation'  # stands for the chosen predictor in the table of scores
BASE_RATE = 'base rate'  # the share of an arm's fitted runs that were unstable
MIN_PROBABILITY = 0.01  # log scores clip here: few runs cannot resolve smaller ones

ByArm = Mapping[tuple, Observations]

_FORECAST_COLUMNS = (
    'parameters', 'learning_rate', 'probability', 'quantity', 'value', 'low', 'high', 'note'
)  # fmt: skip
_OUTCOME_COLUMNS = ('run', 'seed', 'happened', 'base_rate', 'measured', 'beyond', 'tail')


def predict(
    results: Results,
    by_arm: ByArm,
    parameters: Sequence[float],
    surface: surface_lib.RateSurface,
) -> pd.DataFrame:
  """Forecasts sizes, trained or not, with every predictor.

  Args:
    results: the runs of a sweep.
    by_arm: see observations.by_arm.
    parameters: parameter counts of the sizes to predict.
    surface: see surface.fit_arms.

  Returns:
    A row for each intervention (the columns of results.groups), predictor, size and learning rate
    of the sweep. Other columns: predictor, chosen (whether the predictor was the best at predicting
    the larger of the trained sizes), event, times (parameters relative to the largest trained
    size), parameters, learning_rate, probability (of the event), quantity (what value measures),
    value, low and high (90 % interval; NaN: none), note. A predictor without enough data has one
    row, with the reason as its note.
  """
  tables = {}
  for arm, group in by_arm.items():
    cells = observations_lib.cells(parameters, group.learning_rates)
    tables[arm] = _forecasts(group, cells, None, _of_surface(surface, arm))
  return _concatenated(results, tables)


def _of_surface(surface: surface_lib.RateSurface, arm: tuple) -> list[Predictor]:
  """The predictors of an arm's learning rates."""
  return [rates.SurfacePredictor(rate, surface, arm) for rate in rates.RATES]


def up_to(by_arm: ByArm, parameters: float) -> dict[tuple, Observations]:
  """The runs of sizes up to this one; interventions without any are left out."""
  found = {
      arm: group.select(group.runs['parameters'] <= parameters)
      for arm, group in by_arm.items()
  }
  return {arm: group for arm, group in found.items() if len(group.runs)}


def hold_out(
    results: Results, by_arm: ByArm, fit_up_to: float | None = None
) -> pd.DataFrame:
  """Predicts large sizes from small ones, and adds what was measured.

  Args:
    results: the runs of a sweep.
    by_arm: see observations.by_arm.
    fit_up_to: parameters of the largest size to predict from; all larger ones are predicted.
      Without it, the largest size of each intervention is predicted from those at most a quarter of
      it.

  Returns:
    A row for each predictor and run of the predicted sizes. Columns in addition to those of
    predict: run, seed, happened (whether the event occurred), base_rate (the share of the
    intervention's fitted runs in which it occurred), measured (the quantity), beyond (1: the true
    value is above `measured`, -1: below it, 0: neither), tail (see predictor.tail_share; NaN: no
    draws). Empty if the sweep has too few sizes.
  """
  tables = {}
  surfaces = {}  # by the largest size to predict from
  for arm, group in by_arm.items():
    parameters, largest = group.runs['parameters'], group.sizes[-1]
    limit = largest / HELD_OUT_FACTOR if fit_up_to is None else fit_up_to
    fitted = group.select(parameters <= limit)
    is_held_out = parameters == largest if fit_up_to is None else parameters > limit
    has_fitted_rate = group.runs['learning_rate'].isin(fitted.learning_rates)
    held_out = group.select(is_held_out & has_fitted_rate)
    if len(fitted.sizes) >= MIN_SIZES and fitted.has_curves and len(held_out.runs):
      if limit not in surfaces:
        surfaces[limit] = surface_lib.fit_arms(up_to(by_arm, limit))
      tables[arm] = _forecasts(
          fitted, held_out.runs, held_out, _of_surface(surfaces[limit], arm)
      )
  return _concatenated(results, tables)


def score(held_out: Sequence[pd.DataFrame]) -> pd.DataFrame:
  """Scores the predictors on the held-out sizes of one sweep or several.

  Args:
    held_out: the result of hold_out for each sweep.

  Returns:
    A table with a row per predictor and event, and the columns:
      predictor, event
      runs: the number of runs
      accuracy: the share of runs for which a probability above 1/2 agrees with the event
      brier, base_brier, paper_brier: Brier scores of the predictor, of the base rate and of the
        paper's fit, on the same runs; that of the paper's fit is NaN if it lacks one of them
      log_score: the mean of -ln(probability of what happened), which is at least
        MIN_PROBABILITY
      numbers, intervals: how many measured numbers were predicted, and with an interval
      coverage: the share of these measured numbers that lie within the 90 % intervals
      width: the median width of these intervals, in decades
      error: the median absolute error of the numbers, in decades
    The first row, CHOSEN, has the forecasts of whichever predictor validation chose.
  """
  tables = pd.concat(held_out, keys=range(len(held_out)), names=['sweep']).reset_index('sweep')
  if tables.empty:
    return pd.DataFrame()
  chosen = tables[tables['chosen']].assign(predictor=CHOSEN)
  paper = tables[tables['predictor'] == predictors.PaperFit.name]
  paper = paper.dropna(subset='run').set_index(['sweep', 'run'])['probability']
  rows = [
      {'predictor': name, 'event': event, **_event_scores(rows, paper), **_number_scores(rows)}
      for (name, event), rows in pd.concat([chosen, tables]).groupby(
          ['predictor', 'event'], sort=False
      )
  ]
  return pd.DataFrame(rows)


def score_by_size(held_out: pd.DataFrame) -> pd.DataFrame:
  """Scores the predictors on each predicted size of a sweep by itself.

  Args:
    held_out: see hold_out.

  Returns:
    The rows of score for each size, with the columns parameters and times (parameters relative to
    the largest fitted size) before the others, and a row for the base rate.
  """
  parts = []
  for parameters, rows in held_out.dropna(subset='run').groupby('parameters'):
    base = rows[rows['event'] == predictor_lib.UNSTABLE].drop_duplicates('run')
    base = base.assign(predictor=BASE_RATE, chosen=False, probability=base['base_rate'])
    part = score([pd.concat([rows, base.assign(value=np.nan)])])
    part.insert(0, 'parameters', parameters)
    part.insert(1, 'times', rows['times'].median())
    parts.append(part)
  return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _event_scores(rows: pd.DataFrame, paper: pd.Series) -> dict[str, float]:
  rows = rows.dropna(subset=['run', 'probability'])
  happened = rows['happened'].astype(float)
  by_paper = paper.reindex(pd.MultiIndex.from_frame(rows[['sweep', 'run']])).to_numpy()
  clipped = rows['probability'].astype(float).clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
  # The paper's fit predicts this event only.
  by_paper = np.where(rows['event'] == predictor_lib.UNSTABLE, by_paper, np.nan)
  return {
      'runs': len(rows),
      'accuracy': ((rows['probability'] > 0.5) == (happened > 0.5)).mean(),
      'brier': ((rows['probability'] - happened) ** 2).mean(),
      'base_brier': ((rows['base_rate'] - happened) ** 2).mean(),
      'paper_brier': ((by_paper - happened) ** 2).mean(skipna=False),
      'log_score': -np.log(clipped.where(happened > 0.5, 1 - clipped)).mean(),
  }


def _number_scores(rows: pd.DataFrame) -> dict[str, float]:
  rows = rows.dropna(subset=['value', 'measured'])
  # The critical learning rate is one number per size, repeated at all learning rates and seeds.
  rows = rows.drop_duplicates(['sweep', 'parameters', 'quantity', 'value', 'measured'])
  exact = rows[rows['beyond'] == 0]
  with_interval = rows.dropna(subset='low')
  measured, censored = with_interval['measured'], with_interval['beyond']
  above_low = (measured >= with_interval['low']) | (censored == 1)
  below_high = (measured <= with_interval['high']) | (censored == -1)
  return {
      'numbers': len(rows),
      'intervals': len(with_interval),
      'coverage': (above_low & below_high).mean() if len(with_interval) else np.nan,
      'width': np.log10(with_interval['high'] / with_interval['low']).median(),
      'error': np.log10(exact['value'] / exact['measured']).abs().median(),
  }


def _forecasts(
    observations: Observations,
    cells: pd.DataFrame,
    held_out: Observations | None,
    of_surface: Sequence[Predictor],
) -> pd.DataFrame:
  """The forecasts of all predictors; `held_out` are the runs of the cells if they were trained."""
  tables: list[tuple[Predictor, pd.DataFrame]] = []
  candidates: list[Predictor] = []
  for uncalibrated in (
      *predictors.BASELINES,
      *predictors.CANDIDATES,
      rates.BEST_RATE,
      *of_surface,
      predictors.GradientPredictor(),
  ):
    try:
      predictor_lib.require_sizes(observations)
      predictor = uncalibrated.calibrate(observations)
      tables.append((predictor, _forecast_table(predictor, observations, cells, held_out)))
      if uncalibrated in predictors.CANDIDATES:
        candidates.append(predictor)
    except InsufficientData as reason:
      tables.append((uncalibrated, pd.DataFrame({'note': [str(reason)]})))
  if len(candidates) > 1:
    mean = predictors.MeanPredictor(tuple(candidates))
    candidates.append(mean)
    tables.append((mean, _forecast_table(mean, observations, cells, held_out)))
  chosen = predictors.best_predictor(candidates, observations)
  columns = [*_FORECAST_COLUMNS, *(_OUTCOME_COLUMNS if held_out else ())]
  parts = []
  for predictor, table in tables:
    part = table.reindex(columns=columns)
    part.insert(0, 'predictor', predictor.name)
    part.insert(1, 'chosen', predictor == chosen)
    part.insert(2, 'event', predictor.event)
    part.insert(3, 'times', part['parameters'].astype(float) / observations.sizes[-1])
    parts.append(part)
  return pd.concat(parts)


def _forecast_table(
    predictor: Predictor,
    observations: Observations,
    cells: pd.DataFrame,
    held_out: Observations | None,
) -> pd.DataFrame:
  forecast = predictor.forecast(observations, cells)
  table = forecast.cells.assign(quantity=predictor.quantity, note=forecast.note)
  table[['value', 'low', 'high']] = 10.0 ** table[['value', 'low', 'high']].astype(float)
  if held_out is not None:
    measured = predictor.measure(held_out)
    table = table.assign(
        run=held_out.runs['run'],
        seed=held_out.runs['seed'],
        happened=predictor.outcome(held_out),
        base_rate=predictor.outcome(observations).mean(),
        measured=10.0 ** measured['value'],
        beyond=measured['censored'],
        tail=np.nan
        if forecast.draws_DxC is None
        else predictor_lib.tail_share(forecast.draws_DxC, measured),
    )
  return table


def _concatenated(results: Results, tables: dict[tuple, pd.DataFrame]) -> pd.DataFrame:
  """Concatenates the tables, with the columns of the intervention first."""
  parts = [
      part.assign(**dict(zip(results.groups, values, strict=True)))[[*results.groups, *part]]
      for values, part in tables.items()
  ]
  return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
