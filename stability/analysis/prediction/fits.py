"""Curves through small sizes and what they say of larger ones, with their uncertainty.

A fit is linear or quadratic in log10(parameters), at each learning rate by itself or with slopes
that depend smoothly on it. Fits are mixed by how well each foretold the larger of the sizes at hand
from the smaller ones. Uncertainty is that of the seeds (drawn anew), the coefficients and the noise
(a parametric bootstrap: its size is itself uncertain) and the choice of fit.
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
_NORMAL_HALF_WIDTH = 1.645  # of the 90 % interval, in standard deviations
_FLOOR_WEIGHT = 1.0  # the least noise counts as one more degree of freedom
_SWEEPS = 30  # in which values beyond the limits of the measurement are drawn again
_SLOPE_POWERS = 2  # a shared slope is a quadratic in log10(learning rate)
_MIDDLE_SIZE = 6.0  # log10; columns of powers of what is around it are less alike
_SAME_RATE = 1e-6  # decades
_RIDGE = 1e-9  # keeps sizes that are all but the same solvable


@dataclasses.dataclass(frozen=True)
class Points:
  """What is fitted, a run each, or where it is asked for; arrays [K], for pandas would be slow."""

  size_K: np.ndarray  # log10(parameters)
  rate_K: np.ndarray  # log10(learning rate)
  value_K: np.ndarray  # NaN where it is asked for
  seed_K: np.ndarray
  beyond_K: np.ndarray  # 1 where the value is only known to be above what `value` says, -1 below

  @classmethod
  def of(cls, table: pd.DataFrame) -> 'Points':
    """From the columns size and rate and, where there are any, value, seed and beyond."""
    columns = {'value': np.nan, 'seed': 0, 'beyond': 0} | dict(table)
    names = ('size', 'rate', 'value', 'seed', 'beyond')
    return cls(*(np.broadcast_to(columns[name], len(table)) for name in names))

  def __len__(self) -> int:
    return len(self.size_K)

  def only(self, kept_K: np.ndarray) -> 'Points':
    """Those for which it is true."""
    return Points(*(getattr(self, field.name)[kept_K] for field in dataclasses.fields(self)))

  @functools.cached_property
  def rates(self) -> np.ndarray:
    """The learning rates, ascending."""
    return np.unique(self.rate_K)


@dataclasses.dataclass(frozen=True)
class Fit:
  """A shape of the curves: the order in log10(parameters), and what learning rates share."""

  order: int
  shared: bool  # slopes depend smoothly on the learning rate; else each rate has its own

  @property
  def name(self) -> str:
    """As tables show it."""
    return f'{("linear", "quadratic")[self.order - 1]}, {"shared" if self.shared else "by itself"}'

  def design(self, points: Points, rates_L: np.ndarray) -> np.ndarray:
    """Columns [K, P] of the regression; each of the learning rates has an intercept."""
    at_KxL = np.abs(points.rate_K[:, None] - rates_L) < _SAME_RATE
    slopes_KxQ = at_KxL
    if self.shared:
      powers = np.arange(min(len(rates_L), _SLOPE_POWERS + 1))
      slopes_KxQ = (points.rate_K[:, None] - rates_L.mean()) ** powers
    size_Kx1 = points.size_K[:, None] - _MIDDLE_SIZE
    curves = [slopes_KxQ * size_Kx1**power for power in range(1, self.order + 1)]
    return np.hstack([at_KxL, *curves])

  def fits(self, points: Points) -> bool:
    """Whether the points determine it."""
    X_KxP = self.design(points, points.rates)
    sizes = [np.unique(points.size_K[points.rate_K == rate]) for rate in points.rates]
    most = max(map(len, sizes))
    return most > self.order and np.linalg.matrix_rank(X_KxP) == X_KxP.shape[1]


FITS = tuple(Fit(order, shared) for order in (1, 2) for shared in (True, False))
PAPER = Fit(order=2, shared=False)  # section 3.3


@dataclasses.dataclass(frozen=True)
class Extrapolation:
  """What the fits say at the targets."""

  draws_DxT: np.ndarray  # of one run each
  weights: dict[str, float]  # of the fits, by name
  widening: float  # of the draws' spread: what foretelling the larger fitted sizes called for

  @property
  def value_T(self) -> np.ndarray:
    """Medians."""
    return np.median(self.draws_DxT, axis=0)

  @property
  def interval_2xT(self) -> np.ndarray:
    """90 % intervals."""
    return np.percentile(self.draws_DxT, INTERVAL, axis=0)


def folds(points: Points) -> Iterator[tuple[Points, Points]]:
  """(those below, those of the size) for each size from the third on: predicting in the small.

  Of the size, those at learning rates that those below have, and whose values are known exactly.
  """
  for size in np.unique(points.size_K)[2:]:
    below = points.only(points.size_K < size)
    exact_K = (points.size_K == size) & (points.beyond_K == 0)
    of_size = points.only(exact_K & np.isin(points.rate_K, below.rates))
    if len(of_size):
      yield below, of_size


def extrapolate(
    points: Points,
    targets: Points,
    *,
    least_noise: float,
    draws: int = DRAWS,
    widen: bool = True,
) -> Extrapolation | None:
  """The points' curves at the targets; None where no fit is determined.

  Args:
    points: what is known.
    targets: at learning rates that the points have.
    least_noise: standard deviation of what the measurement itself cannot tell.
    draws: how many.
    widen: by what predicting the larger sizes at hand would have called for.
  """
  candidates = [fit for fit in FITS if fit.fits(points)]
  if len(points.rates) == 1:
    candidates = [fit for fit in candidates if fit.shared]  # the others are the same
  if not candidates:
    return None
  weights = _weights(candidates, points)
  candidates = [fit for fit in candidates if weights[fit] > 0]
  drawn = _mixed(candidates, weights, points, targets, least_noise, draws)
  misses = []
  for below, of_size in folds(points) if widen else ():
    if fitting := [fit for fit in candidates if fit.fits(below)]:
      said = _mixed(fitting, weights, below, of_size, least_noise, draws)
      low, high = np.percentile(said, INTERVAL, axis=0)
      spread = (high - low) / 2 / _NORMAL_HALF_WIDTH
      misses.extend((of_size.value_K - np.median(said, axis=0)) / spread)
  widening = max(1.0, float(np.sqrt(np.mean(np.square(misses))))) if misses else 1.0
  middle = np.median(drawn, axis=0)
  named = {fit.name: weights[fit] for fit in candidates}
  return Extrapolation(middle + widening * (drawn - middle), named, widening)


def least_squares(fit: Fit, points: Points, targets: Points) -> np.ndarray:
  """The fit at the targets."""
  X_KxP = fit.design(points, points.rates)
  b_P = np.linalg.lstsq(X_KxP, points.value_K, rcond=None)[0]
  return fit.design(targets, points.rates) @ b_P


def power_law(points: Points, *, least_noise: float) -> tuple[float, float, float]:
  """The exponent of the size, with its 90 % interval; the points are of one rate."""
  rng = np.random.default_rng(0)
  b_DxP, _ = _coefficients(Fit(order=1, shared=True), points, least_noise, DRAWS, rng)
  low, middle, high = np.percentile(b_DxP[:, -1], (INTERVAL[0], 50, INTERVAL[1]))
  return middle, low, high


def _weights(candidates: list[Fit], points: Points) -> dict[Fit, float]:
  """By the inverse of the mean squared miss over the folds, relative to the first one's there.

  A fit that no fold could try weighs nothing, unless none was tried.
  """
  misses: dict[Fit, list[tuple[float, float]]] = {fit: [] for fit in candidates}
  for below, of_size in folds(points):
    squares = {
        fit: np.mean((of_size.value_K - least_squares(fit, below, of_size)) ** 2)
        for fit in candidates
        if fit.fits(below)
    }
    for fit, square in squares.items():
      misses[fit].append((square, next(iter(squares.values()))))
  inverse = {}
  for fit, pairs in misses.items():
    own, first = np.sum(pairs, axis=0) if pairs else (np.inf, 1.0)
    inverse[fit] = first / max(own, 1e-12)
  total = sum(inverse.values())
  if total == 0:
    return {fit: 1 / len(candidates) for fit in candidates}
  return {fit: value / total for fit, value in inverse.items()}


def _mixed(
    fits: list[Fit],
    weights: dict[Fit, float],
    points: Points,
    targets: Points,
    least_noise: float,
    draws: int,
) -> np.ndarray:
  """Draws [D, T], from each fit as many as it weighs."""
  rng = np.random.default_rng(0)  # the same every time
  shares = np.array([weights[fit] for fit in fits])
  counts = rng.multinomial(draws, shares / shares.sum())
  drawn = [
      _draws(fit, points, targets, least_noise, count, rng)
      for fit, count in zip(fits, counts, strict=True)
      if count
  ]
  return np.concatenate(drawn)


def _draws(
    fit: Fit,
    points: Points,
    targets: Points,
    least_noise: float,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
  """Values [D, T] of single runs at the targets."""
  b_DxP, noise_D = _coefficients(fit, points, least_noise, draws, rng)
  noise_Dx1 = (noise_D * rng.standard_normal(draws))[:, None]  # one run each: the same at all
  return b_DxP @ fit.design(targets, points.rates).T + noise_Dx1


def _coefficients(
    fit: Fit, points: Points, least_noise: float, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Draws of the coefficients [D, P] and of the noise's standard deviation [D].

  Seeds are drawn with replacement, or all once where those drawn do not determine the fit;
  coefficients and noise from their posterior under a flat prior, which gives the t intervals of
  least squares. Values beyond the limits of the measurement are drawn in turn with the rest (Gibbs
  sampling), from the tail they are known to be in.
  """
  X_KxP = fit.design(points, points.rates)
  y_DxK = np.tile(points.value_K, (draws, 1))
  # Few seeds can be drawn in few ways: one matrix [P, P] for each of these.
  weights_WxK, ways_D = _seed_weights(points.seed_K, draws, rng)
  products_WxPxP = (X_KxP.T * weights_WxK[:, None]) @ X_KxP
  # Those drawn may have no run at a learning rate, say. That tells nothing of how seeds differ, and
  # the curve there could be any.
  lacking_W = np.linalg.matrix_rank(products_WxPxP, hermitian=True) < X_KxP.shape[1]
  weights_WxK[lacking_W], products_WxPxP[lacking_W] = 1, X_KxP.T @ X_KxP
  products_WxPxP += _RIDGE * np.eye(X_KxP.shape[1])
  # The lower root of the inverse, from the upper one of the products (that of the matrix turned
  # around): where sizes are close, round-off leaves the inverse itself without one.
  upper_WxPxP = np.linalg.cholesky(products_WxPxP[:, ::-1, ::-1])[:, ::-1, ::-1]
  root_WxPxP = np.linalg.inv(upper_WxPxP).transpose(0, 2, 1)
  inverse_WxPxP = root_WxPxP @ root_WxPxP.transpose(0, 2, 1)
  inverse_DxPxP, root_DxPxP = inverse_WxPxP[ways_D], root_WxPxP[ways_D]
  weights_DxK = weights_WxK[ways_D]
  freedom = len(points) - X_KxP.shape[1] + _FLOOR_WEIGHT
  for _ in range(_SWEEPS if points.beyond_K.any() else 1):
    b_DxP = np.squeeze(inverse_DxPxP @ ((weights_DxK * y_DxK) @ X_KxP)[..., None], -1)
    squares_D = (weights_DxK * (y_DxK - b_DxP @ X_KxP.T) ** 2).sum(axis=1)
    squares_D += _FLOOR_WEIGHT * least_noise**2
    noise_D = np.sqrt(squares_D / rng.chisquare(freedom, draws))
    b_DxP += noise_D[:, None] * np.squeeze(root_DxPxP @ rng.standard_normal((*b_DxP.shape, 1)), -1)
    if points.beyond_K.any():
      beyond_DxK = _beyond_limit(b_DxP @ X_KxP.T, noise_D[:, None], points, rng)
      y_DxK = np.where(points.beyond_K, beyond_DxK, y_DxK)
  return b_DxP, noise_D


