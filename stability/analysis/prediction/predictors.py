"""The predictors of instability at larger sizes: baselines, and candidates to choose from."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stability.analysis import results
from stability.analysis.instability import UNSTABLE_LOGIT
from stability.analysis.prediction import fits, rates
from stability.analysis.prediction.observations import (
    CRITICAL_SHARPNESS,
    PRECONDITIONED_SHARPNESS,
    Observations,
)
from stability.analysis.prediction.predictor import (
    QUICK_DRAWS,
    UNSTABLE,
    Forecast,
    InsufficientData,
    Predictor,
    forecast_table,
    measurements,
    table_of_draws,
)

NOISE_FLOOR = 0.02  # decades; maxima over a batch vary this much between batches
MAX_STEPS_TRIED = 10  # when choosing the step at which a probe is read


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
    table = forecast_table(cells, probability, value, np.nan, np.nan)
    return Forecast(table, f'read at step {step}, against 1e4')

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The highest attention logit up to the step at which it is read."""
    step = self._step(observations)
    return measurements(observations, observations.running_max[results.LOGIT][step])

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
    draws_DxC = _extrapolate(observations.points(value), cells, quick)
    unstable = observations.runs['unstable'].to_numpy()
    link = fits.logistic_regression(value.to_numpy(), unstable)
    note = f'read at step {self.step}'
    if link is None and not unstable.any() and self.threshold is not None:
      note += f'; no run was unstable: against {self.threshold:g}'
      limit = np.log10(self.threshold)
      link = lambda values: (values > limit).astype(float)  # noqa: E731
    probability = np.nan if link is None else link(draws_DxC).mean(axis=0)
    return Forecast(table_of_draws(cells, probability, draws_DxC), note)

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The probe's highest value up to the step at which it is read."""
    return measurements(observations, observations.running_max[self.probe][self.step])


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
    draws_DxC = _extrapolate(points, cells, quick)
    probability = (draws_DxC < np.log10(eps[0])).mean(axis=0)
    return Forecast(table_of_draws(cells, probability, draws_DxC), f'eps is {eps[0]:g}')

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The gradient RMS at the end of training."""
    return measurements(observations, observations.runs['log_gradient'])

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
    return Forecast(forecast_table(cells, probability, np.nan, np.nan, np.nan), '')


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
    return Forecast(forecast_table(cells, probability, np.nan, np.nan, np.nan), '')


BASELINES: tuple[Predictor, ...] = (PaperFit(), LargestSizePredictor())
ATTENTION_LOGIT = ProbePredictor(
    'attention logit', results.LOGIT, 'attention logit', threshold=UNSTABLE_LOGIT
)
CANDIDATES: tuple[Predictor, ...] = (
    ATTENTION_LOGIT,
    rates.CRITICAL_RATE,
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
  """The predictor with the lowest Brier score in validation; None if none gave probabilities.

  Scores are those of the held-out runs that all predictors gave probabilities for: some runs are
  easier to predict than others. As long as there are no such runs, the predictor of the fewest is
  left out.
  """
  errors = [_validation_errors(predictor, observations)[0] for predictor in calibrated]
  table = pd.DataFrame({i: error for i, error in enumerate(errors) if len(error)})
  while table.dropna().empty and len(table.columns):
    table = table.drop(columns=table.count().idxmin())
  return calibrated[table.dropna().mean().idxmin()] if len(table.columns) else None


def _validation_error(predictor: Predictor, observations: Observations) -> tuple[float, float]:
  """The predictor's Brier score in validation and, to break ties, the error of its values.

  Brier scores are rounded to 0.01, because few runs do not resolve smaller differences.
  """
  brier_errors, value_errors = _validation_errors(predictor, observations)
  brier = round(float(np.mean(brier_errors)), 2) if len(brier_errors) else 1.0
  return brier, float(np.mean(value_errors)) if len(value_errors) else np.inf


def _validation_errors(
    predictor: Predictor, observations: Observations
) -> tuple[pd.Series, pd.Series]:
  """Squared errors of the probabilities, and of the values relative to their variance, by run."""
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
  return _joined(brier_errors), _joined(value_errors)


def _joined(parts: Sequence[pd.Series]) -> pd.Series:
  return pd.concat(parts).astype(float).dropna() if parts else pd.Series(dtype=float)


def _extrapolate(points: fits.Points, cells: pd.DataFrame, quick: bool) -> np.ndarray:
  draws_DxC = fits.extrapolate(
      points,
      fits.Points.from_table(cells),
      noise_floor=NOISE_FLOOR,
      draws=QUICK_DRAWS if quick else fits.DRAWS,
      widen=not quick,
  )
  if draws_DxC is None:
    raise InsufficientData('too few sizes have the same learning rates')
  return draws_DxC
