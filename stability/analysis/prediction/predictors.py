"""The predictors of instability at larger sizes: baselines, and candidates to choose from.

A predictor takes the observations of one intervention and forecasts cells, each a size and a
learning rate: the probability that a run is unstable, and a number with its interval. A predictor
raises InsufficientData if it lacks the data it needs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stability.analysis import results
from stability.analysis.instability import UNSTABLE_LOGIT
from stability.analysis.prediction import fits, power_law
from stability.analysis.prediction.observations import (
    CRITICAL_SHARPNESS,
    PRECONDITIONED_SHARPNESS,
    Observations,
)

UNSTABLE = 'unstable'
MIN_SIZES = 3
NOISE_FLOOR = 0.02  # decades; maxima over a batch vary this much between batches
QUICK_DRAWS = 200  # for forecasts that are only compared with each other
MAX_STEPS_TRIED = 10  # when choosing the step at which a probe is read


class InsufficientData(Exception):
  """A predictor lacks the data it needs; the message says which."""


def require_sizes(observations: Observations) -> None:
  """Raises InsufficientData if there are too few sizes for a prediction."""
  if (sizes := len(observations.sizes)) < MIN_SIZES:
    be = 'is' if sizes == 1 else 'are'
    raise InsufficientData(f'{MIN_SIZES} sizes are needed, there {be} {sizes}')


@dataclasses.dataclass(frozen=True)
class Forecast:
  """A predictor's forecast of some cells.

  `cells` has a row per cell: parameters, learning_rate, probability (of the event; NaN: none),
  value, low and high (log10 of the predicted number and of its 90 % interval; NaN: none).
  """

  cells: pd.DataFrame
  note: str  # how the forecast was made


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
    return _measured(observations, np.nan)

  def outcome(self, observations: Observations) -> pd.Series:
    """Whether the event occurred, for each run."""
    return observations.runs['unstable']


@dataclasses.dataclass(frozen=True)
class PaperFit(Predictor):
  """The paper's method (section 3.3), a baseline.

  It extrapolates attention logits by a quadratic in log size at each learning rate, and predicts
  that a run is unstable if they exceed 1e4. It gives no interval. The paper reads the logits at
  step 2,000 of a warm-up of 5,000, a step that was chosen by hand. Here they are read at the end of
  the warm-up, which favours the method.
  """

  name: str = "paper's fit"
  quantity: str = 'attention logit'
  event: str = UNSTABLE

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """Probabilities are 0 or 1."""
    step = self._step(observations)
    points = observations.points(observations.running_max[results.LOGIT][step])
    if not fits.PAPER_FIT.is_determined(points):
      raise InsufficientData('a quadratic needs three sizes at every learning rate')
    value = fits.least_squares(fits.PAPER_FIT, points, fits.Points.from_table(cells))
    probability = (value > np.log10(UNSTABLE_LOGIT)).astype(float)
    forecast_cells = _forecast_cells(cells, probability, value, np.nan, np.nan)
    return Forecast(forecast_cells, f'read at step {step}, against 1e4')

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The highest attention logit up to the step at which it is read."""
    step = self._step(observations)
    return _measured(observations, observations.running_max[results.LOGIT][step])

  def _step(self, observations: Observations) -> int:
    steps = np.array(observations.probe_steps(results.LOGIT))
    if not len(steps):
      raise InsufficientData('no attention logits were logged')
    if observations.runs['warmup_steps'].isna().any():
      raise InsufficientData('the warm-up, at the end of which logits are read, is unknown')
    return int(steps[np.abs(steps - observations.runs['warmup_steps'].max()).argmin()])


