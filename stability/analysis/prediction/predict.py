"""What a sweep says of sizes beyond it, and how right it would have been about its largest."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stability.analysis.prediction import observations, predictors
from stability.analysis.prediction.observations import Observations
from stability.analysis.prediction.predictors import FEWEST_SIZES, Predictor, TooLittle
from stability.analysis.results import Results

HELD_OUT_FACTOR = 4  # the size held out has at least as many times the parameters of the others
CHOSEN = 'chosen by validation'  # in a table of scores

Seen = Mapping[tuple, Observations]

_SAID = ('parameters', 'learning_rate', 'probability', 'quantity', 'value', 'low', 'high', 'note')
_MEASURED = ('run', 'seed', 'happened', 'base_rate', 'measured', 'beyond')


def predict(results: Results, seen: Seen, parameters: Sequence[float]) -> pd.DataFrame:
  """What each predictor says of sizes that need not have been trained.

  Args:
    results: of a sweep.
    seen: observations.of it, by intervention.
    parameters: of the sizes.

  Returns:
    A row for each intervention (the columns of results.groups), predictor, size and learning rate
    of the sweep: predictor, chosen (it predicted the larger of the trained sizes best), event,
    times (the largest trained size), parameters, learning_rate, probability (of the event),
    quantity, value, low and high (90 % interval; NaN: none), note. A predictor with too little to
    go by has one row, with the reason as its note.
  """
  return _by_intervention(
      results,
      {
          values: _forecasts(of_one, observations.targets(parameters, of_one.learning_rates), None)
          for values, of_one in seen.items()
      },
  )


def hold_out(results: Results, seen: Seen) -> pd.DataFrame:
  """What predict says of the largest size from those at most a quarter of it, and what happened.

  A row for each run of the largest size. Beside the columns of predict: run, seed, happened
  (whether the event did), base_rate (its share among the fitted runs of the intervention), measured
  (the quantity), beyond (1: it is more than measured says, -1: less). Empty where the sweep has too
  few sizes for that.
  """
  said = {}
  for values, of_one in seen.items():
    parameters, largest = of_one.runs['parameters'], of_one.sizes[-1]
    fitted = of_one.only(parameters <= largest / HELD_OUT_FACTOR)
    rates = of_one.runs['learning_rate'].isin(fitted.learning_rates)
    held = of_one.only((parameters == largest) & rates)
    if len(fitted.sizes) >= FEWEST_SIZES and len(held.runs):
      said[values] = _forecasts(fitted, held.runs, held)
  return _by_intervention(results, said)


def score(held_out: Sequence[pd.DataFrame]) -> pd.DataFrame:
  """How right the predictors were, a row each, over what hold_out gave for one sweep or several.

  Columns: predictor, event, runs, accuracy (of probability > 1/2), brier, base_brier (of the share
  of the fitted runs of the intervention) and paper_brier (of the paper's fit) on the same runs,
  numbers and intervals (how many), coverage (the share within the 90 % intervals) and miss (median,
  decades). The first row is of the predictor that validation chose, whichever it was.
  """
  said = pd.concat(held_out, keys=range(len(held_out)), names=['sweep']).reset_index('sweep')
  if said.empty:
    return pd.DataFrame()
  chosen = said[said['chosen']].assign(predictor=CHOSEN)
  paper = said[said['predictor'] == predictors.Paper.name]
  paper = paper.dropna(subset='run').set_index(['sweep', 'run'])['probability']
  rows = [
      {'predictor': name, 'event': event, **_events(rows, paper), **_numbers(rows)}
      for (name, event), rows in pd.concat([chosen, said]).groupby(
          ['predictor', 'event'], sort=False
      )
  ]
  return pd.DataFrame(rows)


def _events(said: pd.DataFrame, paper: pd.Series) -> dict[str, float]:
  said = said.dropna(subset=['run', 'probability'])
  happened = said['happened'].astype(float)
  paper_said = paper.reindex(pd.MultiIndex.from_frame(said[['sweep', 'run']])).to_numpy()
  paper_said = np.where(said['event'] == predictors.UNSTABLE, paper_said, np.nan)  # of no other
  return {
      'runs': len(said),
      'accuracy': ((said['probability'] > 0.5) == (happened > 0.5)).mean(),
      'brier': ((said['probability'] - happened) ** 2).mean(),
      'base_brier': ((said['base_rate'] - happened) ** 2).mean(),
      'paper_brier': ((paper_said - happened) ** 2).mean(),
  }


def _numbers(said: pd.DataFrame) -> dict[str, float]:
  said = said.dropna(subset=['value', 'measured'])
  # A critical learning rate is one number, said and measured once for all learning rates.
  said = said.drop_duplicates(['sweep', 'parameters', 'seed', 'quantity', 'value', 'measured'])
  exact = said[said['beyond'] == 0]
  limited = said.dropna(subset='low')
  above_low = (limited['measured'] >= limited['low']) | (limited['beyond'] == 1)
  below_high = (limited['measured'] <= limited['high']) | (limited['beyond'] == -1)
  return {
      'numbers': len(said),
      'intervals': len(limited),
      'coverage': (above_low & below_high).mean() if len(limited) else np.nan,
      'miss': np.log10(exact['value'] / exact['measured']).abs().median(),
  }


def _forecasts(
    seen: Observations, targets: pd.DataFrame, held: Observations | None
) -> pd.DataFrame:
  """What all predictors say of the targets; `held`: the runs that are the targets, measured."""
  said: list[tuple[Predictor, pd.DataFrame]] = []
  ours: list[Predictor] = []
  for unsettled in (*predictors.BASELINES, *predictors.OURS, predictors.ByGradient()):
    try:
      if len(seen.sizes) < FEWEST_SIZES:
        raise TooLittle(f'{FEWEST_SIZES} sizes are needed, there are {len(seen.sizes)}')
      predictor = unsettled.settle(seen)
      said.append((predictor, _cells(predictor, seen, targets, held)))
      if unsettled in predictors.OURS:
        ours.append(predictor)
    except TooLittle as reason:
      said.append((unsettled, pd.DataFrame({'note': [str(reason)]})))
  if len(ours) > 1:
    ours.append(predictors.Mean(tuple(ours)))
    said.append((ours[-1], _cells(ours[-1], seen, targets, held)))
  chosen = predictors.best(ours, seen)
  columns = [*_SAID, *(_MEASURED if held else ())]
  parts = []
  for predictor, cells in said:
    part = cells.reindex(columns=columns)
    part.insert(0, 'predictor', predictor.name)
    part.insert(1, 'chosen', predictor == chosen)
    part.insert(2, 'event', predictor.event)
    part.insert(3, 'times', part['parameters'].astype(float) / seen.sizes[-1])
    parts.append(part)
  return pd.concat(parts)


def _cells(
    predictor: Predictor, seen: Observations, targets: pd.DataFrame, held: Observations | None
) -> pd.DataFrame:
  forecast = predictor.forecast(seen, targets)
  cells = forecast.cells.assign(quantity=predictor.quantity, note=forecast.note)
  cells[['value', 'low', 'high']] = 10.0 ** cells[['value', 'low', 'high']].astype(float)
  if held is not None:
    measured = predictor.measured(held)
    cells = cells.assign(
        run=held.runs['run'],
        seed=held.runs['seed'],
        happened=predictor.happened(held),
        base_rate=predictor.happened(seen).mean(),
        measured=10.0 ** measured['value'],
        beyond=measured['beyond'],
    )
  return cells


def _by_intervention(results: Results, said: dict[tuple, pd.DataFrame]) -> pd.DataFrame:
  """One table, led by the columns of the intervention."""
  parts = [
      part.assign(**dict(zip(results.groups, values, strict=True)))[[*results.groups, *part]]
      for values, part in said.items()
  ]
  return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
