"""Ways to tell from small sizes which learning rates a larger size will not bear.

Each reads the observations of one intervention and says, for every cell (a size and a learning
rate), how likely a run is to be unstable, and a number with its interval. A predictor that has too
little to go by raises TooLittle, with the reason.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stability.analysis import results
from stability.analysis.instability import UNSTABLE_LOGIT
from stability.analysis.prediction import fits
from stability.analysis.prediction.observations import CRITICAL, PRECONDITIONED, Observations

UNSTABLE = 'unstable'
FEWEST_SIZES = 3
LEAST_NOISE = 0.02  # decades: maxima over a batch differ by as much from batch to batch
QUICK_DRAWS = 200  # where only a choice hangs on them
MOST_STEPS = 10  # tried as the step to read at


class TooLittle(Exception):
  """There is nothing to predict from; says what is missing."""


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What a predictor says."""

  # A row per target: parameters, learning_rate, probability (NaN: says nothing), value, low and
  # high (log10 of the number that is predicted; NaN: none), measured later.
  cells: pd.DataFrame
  note: str  # how it was made


class Predictor:
  """See the module."""

  name: str
  quantity: str  # what value, low and high are of; empty: it predicts no number
  event: str = UNSTABLE  # what probability is of

  def settle(self, seen: Observations) -> 'Predictor':
    """With whatever it chooses by validation chosen."""
    return self

  def forecast(self, seen: Observations, targets: pd.DataFrame, quick: bool = False) -> Forecast:
    """What it says of the targets (see observations.targets); quick: where a choice hangs on it."""
    raise NotImplementedError

  def measured(self, runs: Observations) -> pd.DataFrame:
    """log10 of the number in each run: value; beyond: 1 or -1 if it is above or below that."""
    return _measured(runs, np.nan)

  def happened(self, runs: Observations) -> pd.Series:
    """Whether the event did, in each run."""
    return runs.runs['unstable']


@dataclasses.dataclass(frozen=True)
class Paper(Predictor):
  """The paper's: quadratics in log size at each learning rate, 1e4, no interval (section 3.3).

  The paper reads logits at step 2,000 of a warm-up of 5,000 and calls that a choice by hand; here
  they are read at the end of the warm-up, which is to its advantage.
  """

  name: str = "paper's fit"
  quantity: str = 'attention logit'
  event: str = UNSTABLE

  def forecast(self, seen: Observations, targets: pd.DataFrame, quick: bool = False) -> Forecast:
    """Probabilities are 0 or 1."""
    step = self._step(seen)
    points = seen.points(seen.highest[results.LOGIT][step])
    if not fits.PAPER.fits(points):
      raise TooLittle('a quadratic needs three sizes at every learning rate')
    value = fits.least_squares(fits.PAPER, points, fits.Points.of(targets))
    probability = (value > np.log10(UNSTABLE_LOGIT)).astype(float)
    return Forecast(
        _cells(targets, probability, value, np.nan, np.nan), f'read at step {step}, against 1e4'
    )

  def measured(self, runs: Observations) -> pd.DataFrame:
    """The highest logit by that step."""
    return _measured(runs, runs.highest[results.LOGIT][self._step(runs)])

  def _step(self, seen: Observations) -> int:
    steps = np.array(seen.steps(results.LOGIT))
    if not len(steps):
      raise TooLittle('no attention logits were logged')
    return int(steps[np.abs(steps - seen.runs['warmup'].max()).argmin()])


@dataclasses.dataclass(frozen=True)
class ByProbe(Predictor):
  """What a probe reaches early in training, extrapolated, and how instability went with it."""

  name: str
  probe: str
  quantity: str
  threshold: float | None = None  # unstable above it, as long as no run at hand was unstable
  step: int | None = None  # to read at; None: not settled
  event: str = UNSTABLE

  def settle(self, seen: Observations) -> 'ByProbe':
    """Reads at the step that foretold the larger of the fitted sizes best.

    Where no run was unstable none did: at the last one then, for the threshold is of all training.
    """
    steps = seen.steps(self.probe)
    if not steps:
      raise TooLittle(f'no {self.quantity} was logged')
    if not seen.runs['unstable'].any():
      return dataclasses.replace(self, step=steps[-1])
    places = np.unique(np.geomspace(1, len(steps), MOST_STEPS).round().astype(int)) - 1
    tried = [dataclasses.replace(self, step=steps[place]) for place in places]
    return min(tried, key=lambda predictor: _miss(predictor, seen))

  def forecast(self, seen: Observations, targets: pd.DataFrame, quick: bool = False) -> Forecast:
    """Probabilities by a logistic regression on the value, averaged over the draws."""
    value = seen.highest[self.probe][self.step].reindex(seen.runs.index)
    extrapolation = _extrapolate(seen.points(value), targets, LEAST_NOISE, quick)
    link = fits.logistic(value.to_numpy(), seen.runs['unstable'].to_numpy())
    note = f'read at step {self.step}'
    if link is None and not seen.runs['unstable'].any() and self.threshold is not None:
      note += f'; no run was unstable: against {self.threshold:g}'
      limit = np.log10(self.threshold)
      link = lambda values: (values > limit).astype(float)  # noqa: E731
    probability = np.nan if link is None else link(extrapolation.draws_DxT).mean(axis=0)
    low, high = extrapolation.interval_2xT
    return Forecast(_cells(targets, probability, extrapolation.value_T, low, high), note)

  def measured(self, runs: Observations) -> pd.DataFrame:
    """The highest value by that step."""
    return _measured(runs, runs.highest[self.probe][self.step])


