"""What a predictor is.

A predictor takes the observations of one intervention and forecasts cells, each a size and a
learning rate: the probability that a run is unstable, and a number with its interval. A predictor
raises InsufficientData if it lacks the data it needs.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import pandas as pd

from stability.analysis.prediction import fits
from stability.analysis.prediction.observations import Observations

UNSTABLE = 'unstable'
MIN_SIZES = 3
QUICK_DRAWS = 200  # for forecasts that are only compared with each other


class InsufficientData(Exception):
  """A predictor lacks the data it needs; the message says which."""


def require_sizes(observations: Observations) -> None:
  """Raises InsufficientData if there are too few sizes for a prediction."""
  if (sizes := len(observations.sizes)) < MIN_SIZES:
    be = 'is' if sizes == 1 else 'are'
    raise InsufficientData(f'{MIN_SIZES} sizes are needed, there {be} {sizes}')


def require_curves(by_arm: Iterable[Observations]) -> None:
  """Raises InsufficientData if no size has runs at two learning rates, to compare."""
  if not any(of_arm.has_curves for of_arm in by_arm):
    raise InsufficientData('no size has runs at two learning rates')


@dataclasses.dataclass(frozen=True)
class Forecast:
  """A predictor's forecast of some cells.

  `cells` has a row per cell: parameters, learning_rate, probability (of the event; NaN: none),
  value, low and high (log10 of the predicted number and of its 90 % interval; NaN: none).
  """

  cells: pd.DataFrame
  note: str  # how the forecast was made
  draws_DxC: np.ndarray | None = None  # of the value; None: it is not tested by them


class Predictor:
  """A method of predicting an event, and usually a number, at sizes that were not trained."""

  name: str
  quantity: str  # what value, low and high measure; empty if no number is predicted
  event: str = UNSTABLE  # the event to which the probability refers

  def calibrate(self, observations: Observations) -> 'Predictor':
    """Returns the predictor with its free choices made by validation on the observations."""
    return self

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """Forecasts cells from the observations.

    Args:
      observations: the runs to predict from.
      cells: see observations.cells.
      quick: fewer draws, and intervals that are not widened; enough to compare predictors.
    """
    raise NotImplementedError

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The measured number of each run: value (log10), and censored (see fits.Points)."""
    return measurements(observations, np.nan)

  def outcome(self, observations: Observations) -> pd.Series:
    """Whether the event occurred, for each run."""
    return observations.runs['unstable']


def forecast_table(
    cells: pd.DataFrame,
    probability: np.ndarray | float,
    value: np.ndarray | float,
    low: np.ndarray | float,
    high: np.ndarray | float,
) -> pd.DataFrame:
  """The table of a Forecast."""
  return cells[['parameters', 'learning_rate']].assign(
      probability=probability, value=value, low=low, high=high
  )


def table_of_draws(
    cells: pd.DataFrame, probability: np.ndarray | float, run_DxC: np.ndarray
) -> pd.DataFrame:
  """The table of a Forecast, from draws of the number of a single run in each cell."""
  low_C, high_C = np.percentile(run_DxC, fits.INTERVAL, axis=0)
  return forecast_table(cells, probability, np.median(run_DxC, axis=0), low_C, high_C)


def tail_share(draws_DxC: np.ndarray, measured: pd.DataFrame) -> np.ndarray:
  """The share of the draws at least as far out as what was measured, on its side of them.

  Args:
    draws_DxC: see Forecast.
    measured: see measurements, a row per cell. For a censored value, only draws on the side that
      excludes the true value count against the forecast.
  """
  value_C, censored_C = measured[['value', 'censored']].to_numpy(float).T
  below_C = np.where(censored_C == 1, 1.0, (draws_DxC <= value_C).mean(axis=0))
  above_C = np.where(censored_C == -1, 1.0, (draws_DxC >= value_C).mean(axis=0))
  return np.where(np.isnan(value_C), np.nan, np.minimum(below_C, above_C))


def measurements(
    observations: Observations, value: pd.Series | float, censored: pd.Series | int = 0
) -> pd.DataFrame:
  """The table of Predictor.measure."""
  return pd.DataFrame({'value': value, 'censored': censored}, observations.runs.index)
