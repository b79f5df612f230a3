"""Regressions on log size that extrapolate a quantity to larger sizes, with their uncertainty.

A fit is linear or quadratic in log10(parameters), either separately at each learning rate or with
slopes that vary smoothly with it. The fits are averaged, weighted by how well each predicts the
larger of the fitted sizes from the smaller ones. The uncertainty covers the seeds (a bootstrap),
the coefficients and the noise (draws from their posterior) and the choice of fit.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy import special

DRAWS = 1000
INTERVAL = (5, 95)  # percentiles
NORMAL_HALF_WIDTH = 1.645  # half the width of a normal 90 % interval, in standard deviations
_FLOOR_WEIGHT = 1.0  # the noise floor counts as this many degrees of freedom
_GIBBS_SWEEPS = 30  # used if there are censored values
_SLOPE_DEGREE = 2  # of shared slopes, which are polynomials in log10(learning rate)
_LOG_SIZE_ORIGIN = 6.0  # subtracted from log sizes, so that their powers are less collinear
_RATE_TOLERANCE = 1e-6  # decades; for the rounding of log10, since equal rates are equal floats
_RIDGE = 1e-9  # keeps the normal equations solvable if sizes nearly coincide


@dataclasses.dataclass(frozen=True)
class Points:
  """Runs to fit, or cells to predict, as arrays [K], which are much faster than a DataFrame."""

  log_size_K: np.ndarray  # log10(parameters)
  log_rate_K: np.ndarray  # log10(learning rate)
  value_K: np.ndarray  # NaN in a cell to predict
  seed_K: np.ndarray
  censored_K: np.ndarray  # 0: exact; 1: the true value is above `value_K`; -1: below it

  @classmethod
  def from_table(cls, table: pd.DataFrame) -> 'Points':
    """From the columns log_size and log_rate and, optionally, value, seed and censored."""
    columns = {'value': np.nan, 'seed': 0, 'censored': 0} | dict(table)
    names = ('log_size', 'log_rate', 'value', 'seed', 'censored')
    return cls(*(np.broadcast_to(columns[name], len(table)) for name in names))

  def __len__(self) -> int:
    return len(self.log_size_K)

  def select(self, mask_K: np.ndarray) -> 'Points':
    """The points for which the mask is true."""
    return Points(*(getattr(self, field.name)[mask_K] for field in dataclasses.fields(self)))

  @functools.cached_property
  def log_rates(self) -> np.ndarray:
    """The distinct learning rates (log10), ascending."""
    return np.unique(self.log_rate_K)


@dataclasses.dataclass(frozen=True)
class Fit:
  """A regression on log size: its degree, and whether learning rates share their slopes."""

  degree: int  # in log10(parameters)
  shared: bool  # slopes vary smoothly with the learning rate; otherwise each rate has its own

  def design_matrix(self, points: Points, log_rates_L: np.ndarray) -> np.ndarray:
    """The regressors [K, P]: an intercept for each learning rate, then the powers of log size."""
    is_rate_KxL = np.abs(points.log_rate_K[:, None] - log_rates_L) < _RATE_TOLERANCE
    slopes_KxQ = is_rate_KxL
    if self.shared:
      powers = np.arange(min(len(log_rates_L), _SLOPE_DEGREE + 1))
      slopes_KxQ = (points.log_rate_K[:, None] - log_rates_L.mean()) ** powers
    log_size_Kx1 = points.log_size_K[:, None] - _LOG_SIZE_ORIGIN
    curves = [slopes_KxQ * log_size_Kx1**power for power in range(1, self.degree + 1)]
    return np.hstack([is_rate_KxL, *curves])

  def is_determined(self, points: Points) -> bool:
    """Whether the points determine all coefficients."""
    X_KxP = self.design_matrix(points, points.log_rates)
    sizes = [np.unique(points.log_size_K[points.log_rate_K == rate]) for rate in points.log_rates]
    most = max(map(len, sizes))
    return most > self.degree and np.linalg.matrix_rank(X_KxP) == X_KxP.shape[1]


FITS = tuple(Fit(degree, shared) for degree in (1, 2) for shared in (True, False))
PAPER_FIT = Fit(degree=2, shared=False)  # section 3.3


def validation_splits(points: Points) -> Iterator[tuple[Points, Points]]:
  """(smaller sizes, held-out size) for each size from the third smallest on.

  The held-out points are uncensored and at learning rates that the smaller sizes also have.
  """
  for log_size in np.unique(points.log_size_K)[2:]:
    smaller = points.select(points.log_size_K < log_size)
    exact_K = (points.log_size_K == log_size) & (points.censored_K == 0)
    held_out = points.select(exact_K & np.isin(points.log_rate_K, smaller.log_rates))
    if len(held_out):
      yield smaller, held_out


def widening(points: Points, draw: Callable[[Points, Points], np.ndarray | None]) -> float:
  """The factor by which to widen draws, so that they are as uncertain as past predictions.

  Each of the larger fitted sizes is predicted from the smaller ones; the factor is the errors' root
  mean square in units of the predicted standard deviation, or 1 if that is less.

  Args:
    points: the runs to fit.
    draw: (fitted points, cells) -> draws [D, C] of the value of a single run in each cell; None if
      the points determine no fit.
  """
  standard_errors = []
  for smaller, held_out in validation_splits(points):
    if (predicted := draw(smaller, held_out)) is not None:
      low, high = np.percentile(predicted, INTERVAL, axis=0)
      spread = (high - low) / 2 / NORMAL_HALF_WIDTH
      standard_errors.extend((held_out.value_K - np.median(predicted, axis=0)) / spread)
  return max(1.0, float(np.sqrt(np.mean(np.square(standard_errors))))) if standard_errors else 1.0


def extrapolate(
    points: Points,
    cells: Points,
    *,
    noise_floor: float,
    draws: int = DRAWS,
    widen: bool = True,
) -> np.ndarray | None:
  """Draws [D, C] of the value of a single run in each cell; None if the points determine no fit.

  Args:
    points: the runs to fit.
    cells: sizes and learning rates to predict; the learning rates are among those of the points.
    noise_floor: lower bound on the noise: the standard deviation of the measurement error.
    draws: the number of draws.
    widen: whether to widen the intervals; see widening.
  """
  candidates = [fit for fit in FITS if fit.is_determined(points)]
  if len(points.log_rates) == 1:
    candidates = [fit for fit in candidates if fit.shared]  # separate slopes give the same fit
  if not candidates:
    return None
  weights = _weights(candidates, points)
  candidates = [fit for fit in candidates if weights[fit] > 0]

  def draw(fitted: Points, cells: Points) -> np.ndarray | None:
    determined = [fit for fit in candidates if fit.is_determined(fitted)]
    if not determined:
      return None
    return _mixture_draws(determined, weights, fitted, cells, noise_floor, draws)

  values_DxC = draw(points, cells)
  factor = widening(points, draw) if widen else 1.0
  median_C = np.median(values_DxC, axis=0)
  return median_C + factor * (values_DxC - median_C)


def least_squares(fit: Fit, points: Points, cells: Points) -> np.ndarray:
  """The least-squares prediction [C] of one fit in the cells."""
  X_KxP = fit.design_matrix(points, points.log_rates)
  b_P = np.linalg.lstsq(X_KxP, points.value_K, rcond=None)[0]
  return fit.design_matrix(cells, points.log_rates) @ b_P


def power_law(points: Points, *, noise_floor: float) -> tuple[float, float, float]:
  """The exponent of the size and its 90 % interval, from points at one learning rate."""
  rng = np.random.default_rng(0)
  b_DxP, _ = posterior_draws(Fit(degree=1, shared=True), points, noise_floor, DRAWS, rng)
  low, median, high = np.percentile(b_DxP[:, -1], (INTERVAL[0], 50, INTERVAL[1]))
  return median, low, high


def _weights(candidates: list[Fit], points: Points) -> dict[Fit, float]:
  """Weights of the fits: the inverse of their mean squared error over the validation splits.

  Errors are relative to those of the first fit on the same splits. A fit that is determined in none
  of the splits gets no weight; if none of the fits is, all have the same weight.
  """
  errors: dict[Fit, list[tuple[float, float]]] = {fit: [] for fit in candidates}
  for smaller, held_out in validation_splits(points):
    squares = {
        fit: np.mean((held_out.value_K - least_squares(fit, smaller, held_out)) ** 2)
        for fit in candidates
        if fit.is_determined(smaller)
    }
    for fit, square in squares.items():
      errors[fit].append((square, next(iter(squares.values()))))
  inverse = {}
  for fit, pairs in errors.items():
    own, first = np.sum(pairs, axis=0) if pairs else (np.inf, 1.0)
    inverse[fit] = first / max(own, 1e-12)
  total = sum(inverse.values())
  if total == 0:
    return {fit: 1 / len(candidates) for fit in candidates}
  return {fit: value / total for fit, value in inverse.items()}


def _mixture_draws(
    fits: list[Fit],
    weights: dict[Fit, float],
    points: Points,
    cells: Points,
    noise_floor: float,
    draws: int,
) -> np.ndarray:
  """Draws [D, C] from the weighted mixture of the fits."""
  rng = np.random.default_rng(0)  # the same draws in every call
  shares = np.array([weights[fit] for fit in fits])
  counts = rng.multinomial(draws, shares / shares.sum())
  values = [
      _predictive_draws(fit, points, cells, noise_floor, count, rng)
      for fit, count in zip(fits, counts, strict=True)
      if count
  ]
  return np.concatenate(values)


def _predictive_draws(
    fit: Fit,
    points: Points,
    cells: Points,
    noise_floor: float,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
  """Draws [D, C] of single runs' values in the cells."""
  b_DxP, noise_D = posterior_draws(fit, points, noise_floor, draws, rng)
  noise_Dx1 = (noise_D * rng.standard_normal(draws))[:, None]  # one per draw, shared by all cells
  return b_DxP @ fit.design_matrix(cells, points.log_rates).T + noise_Dx1


