"""The power law that extrapolates one number per size, with its uncertainty.

The critical and the best learning rate are taken to be powers of the size. Four things make their
prediction uncertain, and all of them are in its draws: the line through few points in log-log (its
posterior under a flat prior, which is the t interval of least squares), the noise of a single run,
the error of interpolation, which sizes with similar loss curves share and no fit shows, and the
bend of the law outside of the sizes it was fitted to, which no fit to those sizes can exclude.
"""

import dataclasses

import numpy as np

from stability.analysis.prediction import fits
from stability.analysis.prediction.fits import Points

# Standard deviation of the change of the exponent per decade of size outside of the fitted ones.
# Between the regimes of theory (constant width; width^-1 = parameters^-1/2) exponents of learning
# rates differ by 0.5; measured ones stay within a fraction of that over several decades.
BEND = 0.05
_LINE = fits.Fit(degree=1, shared=True)


@dataclasses.dataclass(frozen=True)
class Draws:
  """Draws D of the number's log10 at sizes C."""

  law_DxC: np.ndarray  # the value of the law, which an average over many runs would have
  noise_D: np.ndarray  # standard deviation of single runs around it, in decades
  run_DxC: np.ndarray  # the value of a single run

  @property
  def median_C(self) -> np.ndarray:
    """Medians for a single run."""
    return np.median(self.run_DxC, axis=0)

  @property
  def interval_2xC(self) -> np.ndarray:
    """90 % intervals for a single run."""
    return np.percentile(self.run_DxC, fits.INTERVAL, axis=0)


def extrapolate(
    points: Points,
    log_sizes_C: np.ndarray,
    *,
    interpolation: float,
    seed_noise: float = 0.0,
    draws: int = fits.DRAWS,
    widen: bool = True,
) -> Draws:
  """Predicts the number at other sizes.

  Args:
    points: a point per size or shape, at least two of them at different sizes and exact; all have
      the same log rate.
    log_sizes_C: log10 of the sizes to predict.
    interpolation: the standard deviation of the error of interpolation, in decades.
    seed_noise: the standard deviation over seeds that averaging has removed from the points.
    draws: the number of draws.
    widen: whether to widen the intervals; see fits.widening.
  """
  options = (interpolation, seed_noise, draws)

  def runs(fitted: Points, cells: Points) -> np.ndarray | None:
    return _draw(fitted, cells.log_size_K, *options).run_DxC if exact_sizes(fitted) >= 2 else None

  found = _draw(points, log_sizes_C, *options)
  factor = fits.widening(points, runs) if widen else 1.0
  middle_C = found.median_C
  return Draws(
      middle_C + factor * (found.law_DxC - middle_C),
      factor * found.noise_D,
      middle_C + factor * (found.run_DxC - middle_C),
  )


def exact_sizes(points: Points) -> int:
  """The number of sizes with an exact value."""
  return len(np.unique(points.log_size_K[points.censored_K == 0]))


def _draw(
    points: Points, log_sizes_C: np.ndarray, interpolation: float, seed_noise: float, draws: int
) -> Draws:
  rng = np.random.default_rng(0)  # the same draws in every call
  b_DxP, noise_D = fits.posterior_draws(_LINE, points, interpolation, draws, rng)
  rates_C = np.full(len(log_sizes_C), points.log_rates[0])
  cells = Points(log_sizes_C, rates_C, rates_C, 0 * rates_C, 0 * rates_C)
  smallest, largest = points.log_size_K.min(), points.log_size_K.max()
  outside_C = np.abs(log_sizes_C - np.clip(log_sizes_C, smallest, largest))
  bend_Dx1 = BEND * rng.standard_normal((draws, 1))
  shared_Dx1 = interpolation * rng.standard_normal((draws, 1))
  law_DxC = b_DxP @ _LINE.design_matrix(cells, points.log_rates).T
  law_DxC += bend_Dx1 * outside_C**2 / 2 + shared_Dx1
  noise_D = np.hypot(noise_D, seed_noise)
  # One deviation per draw, shared by all sizes.
  return Draws(law_DxC, noise_D, law_DxC + (noise_D * rng.standard_normal(draws))[:, None])