@dataclasses.dataclass(frozen=True)
class ProbePredictor(Predictor):
  """Extrapolates a probe read early in training; instability is a logistic function of it."""

  name: str
  probe: str
  quantity: str
  threshold: float | None = None  # runs above it count as unstable if no observed run is unstable
  step: int | None = None  # the step at which the probe is read; None: not calibrated
  event: str = UNSTABLE

  def calibrate(self, observations: Observations) -> 'ProbePredictor':
    """Chooses the step at which reading the probe best predicts the larger of the fitted sizes.

    If no run is unstable, the steps cannot be compared. The last one is then chosen, because the
    threshold applies to the whole of training.
    """
    steps = observations.probe_steps(self.probe)
    if not steps:
      raise InsufficientData(f'no {self.quantity} was logged')
    if not observations.runs['unstable'].any():
      return dataclasses.replace(self, step=steps[-1])
    indices = np.unique(np.geomspace(1, len(steps), MAX_STEPS_TRIED).round().astype(int)) - 1
    candidates = [dataclasses.replace(self, step=steps[i]) for i in indices]
    return min(candidates, key=lambda predictor: _validation_error(predictor, observations))

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """Probabilities come from a logistic regression on the value, averaged over the draws."""
    value = observations.running_max[self.probe][self.step].reindex(observations.runs.index)
    extrapolation = _extrapolate(observations.points(value), cells, NOISE_FLOOR, quick)
    unstable = observations.runs['unstable'].to_numpy()
    link = fits.logistic_regression(value.to_numpy(), unstable)
    note = f'read at step {self.step}'
    if link is None and not unstable.any() and self.threshold is not None:
      note += f'; no run was unstable: against {self.threshold:g}'
      limit = np.log10(self.threshold)
      link = lambda values: (values > limit).astype(float)  # noqa: E731
    probability = np.nan if link is None else link(extrapolation.draws_DxC).mean(axis=0)
    low, high = extrapolation.interval_2xC
    median = extrapolation.median_C
    return Forecast(_forecast_cells(cells, probability, median, low, high), note)

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The probe's highest value up to the step at which it is read."""
    return _measured(observations, observations.running_max[self.probe][self.step])


@dataclasses.dataclass(frozen=True)
class RatePredictor(Predictor):
  """Extrapolates a learning rate that each size has one of as a power law of the size."""

  name: str
  column: str  # of Observations.runs: log10 of the learning rate
  censored: str  # of Observations.runs: how it is censored
  event: str = UNSTABLE

  @property
  def quantity(self) -> str:
    """What is predicted."""
    return self.name

  def extrapolate(
      self, observations: Observations, log_sizes_C: np.ndarray, quick: bool = False
  ) -> power_law.Draws:
    """Draws of log10 of the learning rate at some sizes.

    Raises:
      InsufficientData: the grid contains it at fewer than two sizes.
    """
    points = self.points(observations)
    if (exact := power_law.exact_sizes(points)) < 2:
      raise InsufficientData(
          f'the {self.name} lies within the grid at '
          + ('none of the sizes' if exact == 0 else 'only one of the sizes')
      )
    return power_law.extrapolate(
        points,
        log_sizes_C,
        interpolation=_interpolation_error(observations),
        seed_noise=self.seed_noise(observations),
        draws=QUICK_DRAWS if quick else fits.DRAWS,
        widen=not quick,
    )

  def points(self, observations: Observations) -> fits.Points:
    """The learning rate of each shape; runs of all seeds are one curve."""
    curves = observations.curves
    return fits.Points.from_table(
        curves[['log_size']].assign(
            value=curves[self.column], censored=curves[self.censored], log_rate=0.0
        )
    )

  def seed_noise(self, observations: Observations) -> float:
    """The noise of single runs that averaging over seeds has removed, in decades."""
    return 0.0

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The learning rate of the run's shape."""
    runs = observations.runs
    return _measured(observations, runs[self.column], runs[self.censored])


