"""The predictors of the critical and of the best learning rate of a size."""

import dataclasses

import numpy as np
import pandas as pd

from stability.analysis.prediction import fits, power_law
from stability.analysis.prediction import surface as surface_lib
from stability.analysis.prediction.observations import Observations
from stability.analysis.prediction.predictor import (
    QUICK_DRAWS,
    UNSTABLE,
    Forecast,
    InsufficientData,
    Predictor,
    measurements,
    table_of_draws,
)


@dataclasses.dataclass(frozen=True)
class RatePredictor(Predictor):
  """Extrapolates a learning rate of each size as a power law of the size."""

  name: str
  column: str  # of Observations.runs: log10 of the learning rate
  censored: str  # of Observations.runs: how it is censored
  event: str = UNSTABLE

  @property
  def quantity(self) -> str:
    """What is predicted."""
    return self.name

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """Predicts the learning rate only, no probability."""
    draws = self.extrapolate(observations, cells['log_size'].to_numpy(), quick)
    return Forecast(table_of_draws(cells, np.nan, draws.run_DxC), '')

  def extrapolate(
      self, observations: Observations, log_sizes_C: np.ndarray, quick: bool = False
  ) -> power_law.Draws:
    """Draws of log10 of the learning rate at some sizes.

    Raises:
      InsufficientData: the grid contains it at fewer than two sizes.
    """
    self.require_exact(observations)
    return power_law.extrapolate(
        self.points(observations),
        log_sizes_C,
        interpolation=_interpolation_error(observations),
        seed_noise=self.seed_noise(observations),
        draws=QUICK_DRAWS if quick else fits.DRAWS,
        widen=not quick,
    )

  def require_exact(self, observations: Observations) -> None:
    """Raises InsufficientData if the grid contains it at fewer than two sizes."""
    if (exact := power_law.exact_sizes(self.points(observations))) < 2:
      raise InsufficientData(
          f'the {self.name} lies within the grid at '
          + ('none of the sizes' if exact == 0 else 'only one of the sizes')
      )

  def points(self, observations: Observations) -> fits.Points:
    """The learning rate of each shape that has one; runs of all seeds are one curve."""
    curves = observations.curves.dropna(subset=self.column)
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
    return measurements(observations, runs[self.column], runs[self.censored])


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
    run_DxC = draws.run_DxC[:, pd.Index(sizes).get_indexer(cells['log_size'])]
    probability = unstable_share(run_DxC, cells['log_rate'].to_numpy())
    note = ''
    if not quick:  # the exponent takes as long as the forecast
      exponent = fits.power_law(
          self.points(observations), noise_floor=_interpolation_error(observations)
      )
      note = 'as parameters to the power of {:.2f} ({:.2f} to {:.2f})'.format(*exponent)
    return Forecast(table_of_draws(cells, probability, run_DxC), note)

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
BEST_RATE = RatePredictor('best learning rate', 'log_best', 'best_censored', event='')
RATES = (CRITICAL_RATE, BEST_RATE)
CRITICAL_OF_ALL = 'critical learning rate (all arms)'  # the predictor of the answers


@dataclasses.dataclass(frozen=True, eq=False)
class SurfacePredictor(Predictor):
  """Predicts one of these learning rates of an arm from the runs of all arms; see surface.py."""

  rate: RatePredictor
  surface: surface_lib.RateSurface
  arm: tuple

  @property
  def name(self) -> str:
    """The name, which says what it is predicted from."""
    return f'{self.rate.name} (all arms)'

  @property
  def quantity(self) -> str:
    """What is predicted."""
    return self.rate.name

  @property
  def event(self) -> str:
    """The event to which the probability refers."""
    return self.rate.event

  def forecast(
      self, observations: Observations, cells: pd.DataFrame, quick: bool = False
  ) -> Forecast:
    """The observations are those that the surface was fitted to."""
    log_size, log_rate = cells['log_size'].to_numpy(), cells['log_rate'].to_numpy()
    run_DxC = self.draws(log_size).run_DxC
    probability = unstable_share(run_DxC, log_rate) if self.rate == CRITICAL_RATE else np.nan
    return Forecast(table_of_draws(cells, probability, run_DxC), '', run_DxC)

  def draws(self, log_sizes_C: np.ndarray) -> power_law.Draws:
    """Draws of log10 of the learning rate at some sizes."""
    of_rate = self.surface.critical if self.rate == CRITICAL_RATE else self.surface.best
    return of_rate(self.arm, log_sizes_C)

  def measure(self, observations: Observations) -> pd.DataFrame:
    """The learning rate of the run's shape."""
    return self.rate.measure(observations)


def _interpolation_error(observations: Observations) -> float:
  """The interpolation_sd of the learning rates.

  Each size has a grid of its own, which may be coarser than the learning rates of all sizes
  together: their mean square counts.
  """
  return fits.interpolation_sd(float(np.sqrt((observations.curves['grid_step'] ** 2).mean())))