@dataclasses.dataclass(frozen=True)
class ByCriticalRate(Predictor):
  """The learning rate from which a size is unstable, as a power of the size."""

  name: str = 'critical learning rate'
  quantity: str = 'critical learning rate'
  event: str = UNSTABLE

  def forecast(self, seen: Observations, targets: pd.DataFrame, quick: bool = False) -> Forecast:
    """Probabilities: the share of draws of the critical rate that are below the cell's."""
    rates = seen.runs.drop_duplicates('row')
    known = rates['size'][rates['beyond'] == 0].nunique()
    if known < 2:
      raise TooLittle(
          'the sweep shows where instability begins at '
          + ('none of its sizes' if known == 0 else 'one of its sizes only')
      )
    points = fits.Points.of(
        rates[['size', 'seed', 'beyond']].assign(value=rates['critical'], rate=0.0)
    )
    sizes = targets[['size']].drop_duplicates().assign(rate=0.0)
    # Anywhere between two learning rates of the grid would be a standard deviation of their
    # distance / sqrt(12); where the loss passes the margin is taken to halve that.
    least_noise = np.diff(np.log10(seen.learning_rates)).max() / np.sqrt(12) / 2
    extrapolation = _extrapolate(points, sizes, least_noise, quick)
    place = pd.Index(sizes['size']).get_indexer(targets['size'])
    drawn_DxT = extrapolation.draws_DxT[:, place]
    probability = (drawn_DxT < targets['rate'].to_numpy()).mean(axis=0)
    low, high = extrapolation.interval_2xT[:, place]
    law = fits.power_law(points, least_noise=least_noise)
    note = 'as parameters to the power of {:.2f} ({:.2f} to {:.2f})'.format(*law)
    return Forecast(_cells(targets, probability, extrapolation.value_T[place], low, high), note)

  def measured(self, runs: Observations) -> pd.DataFrame:
    """That of the run's size and seed."""
    return _measured(runs, runs.runs['critical'], runs.runs['beyond'])


@dataclasses.dataclass(frozen=True)
class ByGradient(Predictor):
  """Gradient RMS at the end of training against eps (paper section 3.4)."""

  name: str = 'gradient RMS'
  quantity: str = 'gradient RMS'
  event: str = 'gradient RMS below eps'

  def forecast(self, seen: Observations, targets: pd.DataFrame, quick: bool = False) -> Forecast:
    """Probabilities: the share of draws below eps."""
    finite = np.isfinite(seen.runs['gradient'])
    if not finite.any():
      raise TooLittle('no gradient RMS was logged')
    seen = seen.only(finite)
    if (eps := seen.runs['eps'].unique()).size > 1:
      raise TooLittle('eps differs between the runs')
    extrapolation = _extrapolate(seen.points(seen.runs['gradient']), targets, LEAST_NOISE, quick)
    probability = (extrapolation.draws_DxT < np.log10(eps[0])).mean(axis=0)
    low, high = extrapolation.interval_2xT
    return Forecast(
        _cells(targets, probability, extrapolation.value_T, low, high), f'eps is {eps[0]:g}'
    )

  def measured(self, runs: Observations) -> pd.DataFrame:
    """At the end of training."""
    return _measured(runs, runs.runs['gradient'])

  def happened(self, runs: Observations) -> pd.Series:
    """Whether it fell below eps."""
    return 10.0 ** runs.runs['gradient'] < runs.runs['eps']