@dataclasses.dataclass(frozen=True)
class CriticalRatePredictor(RatePredictor):
  """Extrapolates the critical learning rate, above which runs are unstable."""

  name: str = 'critical learning rate'
  column: str = 'log_critical'
  censored: str = 'critical_censored'

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """Probabilities are the share of draws in which the critical rate is below the cell's."""
    sizes = cells['log_size'].drop_duplicates()
    draws = self.extrapolate(observations, sizes.to_numpy(), quick)
    size_C = pd.Index(sizes).get_indexer(cells['log_size'])
    probability = unstable_share(draws.run_DxC[:, size_C], cells['log_rate'].to_numpy())
    low, high = draws.interval_2xC[:, size_C]
    exponent = fits.power_law(
        self.points(observations), noise_floor=_interpolation_error(observations)
    )
    note = 'as parameters to the power of {:.2f} ({:.2f} to {:.2f})'.format(*exponent)
    return Forecast(_forecast_cells(cells, probability, draws.median_C[size_C], low, high), note)

  def seed_noise(self, observations: Observations) -> float:
    """From the critical rates of single seeds."""
    curves = observations.curves
    variance = (curves['critical_spread'] ** 2).mean()
    seeds = observations.runs['seed'].nunique()
    return 0.0 if np.isnan(variance) else float(np.sqrt(variance * (1 - 1 / seeds)))


def unstable_share(log_critical_DxC: np.ndarray, log_rate_C: np.ndarray) -> np.ndarray:
  """The probability that a run at a learning rate is unstable: its critical rate is below it."""
  return (log_critical_DxC < log_rate_C).mean(axis=0)


CRITICAL_RATE = CriticalRatePredictor()
BEST_RATE = RatePredictor('best learning rate', 'log_best', 'best_censored')


def _interpolation_error(observations: Observations) -> float:
  """The standard deviation of the error of a learning rate read from the grid, in decades.

  That of a value that is uniform between two learning rates of the grid is their distance /
  sqrt(12). Interpolation is assumed to halve it.
  """
  return np.diff(np.log10(observations.learning_rates)).max() / np.sqrt(12) / 2


@dataclasses.dataclass(frozen=True)
class GradientPredictor(Predictor):
  """Extrapolates the gradient RMS at the end of training, to compare it with eps (section 3.4)."""

  name: str = 'gradient RMS'
  quantity: str = 'gradient RMS'
  event: str = 'gradient RMS below eps'

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """Probabilities are the share of draws below eps."""
    finite = np.isfinite(observations.runs['log_gradient'])
    if not finite.any():
      raise InsufficientData('no gradient RMS was logged')
    observations = observations.select(finite)
    if (eps := observations.runs['eps'].unique()).size > 1:
      raise InsufficientData('eps differs between the runs')
    if np.isnan(eps[0]):
      raise InsufficientData('eps is unknown')
    points = observations.points(observations.runs['log_gradient'])
    extrapolation = _extrapolate(points, cells, NOISE_FLOOR, quick)
    probability = (extrapolation.draws_DxC < np.log10(eps[0])).mean(axis=0)
    low, high = extrapolation.interval_2xC
    median = extrapolation.median_C
    return Forecast(
        _forecast_cells(cells, probability, median, low, high), f'eps is {eps[0]:g}'
    )

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The gradient RMS at the end of training."""
    return _measured(observations, observations.runs['log_gradient'])

  def outcome(self, observations: Observations) -> pd.Series:
    """Whether the gradient RMS was below eps at the end of training."""
    return 10.0 ** observations.runs['log_gradient'] < observations.runs['eps']


@dataclasses.dataclass(frozen=True)
class LargestSizePredictor(Predictor):
  """A baseline that repeats the outcome of the largest observed size at the same learning rate."""

  name: str = 'as the largest size did'
  quantity: str = ''
  event: str = UNSTABLE

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """Probabilities are the share of the largest size's seeds that were unstable."""
    runs = observations.runs
    largest = runs[runs['parameters'] == observations.sizes[-1]]
    share = largest.groupby('learning_rate')['unstable'].mean()
    probability = cells['learning_rate'].map(share)
    return Forecast(_forecast_cells(cells, probability, np.nan, np.nan, np.nan), '')


