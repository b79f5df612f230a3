"""Curves through small sizes and what they say of larger ones, with their uncertainty.

A fit is linear or quadratic in log10(parameters), at each learning rate by itself or with slopes
that depend smoothly on it. Fits are mixed by how well each foretold the larger of the sizes at hand
from the smaller ones. Uncertainty is that of the seeds (drawn anew), the coefficients and the noise
(a parametric bootstrap: its size is itself uncertain) and the choice of fit.
"""

import dataclasses
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
_RIDGE = 1e-9  # keeps draws of seeds that miss a cell solvable


@dataclasses.dataclass(frozen=True)
class Fit:
  """A shape of the curves: the order in log10(parameters), and what learning rates share."""

  order: int
  shared: bool  # slopes depend smoothly on the learning rate; else each rate has its own

  @property
  def name(self) -> str:
    """As tables show it."""
    return f'{("linear", "quadratic")[self.order - 1]}, {"shared" if self.shared else "by itself"}'

  def design(self, points: pd.DataFrame, rates: np.ndarray) -> np.ndarray:
    """Columns [K, P] of the regression.

    Args:
      points: with `size`, log10(parameters), and `rate`, log10(learning rate).
      rates: those of the fitted points; one intercept each.
    """
    at_KxL = np.isclose(points['rate'].to_numpy()[:, None], rates).astype(float)
    slopes_KxQ = at_KxL
    if self.shared:
      middle_K = points['rate'].to_numpy() - rates.mean()
      powers = range(min(len(rates), _SLOPE_POWERS + 1))
      slopes_KxQ = np.stack([middle_K**power for power in powers], axis=1)
    size_Kx1 = points['size'].to_numpy()[:, None] - _MIDDLE_SIZE
    curves = [slopes_KxQ * size_Kx1**power for power in range(1, self.order + 1)]
    return np.hstack([at_KxL, *curves])

  def fits(self, points: pd.DataFrame) -> bool:
    """Whether the points determine it."""
    rates = points['rate'].unique()
    seen = points.groupby('rate')['size'].nunique()
    needed = self.order + 1
    enough = seen.max() if self.shared else seen.min()
    X_KxP = self.design(points, rates)
    return enough >= needed and np.linalg.matrix_rank(X_KxP) == X_KxP.shape[1]


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