def posterior_draws(
    fit: Fit, points: Points, noise_floor: float, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Draws of the coefficients [D, P] and of the noise's standard deviation [D].

  Seeds are resampled with replacement; a resample that does not determine the fit is replaced by
  all seeds. Coefficients and noise are drawn from their posterior under a flat prior, which gives
  the t intervals of least squares. If there are censored values, Gibbs sampling alternates these
  draws with draws of the censored values from the tail in which they are known to lie.
  """
  X_KxP = fit.design_matrix(points, points.log_rates)
  y_DxK = np.tile(points.value_K, (draws, 1))
  # Few seeds have few distinct resamples, and all draws of a resample share one matrix [P, P].
  weights_WxK, resample_D = _seed_resamples(points.seed_K, draws, rng)
  products_WxPxP = (X_KxP.T * weights_WxK[:, None]) @ X_KxP
  # For example, a resample may lack all runs at a learning rate, and so not determine the curve
  # there. All seeds are used instead.
  deficient_W = np.linalg.matrix_rank(products_WxPxP, hermitian=True) < X_KxP.shape[1]
  weights_WxK[deficient_W], products_WxPxP[deficient_W] = 1, X_KxP.T @ X_KxP
  products_WxPxP += _RIDGE * np.eye(X_KxP.shape[1])
  # The lower Cholesky factor of the inverse is computed from an upper factor of the products, which
  # is the Cholesky factor of the matrix with rows and columns reversed. Factorising the inverse
  # itself can fail: if sizes are close, round-off makes it indefinite.
  upper_WxPxP = np.linalg.cholesky(products_WxPxP[:, ::-1, ::-1])[:, ::-1, ::-1]
  root_WxPxP = np.linalg.inv(upper_WxPxP).transpose(0, 2, 1)
  inverse_WxPxP = root_WxPxP @ root_WxPxP.transpose(0, 2, 1)
  inverse_DxPxP, root_DxPxP = inverse_WxPxP[resample_D], root_WxPxP[resample_D]
  weights_DxK = weights_WxK[resample_D]
  freedom = len(points) - X_KxP.shape[1] + _FLOOR_WEIGHT
  for _ in range(_GIBBS_SWEEPS if points.censored_K.any() else 1):
    b_DxP = np.squeeze(inverse_DxPxP @ ((weights_DxK * y_DxK) @ X_KxP)[..., None], -1)
    squares_D = (weights_DxK * (y_DxK - b_DxP @ X_KxP.T) ** 2).sum(axis=1)
    squares_D += _FLOOR_WEIGHT * noise_floor**2
    noise_D = np.sqrt(squares_D / rng.chisquare(freedom, draws))
    b_DxP += noise_D[:, None] * np.squeeze(root_DxPxP @ rng.standard_normal((*b_DxP.shape, 1)), -1)
    if points.censored_K.any():
      fitted_DxK, noise_Dx1 = b_DxP @ X_KxP.T, noise_D[:, None]
      y_DxK = censored_draws(fitted_DxK, noise_Dx1, points.value_K, points.censored_K, rng)
  return b_DxP, noise_D


def _seed_resamples(
    seed_K: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """The weights [W, K] of points in the distinct resamples of seeds; each draw's resample [D]."""
  seeds_S, codes_K = np.unique(seed_K, return_inverse=True)
  counts_DxS = rng.multinomial(len(seeds_S), np.full(len(seeds_S), 1 / len(seeds_S)), size=draws)
  counts_WxS, resample_D = np.unique(counts_DxS, axis=0, return_inverse=True)
  return counts_WxS[:, codes_K].astype(float), resample_D


def censored_draws(
    mean: np.ndarray,
    sd: np.ndarray,
    value: np.ndarray,
    censored: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
  """Exact values as they are; normal draws above those censored at 1, below those at -1.

  Args:
    mean: of the normal distributions; the shape of the result.
    sd: their standard deviations.
    value: the exact values, and the bounds of the others.
    censored: 0: exact; 1: the true value is above `value`; -1: below it.
    rng: generator of the draws.
  """
  sign = np.where(censored == 0, 1, censored)
  tail = special.ndtr(sign * (mean - value) / sd)
  share = np.maximum(tail * (1 - rng.random(mean.shape)), 1e-12)
  return np.where(censored == 0, value, mean - sign * sd * special.ndtri(share))


Value = TypeVar('Value', float, np.ndarray)


def interpolation_sd(step: Value) -> Value:
  """The standard deviation of the error of a learning rate read from a grid, in decades.

  That of a value that is uniform between two learning rates of the grid is their distance `step` /
  sqrt(12). Interpolation is assumed to halve it.
  """
  return step / np.sqrt(12) / 2


def logistic_regression(
    values_K: np.ndarray, events_K: np.ndarray
) -> Callable[[Value], Value] | None:
  """The probability of an event as a function of a value; None if all events have one outcome.

  The weak prior matters if a threshold separates the outcomes perfectly: the position of the
  threshold within the gap then stays uncertain.
  """
  if events_K.all() or not events_K.any():
    return None
  mean, scale = values_K.mean(), values_K.std() or 1.0
  X_Kx2 = np.stack([np.ones(len(values_K)), (values_K - mean) / scale], axis=1)
  prior_2x2 = np.diag([1e-3, 1e-2])  # precisions: standard deviations of about 30 and 10
  b_2 = np.zeros(2)
  for _ in range(50):  # Newton's method
    p_K = special.expit(X_Kx2 @ b_2)
    gradient_2 = X_Kx2.T @ (events_K - p_K) - prior_2x2 @ b_2
    hessian_2x2 = (X_Kx2 * (p_K * (1 - p_K))[:, None]).T @ X_Kx2 + prior_2x2
    step_2 = np.linalg.solve(hessian_2x2, gradient_2)
    b_2 = b_2 + step_2 / max(1.0, np.abs(step_2).max() / 2)
  return lambda value: special.expit(b_2[0] + b_2[1] * (value - mean) / scale)