@dataclasses.dataclass(frozen=True)
class MeanPredictor(Predictor):
  """Averages the probabilities of several predictors."""

  parts: tuple[Predictor, ...]
  quantity: str = ''
  event: str = UNSTABLE

  @property
  def name(self) -> str:
    """The name, with the number of parts."""
    return f'mean of {len(self.parts)} predictors'

  def calibrate(self, observations: Observations) -> 'MeanPredictor':
    """Calibrates the parts."""
    parts = tuple(part.calibrate(observations) for part in self.parts)
    return dataclasses.replace(self, parts=parts)

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """Predicts probabilities only, no number."""
    probabilities = [
        part.forecast(observations, cells, quick).cells['probability'] for part in self.parts
    ]
    probability = np.mean(probabilities, axis=0)
    return Forecast(_forecast_cells(cells, probability, np.nan, np.nan, np.nan), '')


BASELINES: tuple[Predictor, ...] = (PaperFit(), LargestSizePredictor())
LOGIT = ProbePredictor(
    'attention logit', results.LOGIT, 'attention logit', threshold=UNSTABLE_LOGIT
)
CANDIDATES: tuple[Predictor, ...] = (
    LOGIT,
    CRITICAL_RATE,
    ProbePredictor(
        'critical sharpness', CRITICAL_SHARPNESS, 'critical sharpness over 2 / LR'
    ),
    ProbePredictor(
        'preconditioned sharpness',
        PRECONDITIONED_SHARPNESS,
        'preconditioned sharpness over its limit',
    ),
)


def best_predictor(
    calibrated: Sequence[Predictor], observations: Observations
) -> Predictor | None:
  """The predictor with the lowest Brier score in validation; None if none gave probabilities."""
  scores = {
      predictor: brier_errors.mean()
      for predictor in calibrated
      if len(brier_errors := _validation_errors(predictor, observations)[0])
  }
  return min(scores, key=scores.get) if scores else None


def _validation_error(predictor: Predictor, observations: Observations) -> tuple[float, float]:
  """The predictor's Brier score in validation and, to break ties, the error of its values.

  Brier scores are rounded to 0.01, because few runs do not resolve smaller differences.
  """
  brier_errors, value_errors = _validation_errors(predictor, observations)
  brier = round(float(np.mean(brier_errors)), 2) if len(brier_errors) else 1.0
  return brier, float(np.mean(value_errors)) if len(value_errors) else np.inf


def _validation_errors(
    predictor: Predictor, observations: Observations
) -> tuple[np.ndarray, np.ndarray]:
  """Squared errors of the probabilities, and of the values relative to their variance."""
  brier_errors, value_errors = [], []
  for smaller, held_out in observations.validation_splits():
    cells = held_out.runs[held_out.runs['learning_rate'].isin(smaller.learning_rates)]
    try:
      forecast = predictor.forecast(smaller, cells, quick=True).cells
    except InsufficientData:
      continue
    measured = predictor.measure(held_out).loc[cells.index]
    brier_errors.append((forecast['probability'].to_numpy() - cells['unstable']) ** 2)
    error = (forecast['value'].to_numpy() - measured['value'])[measured['censored'] == 0]
    value_errors.append(error**2 / max(measured['value'].var(), 1e-9))
  join = lambda parts: pd.concat(parts).dropna().to_numpy() if parts else np.empty(0)  # noqa: E731
  return join(brier_errors), join(value_errors)


def _extrapolate(
    points: fits.Points, cells: pd.DataFrame, noise_floor: float, quick: bool
) -> fits.Extrapolation:
  extrapolation = fits.extrapolate(
      points,
      fits.Points.from_table(cells),
      noise_floor=noise_floor,
      draws=QUICK_DRAWS if quick else fits.DRAWS,
      widen=not quick,
  )
  if extrapolation is None:
    raise InsufficientData('too few sizes have the same learning rates')
  return extrapolation


def _forecast_cells(
    cells: pd.DataFrame,
    probability: np.ndarray | float,
    value: np.ndarray | float,
    low: np.ndarray | float,
    high: np.ndarray | float,
) -> pd.DataFrame:
  return cells[['parameters', 'learning_rate']].assign(
      probability=probability, value=value, low=low, high=high
  )


def _measured(
    observations: Observations, value: pd.Series | float, censored: pd.Series | int = 0
) -> pd.DataFrame:
  return pd.DataFrame({'value': value, 'censored': censored}, observations.runs.index)
