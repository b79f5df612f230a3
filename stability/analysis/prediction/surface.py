"""One model of the critical and the best learning rates of all arms and sizes of a sweep.

A run is unstable if its learning rate is above the critical rate of its arm, size and seed. In
log10, with x the log size relative to the fitted ones:

  critical = law(x) + deviation of the size + noise of the seed
  best     = law(x) - headroom(x) + deviation of the size + noise of the seed

Law and headroom are a + b x + c x^2 / 2, with coefficients of each arm from a normal distribution
that all arms share. Deviations and noise have variances with common priors. So an arm with few
unstable runs borrows from the others, and an arm with many follows its own. What is observed is
read from a grid of learning rates: with an error of interpolation, or only as a bound.

The priors expect critical rates that fall with size. A critical rate that rises with size is
predicted only if the runs show it. That a higher learning rate is stable again is never predicted.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis.prediction import fits, surface_posterior
from stability.analysis.prediction import observations as observations_lib
from stability.analysis.prediction.power_law import Draws
from stability.analysis.prediction.surface_posterior import QUANTITIES, Posterior

DEFAULT_STEP = 0.5  # decades between learning rates, where a curve has only one


@dataclasses.dataclass(frozen=True)
class RateSurface:
  """Draws from the posterior of the model; see fit.

  Every prediction uses the same draws D, so predictions at different sizes and of different arms
  can be compared draw by draw.
  """

  arms: tuple
  log_sizes: np.ndarray  # [S], log10(parameters) of the fitted sizes
  origin: float  # the log size at which x is 0
  posterior: Posterior
  new_deviation_DxAxQ: np.ndarray  # of a size that was not fitted
  seed_DxAxQ: np.ndarray  # a seed's deviation, in decades
  shared_DxAxQ: np.ndarray  # the error of interpolation that all sizes of an arm share

  def critical(self, arm: object, log_sizes_C: Sequence[float] | np.ndarray) -> Draws:
    """Draws of log10 of the critical learning rate of an arm at any sizes.

    Args:
      arm: one of arms.
      log_sizes_C: log10(parameters); a fitted size has the deviation that its runs show.

    Returns:
      law_DxC (what the mean of many seeds would be), noise_D (sd of seeds, in decades) and run_DxC
      (a single run). Within a draw, the seed's deviation is the same at all sizes.
    """
    return self._draws(arm, log_sizes_C, 0)

  def best(self, arm: object, log_sizes_C: Sequence[float] | np.ndarray) -> Draws:
    """Draws of log10 of the best learning rate, at most the critical one; see critical."""
    own, critical = self._draws(arm, log_sizes_C, 1), self.critical(arm, log_sizes_C)
    return Draws(
        np.minimum(own.law_DxC, critical.law_DxC),
        own.noise_D,
        np.minimum(own.run_DxC, critical.run_DxC),
    )

  def _draws(self, arm: object, log_sizes_C: Sequence[float] | np.ndarray, quantity: int) -> Draws:
    a, posterior = self.arms.index(arm), self.posterior
    log_sizes_C = np.asarray(log_sizes_C, float)
    rows_CxK = surface_posterior.law_rows(
        log_sizes_C - self.origin, np.full(len(log_sizes_C), quantity)
    )
    law_DxC = posterior.coefficients_DxAxK[:, a] @ rows_CxK.T
    is_fitted_CxS = np.isclose(log_sizes_C[:, None], self.log_sizes)
    own_DxC = posterior.deviation_DxAxQxS[:, a, quantity] @ is_fitted_CxS.T
    new_Dx1 = self.new_deviation_DxAxQ[:, a, quantity, None]
    law_DxC = law_DxC + np.where(is_fitted_CxS.any(axis=1), own_DxC, new_Dx1)
    law_DxC += self.shared_DxAxQ[:, a, quantity, None]
    run_DxC = law_DxC + self.seed_DxAxQ[:, a, quantity, None]
    return Draws(law_DxC, posterior.seed_sd_DxAxQ[:, a, quantity], run_DxC)


def fit_arms(by_arm: Mapping[tuple, observations_lib.Observations]) -> RateSurface:
  """Fits the model to the runs of all arms; see observations.by_arm."""
  tables = [
      of_arm.runs.assign(arm=pd.Series([arm] * len(of_arm.runs), of_arm.runs.index))
      for arm, of_arm in by_arm.items()
  ]
  return fit(read(pd.concat(tables)))


def fit(curves: pd.DataFrame) -> RateSurface:
  """Fits the model to the result of read. Equal arguments give equal draws."""
  arms, log_sizes = tuple(curves['arm'].unique()), np.unique(curves['log_size'])
  origin = float(log_sizes.mean())
  posterior = surface_posterior.sample(curves, arms, log_sizes, origin, fits.DRAWS)
  rng = np.random.default_rng(1)  # not the stream of the posterior
  shape = (fits.DRAWS, len(arms), len(QUANTITIES))
  return RateSurface(
      arms,
      log_sizes,
      origin,
      posterior,
      rng.standard_t(surface_posterior.TAIL, shape) * posterior.size_sd_DxQ[:, None],
      rng.standard_normal(shape) * posterior.seed_sd_DxAxQ,
      rng.standard_normal(shape) * posterior.shared_sd_AxQ,
  )


def read(runs: pd.DataFrame) -> pd.DataFrame:
  """What the loss curves of single seeds say of their critical and best learning rates.

  Seeds that lack the best rate of their arm and size are left out; see observations.with_best_rate.

  Args:
    runs: a row per run, with the columns arm (any hashable value), log_size (log10 of parameters),
      log_rate (log10 of the learning rate), seed, loss and initial_loss (nats). The loss is at most
      the initial loss; a diverged run has it, and a run without a loss (NaN) does not count.

  Returns:
    A row per arm, log_size and seed, with the columns arm, log_size, seed, centre (the middle of
    the sweep's log rates) and, for critical and best: log_critical, critical_censored (0: exact;
    1: above the value; -1: below it; NaN: one learning rate says nothing of it) and critical_step
    (the distance of the rates between which it is interpolated, in decades).

  Raises:
    ValueError: no run counts.
  """
  runs = runs.dropna(subset='loss')
  if runs.empty:
    raise ValueError('no run counts')
  centre = (runs['log_rate'].min() + runs['log_rate'].max()) / 2
  rows = []
  for (arm, log_size), of_size in runs.groupby(['arm', 'log_size'], sort=False):
    for seed, curve in observations_lib.with_best_rate(of_size).groupby('seed', sort=False):
      losses = curve.groupby('log_rate')['loss'].mean()
      numbers = _read_curve(losses, curve['initial_loss'].mean())
      rows.append({'arm': arm, 'log_size': log_size, 'seed': seed, 'centre': centre, **numbers})
  return pd.DataFrame(rows)


def _read_curve(losses: pd.Series, initial_loss: float) -> dict[str, float]:
  log_rates, is_alone = losses.index.to_numpy(), len(losses) == 1
  log_critical, critical_censored = instability.log_critical_rate(
      log_rates, losses.to_numpy(), initial_loss
  )
  log_best = best_censored = np.nan
  if losses.min() < initial_loss:  # else no rate trains, so none is the best
    if is_alone:  # there is nothing to compare its loss with
      log_critical, critical_censored = np.nan, np.nan
    else:
      log_best, best_censored = instability.log_best_rate(log_rates, losses.to_numpy())
  steps = np.array([DEFAULT_STEP]) if is_alone else np.diff(log_rates)
  above = np.searchsorted(log_rates, log_critical)
  lowest = int(losses.to_numpy().argmin())
  return {
      'log_critical': log_critical,
      'critical_censored': critical_censored,
      'critical_step': steps[np.clip(above - 1, 0, len(steps) - 1)],
      'log_best': log_best,
      'best_censored': best_censored,
      'best_step': steps[max(lowest - 1, 0) : lowest + 1].max(),
  }