def _seed_weights(
    seed_K: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """How often each row's seed is drawn [W, K] in each way of drawing, and each draw's way [D]."""
  seeds_S, codes_K = np.unique(seed_K, return_inverse=True)
  counts_DxS = rng.multinomial(len(seeds_S), np.full(len(seeds_S), 1 / len(seeds_S)), size=draws)
  counts_WxS, ways_D = np.unique(counts_DxS, axis=0, return_inverse=True)
  return counts_WxS[:, codes_K].astype(float), ways_D


def _beyond_limit(
    mean_DxK: np.ndarray, noise_Dx1: np.ndarray, points: Points, rng: np.random.Generator
) -> np.ndarray:
  """Normal draws [D, K] above the values where `beyond` is 1, below them where it is -1."""
  sign_K = np.where(points.beyond_K == 0, 1, points.beyond_K)
  beyond_DxK = special.ndtr(sign_K * (mean_DxK - points.value_K) / noise_Dx1)
  share_DxK = np.maximum(beyond_DxK * (1 - rng.random(mean_DxK.shape)), 1e-12)
  return mean_DxK - sign_K * noise_Dx1 * special.ndtri(share_DxK)


Value = TypeVar('Value', float, np.ndarray)


def logistic(values_K: np.ndarray, events_K: np.ndarray) -> Callable[[Value], Value] | None:
  """The probability of an event as a function of a value; None unless both outcomes were seen.

  A logistic regression with a weak prior, so that outcomes which a threshold parts cleanly leave
  the threshold uncertain within their gap.
  """
  if events_K.all() or not events_K.any():
    return None
  middle, scale = values_K.mean(), values_K.std() or 1.0
  X_Kx2 = np.stack([np.ones(len(values_K)), (values_K - middle) / scale], axis=1)
  prior_2x2 = np.diag([1e-3, 1e-2])  # standard deviations of 30 and 10
  b_2 = np.zeros(2)
  for _ in range(50):  # Newton's steps
    p_K = special.expit(X_Kx2 @ b_2)
    gradient_2 = X_Kx2.T @ (events_K - p_K) - prior_2x2 @ b_2
    hessian_2x2 = (X_Kx2 * (p_K * (1 - p_K))[:, None]).T @ X_Kx2 + prior_2x2
    step_2 = np.linalg.solve(hessian_2x2, gradient_2)
    b_2 = b_2 + step_2 / max(1.0, np.abs(step_2).max() / 2)
  return lambda value: special.expit(b_2[0] + b_2[1] * (value - middle) / scale)
