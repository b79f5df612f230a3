"""Critical and best learning rates of made-up sweeps, drawn from the prior of the model."""

import dataclasses

import numpy as np
import pandas as pd

from stability.analysis.prediction import surface_posterior as prior

GRID = (-3.0, 0.0)  # log10 of the lowest and highest learning rate
STEP = 0.5  # decades
LOG_SIZES = np.array([4.0, 4.4, 4.8, 5.2])
FAR = 6.4  # 16 times the largest
INTERPOLATION_VARIANCE = STEP**2 / 12 / 4


@dataclasses.dataclass(frozen=True)
class Made:
  """A made-up sweep and its true laws."""

  curves: pd.DataFrame  # see surface.read
  critical_AxC: np.ndarray  # log10 of the critical rate of a seed, at LOG_SIZES and FAR
  best_AxC: np.ndarray
  slope_A: np.ndarray
  seed_sd_A: np.ndarray  # of the critical rate


def draw(
    rng: np.random.Generator, *, arms: int = 2, seeds: int = 1, bend: float = 0.0
) -> Made:
  """Draws a sweep from the prior.

  Args:
    rng: the generator.
    arms: the number of arms.
    seeds: seeds of each cell.
    bend: added to the bend of all arms' critical rates, which the prior takes to be about 0.
  """

  def variance(freedom, scale, shape):
    return freedom * np.broadcast_to(scale, shape) / rng.chisquare(freedom, shape)

  mean_K = prior.MEAN_K + np.array([np.mean(GRID), 0, bend, 0, 0, 0])
  mean_K = rng.normal(mean_K, prior.MEAN_SD_K)
  arm_sd_K = np.sqrt(variance(prior.FREEDOM, prior.ARM_SD_K**2, (6,)))
  coefficients_AxK = rng.normal(mean_K, arm_sd_K, (arms, 6))
  x_C = np.append(LOG_SIZES, FAR) - LOG_SIZES.mean()
  basis_3xC = np.stack([np.ones(len(x_C)), x_C, x_C**2 / 2])
  law_AxC = coefficients_AxK[:, :3] @ basis_3xC
  laws_QxAxC = np.stack([law_AxC, law_AxC - coefficients_AxK[:, 3:] @ basis_3xC])
  size_sd_Q = np.sqrt(variance(prior.FREEDOM, prior.SIZE_SD**2, (2,)))
  laws_QxAxC += size_sd_Q[:, None, None] * rng.standard_t(prior.TAIL, laws_QxAxC.shape)
  common_Q = rng.gamma(prior.SEED_SHAPE, prior.SEED_SD**2 / prior.SEED_SHAPE, 2)
  seed_sd_QxA = np.sqrt(variance(prior.SEED_FREEDOM, common_Q[:, None], (2, arms)))
  half = np.sqrt(INTERPOLATION_VARIANCE / 2)
  rows = []
  for a in range(arms):
    for s, log_size in enumerate(LOG_SIZES):
      for seed in range(seeds):
        read = laws_QxAxC[:, a, s] + seed_sd_QxA[:, a] * rng.standard_normal(2)
        critical, best = (read + half * rng.standard_normal(2)).tolist()
        rows.append({'arm': a, 'log_size': log_size, 'seed': seed, 'centre': np.mean(GRID)})
        rows[-1] |= _observed('critical', critical, *GRID)
        rows[-1] |= _observed('best', best, GRID[0] + STEP / 2, GRID[1] - STEP / 2)
        if rows[-1]['critical_censored'] == -1:  # no rate trains, so none is the best
          rows[-1]['log_best'] = rows[-1]['best_censored'] = np.nan
  # What is read from the grid is off by an error that all sizes of an arm share.
  laws_QxAxC += half * rng.standard_normal((2, arms, 1))
  laws_QxAxC += (seed_sd_QxA * rng.standard_normal((2, arms)))[..., None]
  critical_AxC, best_AxC = laws_QxAxC
  return Made(
      pd.DataFrame(rows),
      critical_AxC,
      np.minimum(critical_AxC, best_AxC),
      coefficients_AxK[:, 1],
      seed_sd_QxA[0],
  )


def _observed(name: str, value: float, low: float, high: float) -> dict[str, float]:
  return {
      f'log_{name}': np.clip(value, low, high),
      f'{name}_censored': int(value > high) - int(value < low),
      f'{name}_step': STEP,
  }
