"""Draws from the posterior of the model in surface.py, by Gibbs sampling.

All conditional distributions are exact, so there is nothing to tune. Suffixes of arrays: H chains,
A arms, S sizes, N observations of an arm, K coefficients of the law, Q quantities (critical, best),
P parameters of an arm: the coefficients and a deviation for each quantity and size.
"""

import dataclasses

import numpy as np
import pandas as pd
from scipy import special

from stability.analysis.prediction import fits

# Priors, in decades of the learning rate per decade of parameters. Theory puts exponents between 0
# (constant width) and -1/2 (1 / width); that of the critical rate is above 0 with a probability of
# 5 %, for the mean of the arms. The bend is the change of the exponent per decade; see
# power_law.BEND. The level is relative to the middle of the grid.
MEAN_K = np.array([0.0, -0.25, 0.0, 0.7, 0.0, 0.0])  # critical: level, slope, bend; headroom: same
MEAN_SD_K = np.array([1.0, 0.15, 0.05, 0.4, 0.15, 0.05])
ARM_SD_K = np.array([0.5, 0.1, 0.03, 0.3, 0.1, 0.03])  # between arms
SIZE_SD = 0.05  # deviation of a size from the law
SEED_SD = 0.05  # noise of a seed
FREEDOM = 3  # of the variances of arms and sizes: each sd above is known to a factor of about 2
SEED_FREEDOM = 4  # of the noise of an arm, around the noise that all arms share
SEED_SHAPE = 2  # of the gamma prior of the shared variance
TAIL = 4  # degrees of freedom of the t distribution of deviations: few sizes break the law

QUANTITIES = ('critical', 'best')
_LEVEL, _HEADROOM = 0, 3  # positions of the levels in K
_CHAINS = 20
_BURN_IN = 100  # sweeps
_THIN = 2  # sweeps per kept draw of each chain


@dataclasses.dataclass(frozen=True)
class Posterior:
  """Draws D of the parameters, and the error that no observation shows."""

  coefficients_DxAxK: np.ndarray
  deviation_DxAxQxS: np.ndarray  # of the fitted sizes
  size_sd_DxQ: np.ndarray  # scale of the t distribution of deviations
  seed_sd_DxAxQ: np.ndarray
  shared_sd_AxQ: np.ndarray  # of the error of interpolation that all sizes of an arm share


def law_rows(x_N: np.ndarray, quantity_N: np.ndarray) -> np.ndarray:
  """The factors [N, K] of the coefficients: the best rate is below the critical one."""
  basis_Nx3 = np.stack([np.ones(len(x_N)), x_N, x_N**2 / 2], axis=1)
  return np.hstack([basis_Nx3, -basis_Nx3 * (quantity_N == 1)[:, None]])