@dataclasses.dataclass(frozen=True)
class AsBefore(Predictor):
  """What the largest size at hand did at the same learning rate: what any prediction must beat."""

  name: str = 'as the largest size did'
  quantity: str = ''
  event: str = UNSTABLE

  def forecast(self, seen: Observations, targets: pd.DataFrame, quick: bool = False) -> Forecast:
    """Probabilities: the share of its seeds that were unstable."""
    largest = seen.runs[seen.runs['parameters'] == seen.sizes[-1]]
    share = largest.groupby('learning_rate')['unstable'].mean()
    probability = targets['learning_rate'].map(share)
    return Forecast(_cells(targets, probability, np.nan, np.nan, np.nan), '')


@dataclasses.dataclass(frozen=True)
class Mean(Predictor):
  """The mean of several predictors' probabilities."""

  parts: tuple[Predictor, ...]
  quantity: str = ''
  event: str = UNSTABLE

  @property
  def name(self) -> str:
    """Of its parts."""
    return f'mean of {len(self.parts)} predictors'

  def settle(self, seen: Observations) -> 'Mean':
    """With its parts settled."""
    return dataclasses.replace(self, parts=tuple(part.settle(seen) for part in self.parts))

  def forecast(self, seen: Observations, targets: pd.DataFrame, quick: bool = False) -> Forecast:
    """Probabilities alone."""
    probabilities = [
        part.forecast(seen, targets, quick).cells['probability'] for part in self.parts
    ]
    probability = np.mean(probabilities, axis=0)
    return Forecast(_cells(targets, probability, np.nan, np.nan, np.nan), '')


BASELINES: tuple[Predictor, ...] = (Paper(), AsBefore())
LOGIT = ByProbe('attention logit', results.LOGIT, 'attention logit', threshold=UNSTABLE_LOGIT)
OURS: tuple[Predictor, ...] = (
    LOGIT,
    ByCriticalRate(),
    ByProbe('critical sharpness', CRITICAL, 'critical sharpness over 2 / LR'),
    ByProbe('preconditioned sharpness', PRECONDITIONED, 'preconditioned sharpness over its limit'),
)


def best(settled: Sequence[Predictor], seen: Observations) -> Predictor | None:
  """That whose probabilities were best over the folds of the observations; None if none had any."""
  errors = {one: squares.mean() for one in settled if len(squares := _over_folds(one, seen)[0])}
  return min(errors, key=errors.get) if errors else None


def _miss(predictor: Predictor, seen: Observations) -> tuple[float, float]:
  """How badly it foretold the larger sizes at hand: by probability, then by value.

  Probabilities count in steps of 0.01: what is closer is not told apart by so few runs.
  """
  squares, misses = _over_folds(predictor, seen)
  brier = round(float(np.mean(squares)), 2) if len(squares) else 1.0
  return brier, float(np.mean(misses)) if len(misses) else np.inf


def _over_folds(predictor: Predictor, seen: Observations) -> tuple[np.ndarray, np.ndarray]:
  """Squared errors of probabilities, and of values as shares of their variance over the cells."""
  squares, misses = [], []
  for below, of_size in seen.folds():
    cells = of_size.runs[of_size.runs['learning_rate'].isin(below.learning_rates)]
    try:
      said = predictor.forecast(below, cells, quick=True).cells
    except TooLittle:
      continue
    measured = predictor.measured(of_size).loc[cells.index]
    squares.append((said['probability'].to_numpy() - cells['unstable']) ** 2)
    miss = (said['value'].to_numpy() - measured['value'])[measured['beyond'] == 0]
    misses.append(miss**2 / max(measured['value'].var(), 1e-9))
  join = lambda parts: pd.concat(parts).dropna().to_numpy() if parts else np.empty(0)  # noqa: E731
  return join(squares), join(misses)


def _extrapolate(
    points: fits.Points, targets: pd.DataFrame, least_noise: float, quick: bool
) -> fits.Extrapolation:
  found = fits.extrapolate(
      points,
      fits.Points.of(targets),
      least_noise=least_noise,
      draws=QUICK_DRAWS if quick else fits.DRAWS,
      widen=not quick,
  )
  if found is None:
    raise TooLittle('too few sizes have the same learning rates')
  return found


def _cells(
    targets: pd.DataFrame,
    probability: np.ndarray | float,
    value: np.ndarray | float,
    low: np.ndarray | float,
    high: np.ndarray | float,
) -> pd.DataFrame:
  return targets[['parameters', 'learning_rate']].assign(
      probability=probability, value=value, low=low, high=high
  )


def _measured(
    runs: Observations, value: pd.Series | float, beyond: pd.Series | int = 0
) -> pd.DataFrame:
  return pd.DataFrame({'value': value, 'beyond': beyond}, runs.runs.index)