def folds(points: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
  """(those below, those of the size) for each size from the third on: predicting in the small."""
  sizes = np.sort(points['size'].unique())
  for size in sizes[2:]:
    yield points[points['size'] < size], points[points['size'] == size]


def extrapolate(
    points: pd.DataFrame, targets: pd.DataFrame, *, least_noise: float, draws: int = DRAWS
) -> Extrapolation | None:
  """The points' curves at the targets; None where no fit is determined.

  Args:
    points: a row per run with `size`, `rate`, `seed` and `value`; `beyond`, if there, is 1 where
      the value is only known to be above what `value` says, -1 below, else 0.
    targets: with `size` and `rate`, all of whose rates the points have.
    least_noise: standard deviation of what the measurement itself cannot tell.
    draws: how many.
  """
  candidates = [fit for fit in FITS if fit.fits(points)]
  if points['rate'].nunique() == 1:
    candidates = [fit for fit in candidates if fit.shared]  # the same without
  if not candidates:
    return None
  weights = _weights(candidates, points)
  candidates = [fit for fit in candidates if weights[fit] > 0]
  drawn = _mixed(candidates, weights, points, targets, least_noise, draws)
  misses = []
  for below, of_size in folds(points):
    fitting = [fit for fit in candidates if fit.fits(below)]
    known = of_size[(_beyond(of_size) == 0) & of_size['rate'].isin(below['rate'])]
    if fitting and len(known):
      foretold = _mixed(fitting, weights, below, known, least_noise, draws)
      low, high = np.percentile(foretold, INTERVAL, axis=0)
      spread = (high - low) / 2 / _NORMAL_HALF_WIDTH
      misses.extend((known['value'].to_numpy() - np.median(foretold, axis=0)) / spread)
  widening = max(1.0, float(np.sqrt(np.mean(np.square(misses))))) if misses else 1.0
  middle = np.median(drawn, axis=0)
  named = {fit.name: weights[fit] for fit in candidates}
  return Extrapolation(middle + widening * (drawn - middle), named, widening)


def least_squares(fit: Fit, points: pd.DataFrame, targets: pd.DataFrame) -> np.ndarray:
  """The fit at the targets."""
  rates = np.sort(points['rate'].unique())
  X_KxP = fit.design(points, rates)
  coefficients_P = np.linalg.lstsq(X_KxP, points['value'].to_numpy(), rcond=None)[0]
  return fit.design(targets, rates) @ coefficients_P


def power_law(points: pd.DataFrame, *, least_noise: float) -> tuple[float, float, float]:
  """The exponent of the size, with its 90 % interval; the points are of one rate."""
  rng = np.random.default_rng(0)
  b_DxP, _ = _coefficients(Fit(order=1, shared=True), points, least_noise, DRAWS, rng)
  low, middle, high = np.percentile(b_DxP[:, -1], (INTERVAL[0], 50, INTERVAL[1]))
  return middle, low, high


def _weights(candidates: list[Fit], points: pd.DataFrame) -> dict[Fit, float]:
  """By the inverse of the mean squared miss over the folds, relative to the first one's there.

  A fit that no fold could try weighs nothing, unless none was tried.
  """
  misses: dict[Fit, list[tuple[float, float]]] = {fit: [] for fit in candidates}
  for below, of_size in folds(points):
    known = of_size[(_beyond(of_size) == 0) & of_size['rate'].isin(below['rate'])]
    tried = [fit for fit in candidates if fit.fits(below)]
    if not tried or known.empty:
      continue
    squares = {
        fit: np.mean((known['value'] - least_squares(fit, below, known)) ** 2) for fit in tried
    }
    for fit in tried:
      misses[fit].append((squares[fit], squares[tried[0]]))
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
    points: pd.DataFrame,
    targets: pd.DataFrame,
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
    points: pd.DataFrame,
    targets: pd.DataFrame,
    least_noise: float,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
  """Values [D, T] of single runs at the targets."""
  rates = np.sort(points['rate'].unique())
  b_DxP, noise_D = _coefficients(fit, points, least_noise, draws, rng)
  noise_Dx1 = (noise_D * rng.standard_normal(draws))[:, None]  # one run each: the same at all
  return b_DxP @ fit.design(targets, rates).T + noise_Dx1


def _coefficients(
    fit: Fit, points: pd.DataFrame, least_noise: float, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Draws of the coefficients [D, P] and of the noise's standard deviation [D].

  Seeds are drawn with replacement; coefficients and noise from their posterior under a flat prior,
  which gives the t intervals of least squares. Values beyond the limits of the measurement are
  drawn in turn with the rest (Gibbs sampling), from the tail they are known to be in.
  """
  X_KxP = fit.design(points, np.sort(points['rate'].unique()))
  y_DxK = np.tile(points['value'].to_numpy(float), (draws, 1))
  limits_K, beyond_K = y_DxK[0].copy(), _beyond(points)
  weights_DxK = _seed_weights(points['seed'], draws, rng)
  # A matrix [P, P] per draw of the seeds, or the same one for all of a single seed.
  products_DxPxP = (X_KxP.T * weights_DxK[:, None]) @ X_KxP + _RIDGE * np.eye(X_KxP.shape[1])
  inverse_DxPxP = np.linalg.inv(products_DxPxP)
  root_DxPxP = np.linalg.cholesky(inverse_DxPxP)
  freedom = len(points) - X_KxP.shape[1] + _FLOOR_WEIGHT
  for _ in range(_SWEEPS if beyond_K.any() else 1):
    b_DxP = np.squeeze(inverse_DxPxP @ ((weights_DxK * y_DxK) @ X_KxP)[..., None], -1)
    squares_D = (weights_DxK * (y_DxK - b_DxP @ X_KxP.T) ** 2).sum(axis=1)
    squares_D += _FLOOR_WEIGHT * least_noise**2
    noise_D = np.sqrt(squares_D / rng.chisquare(freedom, draws))
    b_DxP += noise_D[:, None] * np.squeeze(root_DxPxP @ rng.standard_normal((*b_DxP.shape, 1)), -1)
    y_DxK = np.where(
        beyond_K,
        _beyond_limit(b_DxP @ X_KxP.T, noise_D[:, None], limits_K, beyond_K, rng),
        y_DxK,
    )
  return b_DxP, noise_D


def _seed_weights(seeds: pd.Series, draws: int, rng: np.random.Generator) -> np.ndarray:
  """How often each row's seed was drawn [D, K]; with one seed [1, K], all 1."""
  codes, names = pd.factorize(seeds)
  draws = draws if len(names) > 1 else 1
  counts_DxS = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
  return counts_DxS[:, codes].astype(float)


def _beyond_limit(
    mean_DxK: np.ndarray,
    noise_Dx1: np.ndarray,
    limits_K: np.ndarray,
    beyond_K: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
  """Normal draws [D, K] above their limits where `beyond` is 1, below where it is -1."""
  sign_K = np.where(beyond_K == 0, 1, beyond_K)
  below_DxK = special.ndtr(sign_K * (mean_DxK - limits_K) / noise_Dx1)  # the share beyond the limit
  share_DxK = np.maximum(below_DxK * (1 - rng.random(mean_DxK.shape)), 1e-12)
  return mean_DxK - sign_K * noise_Dx1 * special.ndtri(share_DxK)


def _beyond(points: pd.DataFrame) -> np.ndarray:
  return points['beyond'].to_numpy() if 'beyond' in points else np.zeros(len(points), int)


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