def sample(
    curves: pd.DataFrame, arms: tuple, log_sizes: np.ndarray, origin: float, draws: int
) -> Posterior:
  """Draws from the posterior; equal arguments give equal draws.

  Args:
    curves: see surface.read.
    arms: the distinct arms.
    log_sizes: the distinct log sizes, ascending.
    origin: the log size at which x is 0.
    draws: the number of draws.
  """
  data = _Data.make(curves, arms, log_sizes - origin)
  chains = _Chains(data, float(curves['centre'].iloc[0]))
  for _ in range(_BURN_IN):
    chains.sweep()
  kept = []
  for _ in range(-(-draws // _CHAINS)):
    for _ in range(_THIN):
      chains.sweep()
    kept.append((
        chains.coefficients_HxAxK,
        chains.deviation_HxAxQxS,
        np.sqrt(chains.size_var_HxQ),
        np.sqrt(chains.seed_var_HxAxQ),
    ))
  parts = (np.concatenate(part)[:draws] for part in zip(*kept, strict=True))
  return Posterior(*parts, data.shared_sd_AxQ)


@dataclasses.dataclass(frozen=True)
class _Data:
  """The observations, padded to the same number N for each arm; the padding has no weight."""

  X_AxNxP: np.ndarray
  value_AxN: np.ndarray
  censored_AxN: np.ndarray
  is_quantity_AxNxQ: np.ndarray  # all false: padding
  interpolation_AxN: np.ndarray  # variance of the error that each observation has of its own
  shared_sd_AxQ: np.ndarray  # see Posterior

  @classmethod
  def make(cls, curves: pd.DataFrame, arms: tuple, x_S: np.ndarray) -> '_Data':
    sizes_S = np.unique(curves['log_size'])
    long = pd.concat([
        pd.DataFrame({
            'arm': curves['arm'].map(arms.index),
            'size': np.searchsorted(sizes_S, curves['log_size']),
            'quantity': quantity,
            'value': curves[f'log_{name}'],
            'censored': curves[f'{name}_censored'],
            # Sizes with similar loss curves share half of the variance.
            'variance': fits.interpolation_sd(curves[f'{name}_step']) ** 2 / 2,
        })
        for quantity, name in enumerate(QUANTITIES)
    ]).dropna()
    number = long.groupby('arm').cumcount().to_numpy()
    at = (long['arm'].to_numpy(), number)
    size, quantity = long['size'].to_numpy(), long['quantity'].to_numpy()

    def padded(values: np.ndarray, fill: float = 0.0) -> np.ndarray:
      table = np.full((len(arms), int(number.max(initial=0)) + 1, *values.shape[1:]), fill)
      table[at] = values
      return table

    is_quantity = quantity[:, None] == np.arange(len(QUANTITIES))
    is_size = size[:, None] == np.arange(len(x_S))
    deviations = is_quantity[:, :, None] & is_size[:, None]
    deviations = deviations.reshape(len(long), len(QUANTITIES) * len(x_S))  # there may be none
    variance = long['variance'].to_numpy()
    mask_AxNxQ = padded(is_quantity)
    sum_AxQ = (mask_AxNxQ * padded(variance)[..., None]).sum(axis=1)
    return cls(
        padded(np.hstack([law_rows(x_S[size], quantity), deviations])),
        padded(long['value'].to_numpy()),
        padded(long['censored'].to_numpy()),
        mask_AxNxQ.astype(bool),
        padded(variance, fill=1.0),
        np.sqrt(sum_AxQ / np.maximum(mask_AxNxQ.sum(axis=1), 1)),
    )


class _Chains:
  """The state of the chains."""

  def __init__(self, data: _Data, centre: float) -> None:
    self.data, self.rng = data, np.random.default_rng(0)
    self.A, _, P = data.X_AxNxP.shape
    K, Q = len(MEAN_K), len(QUANTITIES)
    self.S = (P - K) // Q
    self.prior_mean_K = MEAN_K + np.eye(K)[_LEVEL] * centre
    # The chains start at draws from the prior.
    H, A, rng = _CHAINS, self.A, self.rng
    self.arm_var_HxK = self._variances(FREEDOM, FREEDOM * ARM_SD_K**2 * np.ones((H, K)))
    self.mean_HxK = self.prior_mean_K + MEAN_SD_K * rng.standard_normal((H, K))
    self.coefficients_HxAxK = self.mean_HxK[:, None] + np.sqrt(
        self.arm_var_HxK[:, None]
    ) * rng.standard_normal((H, A, K))
    self.deviation_HxAxQxS = np.zeros((H, A, Q, self.S))
    self.tail_HxAxQxS = np.ones((H, A, Q, self.S))
    self.size_var_HxQ = self._variances(FREEDOM, np.full((H, Q), FREEDOM * SIZE_SD**2))
    self.seed_var_HxAxQ = np.full((H, A, Q), SEED_SD**2)

  def sweep(self) -> None:
    """Draws everything once, each part given the others."""
    data = self.data
    seed_var_HxAxN = (data.is_quantity_AxNxQ * self.seed_var_HxAxQ[:, :, None]).sum(axis=-1)
    total_var_HxAxN = seed_var_HxAxN + data.interpolation_AxN
    y_HxAxN = fits.censored_draws(
        self._predicted(), np.sqrt(total_var_HxAxN), data.value_AxN, data.censored_AxN, self.rng
    )
    self._draw_arms(y_HxAxN, total_var_HxAxN)
    residual_HxAxN = y_HxAxN - self._predicted()
    self._shift_censored(y_HxAxN)
    self._draw_seed_noise(residual_HxAxN, seed_var_HxAxN, total_var_HxAxN)
    self._draw_size_deviations()
    self._draw_distribution_of_arms()

  def _predicted(self) -> np.ndarray:
    """The mean [H, A, N] of the observations."""
    flat = self.deviation_HxAxQxS.reshape(_CHAINS, self.A, -1)
    theta_HxAxP = np.concatenate([self.coefficients_HxAxK, flat], axis=-1)
    return np.squeeze(self.data.X_AxNxP @ theta_HxAxP[..., None], -1)

  def _draw_arms(self, y_HxAxN: np.ndarray, var_HxAxN: np.ndarray) -> None:
    """The coefficients and deviations of each arm: a linear regression."""
    X, (H, A, K) = self.data.X_AxNxP, self.coefficients_HxAxK.shape
    weights_HxAxN = self.data.is_quantity_AxNxQ.any(axis=-1) / var_HxAxN
    of_deviations = self.tail_HxAxQxS / self.size_var_HxQ[:, None, :, None]
    of_arms = np.broadcast_to(1 / self.arm_var_HxK[:, None], (H, A, K))
    precision_HxAxP = np.concatenate([of_arms, of_deviations.reshape(H, A, -1)], axis=-1)
    weighted_HxAxPxN = np.swapaxes(X, -1, -2) * weights_HxAxN[:, :, None]
    matrix_HxAxPxP = weighted_HxAxPxN @ X + precision_HxAxP[..., None] * np.eye(X.shape[-1])
    root_HxAxPxP = np.linalg.inv(np.linalg.cholesky(matrix_HxAxPxP))
    b_HxAxP = np.squeeze(weighted_HxAxPxN @ y_HxAxN[..., None], -1)
    b_HxAxP[..., :K] += of_arms * self.mean_HxK[:, None]
    z_HxAxPx1 = self.rng.standard_normal((*b_HxAxP.shape, 1))
    theta = np.swapaxes(root_HxAxPxP, -1, -2) @ (root_HxAxPxP @ b_HxAxP[..., None] + z_HxAxPx1)
    self.coefficients_HxAxK = theta[..., :K, 0]
    self.deviation_HxAxQxS = theta[..., K:, 0].reshape(self.deviation_HxAxQxS.shape)

  def _shift_censored(self, y_HxAxN: np.ndarray) -> None:
    """Moves the level of a quantity jointly with its values, in arms where all are censored.

    Without this move, the Gibbs sampler mixes slowly: level and values follow each other in small
    steps.
    """
    for q in range(len(QUANTITIES)):
      own_AxN, censored_AxN = self.data.is_quantity_AxNxQ[..., q], self.data.censored_AxN
      is_censored_A = own_AxN.any(axis=1) & ~(own_AxN & (censored_AxN == 0)).any(axis=1)
      room_HxAxN = self.data.value_AxN - y_HxAxN
      low = np.where(own_AxN & (censored_AxN == 1), room_HxAxN, -np.inf).max(axis=-1)
      high = np.where(own_AxN & (censored_AxN == -1), room_HxAxN, np.inf).min(axis=-1)
      # To move the critical rate alone, both levels rise; to move the best rate alone, the headroom
      # falls.
      direction_K = np.zeros(len(MEAN_K))
      direction_K[[_LEVEL, _HEADROOM]] = (1, 1) if q == 0 else (0, -1)
      precision_Hx1 = (direction_K**2 / self.arm_var_HxK).sum(axis=-1)[:, None]
      away_HxAxK = self.mean_HxK[:, None] - self.coefficients_HxAxK
      mean_HxA = (away_HxAxK * direction_K / self.arm_var_HxK[:, None]).sum(-1) / precision_Hx1
      root = np.sqrt(precision_Hx1)
      below, above = (special.ndtr((limit - mean_HxA) * root) for limit in (low, high))
      share = np.clip(below + (above - below) * self.rng.random(below.shape), 1e-12, 1 - 1e-12)
      shift_HxA = np.clip(mean_HxA + special.ndtri(share) / root, low, high)
      shift_HxA = np.where(is_censored_A, shift_HxA, 0.0)
      self.coefficients_HxAxK = self.coefficients_HxAxK + shift_HxA[..., None] * direction_K
      y_HxAxN = y_HxAxN + own_AxN * shift_HxA[..., None]

  def _draw_seed_noise(
      self, residual_HxAxN: np.ndarray, seed_var_HxAxN: np.ndarray, var_HxAxN: np.ndarray
  ) -> None:
    """The variances of the seeds, from what of the residuals is not an error of interpolation."""
    data, Q = self.data, len(QUANTITIES)
    share = seed_var_HxAxN / var_HxAxN
    z_HxAxN = self.rng.standard_normal(share.shape)
    seed_HxAxN = share * residual_HxAxN + np.sqrt(share * data.interpolation_AxN) * z_HxAxN
    squares_HxAxQ = (data.is_quantity_AxNxQ * seed_HxAxN[..., None] ** 2).sum(axis=2)
    rate_HxQ = SEED_SHAPE / SEED_SD**2 + SEED_FREEDOM / 2 * (1 / self.seed_var_HxAxQ).sum(axis=1)
    shape = SEED_SHAPE + self.A * SEED_FREEDOM / 2
    shared_HxQ = self.rng.gamma(shape, size=(_CHAINS, Q)) / rate_HxQ
    self.seed_var_HxAxQ = self._variances(
        SEED_FREEDOM + data.is_quantity_AxNxQ.sum(axis=1),
        SEED_FREEDOM * shared_HxQ[:, None] + squares_HxAxQ,
    )

  def _draw_size_deviations(self) -> None:
    """The variances of the sizes: a t distribution is normal with variances that differ."""
    squares = self.deviation_HxAxQxS**2
    self.size_var_HxQ = self._variances(
        FREEDOM + self.A * self.S,
        FREEDOM * SIZE_SD**2 + (self.tail_HxAxQxS * squares).sum(axis=(1, 3)),
    )
    rate = (TAIL + squares / self.size_var_HxQ[:, None, :, None]) / 2
    self.tail_HxAxQxS = self.rng.gamma((TAIL + 1) / 2, size=rate.shape) / rate

  def _draw_distribution_of_arms(self) -> None:
    """The mean and the variance of the coefficients over arms."""
    precision_HxK = 1 / MEAN_SD_K**2 + self.A / self.arm_var_HxK
    sum_HxK = self.coefficients_HxAxK.sum(axis=1)
    mean_HxK = (self.prior_mean_K / MEAN_SD_K**2 + sum_HxK / self.arm_var_HxK) / precision_HxK
    z_HxK = self.rng.standard_normal(mean_HxK.shape)
    self.mean_HxK = mean_HxK + z_HxK / np.sqrt(precision_HxK)
    squares_HxK = ((self.coefficients_HxAxK - self.mean_HxK[:, None]) ** 2).sum(axis=1)
    self.arm_var_HxK = self._variances(FREEDOM + self.A, FREEDOM * ARM_SD_K**2 + squares_HxK)

  def _variances(self, freedom: int | np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Draws from the conjugate distribution of variances, scale / chi2(freedom)."""
    return scale / self.rng.chisquare(np.broadcast_to(freedom, scale.shape))
