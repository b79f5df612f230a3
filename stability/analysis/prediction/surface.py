"""One model of the critical and the best learning rates of all arms and sizes of a sweep.

A run is unstable if its learning rate is above the critical rate of its arm, size and seed. In log10,
with x the log size relative to the fitted ones:

  critical = law_c(x) + deviation of the size + noise of the seed
  best     = law_c(x) - headroom(x) + deviation of the size + noise of the seed

law_c and headroom are a + b x + c x^2 / 2, with coefficients of each arm from a normal
distribution that all arms share. Deviations and noise have variances with common priors. So an arm
with few unstable runs borrows from the others, and an arm with many follows its own. What is
observed is read from a grid of learning rates: with an error of interpolation, or only as a bound.

The posterior is drawn by Gibbs sampling; all conditional distributions are exact, so there is
nothing to tune. Suffixes of arrays: D draws, H chains, A arms, S sizes, N observations of an arm,
P parameters of an arm, K coefficients, Q quantities (critical, best), C sizes to predict.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

from stability.analysis import instability
from stability.analysis.prediction import observations as observations_lib
from stability.analysis.prediction.power_law import Draws

# Priors, in decades of the learning rate per decade of parameters. Theory puts exponents between 0
# (constant width) and -1/2 (1 / width); that of the critical rate is above 0 with a probability of
# 5 %, for the mean of the arms. The bend is the change of the exponent per decade; see
# power_law.BEND. The level is relative to the middle of the grid.
_MEAN_K = np.array([0.0, -0.25, 0.0, 0.7, 0.0, 0.0])  # critical: level, slope, bend; headroom: same
_MEAN_SD_K = np.array([1.0, 0.15, 0.05, 0.4, 0.15, 0.05])
_ARM_SD_K = np.array([0.5, 0.1, 0.03, 0.3, 0.1, 0.03])  # between arms
_SIZE_SD = 0.05  # deviation of a size from the law
_SEED_SD = 0.05  # noise of a seed
_FREEDOM = 3  # of the variances of arms and sizes: each sd above is known to a factor of about 2
_SEED_FREEDOM = 4  # of the noise of an arm, around the noise that all arms share
_SEED_SHAPE = 2  # of the gamma prior of the shared variance
_TAIL = 4  # degrees of freedom of the t distribution of deviations: sizes that break the law are few
_COEFFICIENTS, _QUANTITIES = 6, 2

_DEFAULT_STEP = 0.5  # decades, of a curve with too few rates to know
_CHAINS = 10
_BURN_IN = 150
_THIN = 2
DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Surface:
  """Posterior draws D of the model; see fit.

  Every prediction of a Surface uses the same draws, so predictions at different sizes and of
  different arms can be compared draw by draw.
  """

  arms: tuple
  log_sizes: np.ndarray  # [S], log10(parameters) of the fitted sizes
  origin: float  # the log size at which x is 0
  coefficients_DxAxK: np.ndarray
  deviation_DxAxQxS: np.ndarray  # of the fitted sizes
  new_deviation_DxAxQ: np.ndarray  # of a size that was not fitted
  seed_sd_DxAxQ: np.ndarray
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

  def unstable(
      self,
      arm: object,
      log_sizes_C: Sequence[float] | np.ndarray,
      log_rates_C: Sequence[float] | np.ndarray,
  ) -> np.ndarray:
    """The probability [C] that a run is unstable, which rises with the learning rate (log10)."""
    return (self.critical(arm, log_sizes_C).run_DxC < np.asarray(log_rates_C)).mean(axis=0)

  def _draws(self, arm: object, log_sizes_C: Sequence[float] | np.ndarray, quantity: int) -> Draws:
    a = self.arms.index(arm)
    log_sizes_C = np.asarray(log_sizes_C, float)
    rows_CxK = _rows(log_sizes_C - self.origin, np.full(len(log_sizes_C), quantity))
    law_DxC = self.coefficients_DxAxK[:, a] @ rows_CxK.T
    is_fitted_CxS = np.isclose(log_sizes_C[:, None], self.log_sizes)
    own_DxC = self.deviation_DxAxQxS[:, a, quantity] @ is_fitted_CxS.T
    new_Dx1 = self.new_deviation_DxAxQ[:, a, quantity, None]
    law_DxC = law_DxC + np.where(is_fitted_CxS.any(axis=1), own_DxC, new_Dx1)
    law_DxC += self.shared_DxAxQ[:, a, quantity, None]
    run_DxC = law_DxC + self.seed_DxAxQ[:, a, quantity, None]
    return Draws(law_DxC, self.seed_sd_DxAxQ[:, a, quantity], run_DxC)


def fit(runs: pd.DataFrame, draws: int = DRAWS) -> Surface:
  """Fits the model to the runs of a sweep. Equal arguments give equal draws.

  Args:
    runs: a row per run, with the columns arm (any hashable value), log_size (log10 of parameters),
      log_rate (log10 of the learning rate), seed, loss and initial_loss (nats). The loss is at most
      the initial loss; a diverged run has it, and a run without a loss (NaN) does not count.
    draws: the number of draws.

  Raises:
    ValueError: no run counts.
  """
  return fit_curves(read(runs), draws)


def read(runs: pd.DataFrame) -> pd.DataFrame:
  """What the loss curves of single seeds say of their critical and best learning rates.

  Returns:
    A row per arm, log_size and seed with at least two learning rates, and the columns arm, log_size,
    seed, centre (middle of the sweep's log rates), and for quantity in (critical, best):
    log_<quantity>, <quantity>_censored (0: exact; 1: above the value; -1: below it; NaN: nothing is
    known) and <quantity>_step (distance of the rates between which it is interpolated, in decades).
  """
  runs = runs.dropna(subset='loss')
  if runs.empty:
    raise ValueError('no run counts')
  centre = (runs['log_rate'].min() + runs['log_rate'].max()) / 2
  rows = []
  for (arm, log_size, seed), curve in runs.groupby(['arm', 'log_size', 'seed'], sort=False):
    losses = curve.groupby('log_rate')['loss'].mean()
    numbers = _read_curve(losses, curve['initial_loss'].mean())
    rows.append({'arm': arm, 'log_size': log_size, 'seed': seed, 'centre': centre, **numbers})
  return pd.DataFrame(rows)


def _read_curve(losses: pd.Series, initial_loss: float) -> dict[str, float]:
  log_rates = losses.index.to_numpy()
  critical, critical_censored = instability.critical_rate(
      10**log_rates, losses.to_numpy(), initial_loss
  )
  log_critical = np.log10(critical)
  log_best, best_censored = np.nan, np.nan
  if critical_censored == -1:
    pass  # no rate trains, so none is the best
  elif len(losses) == 1:
    log_critical, critical_censored = np.nan, np.nan  # nothing to compare its loss with
  else:
    log_best, best_censored = observations_lib.log_best_rate(losses)
  steps = np.diff(log_rates) if len(losses) > 1 else np.array([_DEFAULT_STEP])
  between = np.searchsorted(log_rates, log_critical) - 1
  lowest = int(losses.to_numpy().argmin())
  return {
      'log_critical': log_critical,
      'critical_censored': critical_censored,
      'critical_step': steps[np.clip(between, 0, len(steps) - 1)],
      'log_best': log_best,
      'best_censored': best_censored,
      'best_step': steps[max(lowest - 1, 0) : lowest + 1].max(initial=steps.min()),
  }


def _rows(x_N: np.ndarray, quantity_N: np.ndarray) -> np.ndarray:
  """The coefficients [N, K] of observations in the law: the best rate is below the critical one."""
  basis_Nx3 = np.stack([np.ones(len(x_N)), x_N, x_N**2 / 2], axis=1)
  return np.hstack([basis_Nx3, -basis_Nx3 * (quantity_N == 1)[:, None]])


@dataclasses.dataclass(frozen=True)
class _Data:
  """The observations, padded to the same number N for each arm; the padding has no weight."""

  X_AxNxP: np.ndarray  # regressors: coefficients of the law, then a deviation per quantity and size
  value_AxN: np.ndarray
  censored_AxN: np.ndarray
  interpolation_AxN: np.ndarray  # variance of the error that is not shared by the arm's sizes
  shared_AxQ: np.ndarray  # sd of the error that is
  is_quantity_AxNxQ: np.ndarray  # all false: padding
  has_size_AxQxS: np.ndarray  # whether the arm has observations at the size


def _data(curves: pd.DataFrame, arms: tuple, log_sizes: np.ndarray, origin: float) -> _Data:
  long = pd.concat([
      pd.DataFrame({
          'arm': curves['arm'].map(arms.index),
          'size': np.searchsorted(log_sizes, curves['log_size']),
          'quantity': quantity,
          'value': curves[f'log_{name}'],
          'censored': curves[f'{name}_censored'],
          # Uniform between two rates of the grid, and halved by interpolation.
          'variance': curves[f'{name}_step'] ** 2 / 12 / 4,
      })
      for quantity, name in enumerate(('critical', 'best'))
  ]).dropna()
  number = long.groupby('arm').cumcount().to_numpy()
  A, N, S, Q = len(arms), int(number.max(initial=0)) + 1, len(log_sizes), _QUANTITIES
  at = (long['arm'].to_numpy(), number)
  size, quantity = long['size'].to_numpy(), long['quantity'].to_numpy()

  def padded(values: np.ndarray, fill: float = 0.0) -> np.ndarray:
    table = np.full((A, N, *np.shape(values)[1:]), fill)
    table[at] = values
    return table

  is_quantity = quantity[:, None] == np.arange(Q)
  is_size = size[:, None] == np.arange(S)
  deviations = (is_quantity[:, :, None] & is_size[:, None]).reshape(len(long), Q * S)
  regressors = np.hstack([_rows(log_sizes[size] - origin, quantity), deviations])
  variance = padded(long['variance'].to_numpy())
  mask = padded(is_quantity)
  count_AxQ = mask.sum(axis=1)
  mean_AxQ = (mask * variance[..., None]).sum(axis=1) / np.maximum(count_AxQ, 1)
  has = np.zeros((A, Q, S), bool)
  has[at[0], quantity, size] = True
  # Sizes with similar loss curves share their error of interpolation, which no fit shows: a half.
  return _Data(
      padded(regressors),
      padded(long['value'].to_numpy()),
      padded(long['censored'].to_numpy()),
      padded(long['variance'].to_numpy() / 2, fill=1.0),
      np.sqrt(mean_AxQ / 2),
      mask.astype(bool),
      has,
  )


def fit_curves(curves: pd.DataFrame, draws: int = DRAWS) -> Surface:
  """Fits the model to what read found."""
  arms = tuple(curves['arm'].unique())
  log_sizes = np.unique(curves['log_size'])
  origin = float(log_sizes.mean())
  data = _data(curves, arms, log_sizes, origin)
  A, S, Q, K, H = len(arms), len(log_sizes), _QUANTITIES, _COEFFICIENTS, _CHAINS
  rng = np.random.default_rng(0)  # the same draws in every call
  mean_K = _MEAN_K + np.eye(K)[0] * curves['centre'].iloc[0]
  X, mask = data.X_AxNxP, data.is_quantity_AxNxQ
  count_AxQ = mask.sum(axis=1)
  sign_AxN = np.where(data.censored_AxN == 0, 1, data.censored_AxN)

  # Starts are drawn from the prior.
  arm_var_HxK = _inverse_chi2(rng, _FREEDOM, _FREEDOM * _ARM_SD_K**2 * np.ones((H, 1)))
  pop_HxK = mean_K + _MEAN_SD_K * rng.standard_normal((H, K))
  size_var_HxQ = _inverse_chi2(rng, _FREEDOM, np.full((H, Q), _FREEDOM * _SIZE_SD**2))
  seed_var_HxAxQ = np.full((H, A, Q), _SEED_SD**2)
  tail_HxAxQxS = np.ones((H, A, Q, S))
  theta_HxAxP = np.concatenate(
      [np.broadcast_to(pop_HxK[:, None], (H, A, K)), np.zeros((H, A, Q * S))], axis=-1
  )
  kept = []
  for sweep in range(_BURN_IN + _THIN * -(-draws // H)):
    noise_HxAxN = np.where(mask, seed_var_HxAxQ[:, :, None], 0.0).sum(axis=-1)
    total_HxAxN = noise_HxAxN + data.interpolation_AxN
    # Values beyond the grid, given the law.
    mean_HxAxN = np.squeeze(X @ theta_HxAxP[..., None], -1)
    sd_HxAxN = np.sqrt(total_HxAxN)
    share = special.ndtr(sign_AxN * (mean_HxAxN - data.value_AxN) / sd_HxAxN)
    share = np.maximum(share * (1 - rng.random(share.shape)), 1e-12)
    beyond_HxAxN = mean_HxAxN - sign_AxN * sd_HxAxN * special.ndtri(share)
    y_HxAxN = np.where(data.censored_AxN == 0, data.value_AxN, beyond_HxAxN)
    # Coefficients and deviations of each arm.
    weight_HxAxN = mask.any(axis=-1) / total_HxAxN
    precision_HxAxP = np.concatenate(
        [
            np.broadcast_to(1 / arm_var_HxK[:, None], (H, A, K)),
            (tail_HxAxQxS / size_var_HxQ[:, None, :, None]).reshape(H, A, Q * S),
        ],
        axis=-1,
    )
    prior_HxAxP = np.concatenate(
        [np.broadcast_to(pop_HxK[:, None], (H, A, K)), np.zeros((H, A, Q * S))], axis=-1
    )
    Xt_HxAxPxN = np.swapaxes(X, -1, -2) * weight_HxAxN[:, :, None]
    posterior = Xt_HxAxPxN @ X + precision_HxAxP[..., None] * np.eye(X.shape[-1])
    root = np.linalg.inv(np.linalg.cholesky(posterior))
    target = np.squeeze(Xt_HxAxPxN @ y_HxAxN[..., None], -1) + precision_HxAxP * prior_HxAxP
    target = root @ target[..., None] + rng.standard_normal((*target.shape, 1))
    theta_HxAxP = np.squeeze(np.swapaxes(root, -1, -2) @ target, -1)
    deviation_HxAxQxS = theta_HxAxP[..., K:].reshape(H, A, Q, S)
    # Noise of the seeds, apart from the error of interpolation.
    residual = y_HxAxN - np.squeeze(X @ theta_HxAxP[..., None], -1)
    seed_share = noise_HxAxN / total_HxAxN
    seed_HxAxN = residual * seed_share + np.sqrt(
        seed_share * data.interpolation_AxN
    ) * rng.standard_normal(residual.shape)
    squares_HxAxQ = (mask * seed_HxAxN[..., None] ** 2).sum(axis=2)
    shared_HxQ = rng.gamma(_SEED_SHAPE + A * _SEED_FREEDOM / 2, size=(H, Q)) / (
        _SEED_SHAPE / _SEED_SD**2 + _SEED_FREEDOM / 2 * (1 / seed_var_HxAxQ).sum(axis=1)
    )
    seed_var_HxAxQ = _inverse_chi2(
        rng, _SEED_FREEDOM + count_AxQ, _SEED_FREEDOM * shared_HxQ[:, None] + squares_HxAxQ
    )
    # Deviations of the sizes: t distributed, as normal ones with variances that differ.
    squares = np.where(data.has_size_AxQxS, tail_HxAxQxS * deviation_HxAxQxS**2, 0.0)
    size_var_HxQ = _inverse_chi2(
        rng,
        _FREEDOM + data.has_size_AxQxS.sum(axis=(0, 2)),
        _FREEDOM * _SIZE_SD**2 + squares.sum(axis=(1, 3)),
    )
    tail_HxAxQxS = rng.gamma((_TAIL + 1) / 2, size=(H, A, Q, S)) / (
        (_TAIL + deviation_HxAxQxS**2 / size_var_HxQ[:, None, :, None]) / 2
    )
    # The distribution of the arms.
    precision_HxK = 1 / _MEAN_SD_K**2 + A / arm_var_HxK
    mean_HxK = mean_K / _MEAN_SD_K**2 + theta_HxAxP[..., :K].sum(axis=1) / arm_var_HxK
    pop_HxK = mean_HxK / precision_HxK + rng.standard_normal((H, K)) / np.sqrt(precision_HxK)
    spread_HxK = ((theta_HxAxP[..., :K] - pop_HxK[:, None]) ** 2).sum(axis=1)
    arm_var_HxK = _inverse_chi2(rng, _FREEDOM + A, _FREEDOM * _ARM_SD_K**2 + spread_HxK)
    if sweep >= _BURN_IN and (sweep - _BURN_IN) % _THIN == 0:
      kept.append((theta_HxAxP[..., :K], deviation_HxAxQxS, seed_var_HxAxQ, size_var_HxQ))
  theta_DxAxK, deviation_DxAxQxS, seed_var_DxAxQ, size_var_DxQ = (
      np.concatenate(parts)[:draws] for parts in zip(*kept, strict=True)
  )
  shape = (draws, A, Q)
  new_DxAxQ = rng.standard_t(_TAIL, shape) * np.sqrt(size_var_DxQ)[:, None]
  seed_sd_DxAxQ = np.sqrt(seed_var_DxAxQ)
  return Surface(
      arms,
      log_sizes,
      origin,
      theta_DxAxK,
      deviation_DxAxQxS,
      new_DxAxQ,
      seed_sd_DxAxQ,
      seed_sd_DxAxQ * rng.standard_normal(shape),
      data.shared_AxQ * rng.standard_normal(shape),
  )


def _inverse_chi2(
    rng: np.random.Generator, freedom: int | np.ndarray, scale: np.ndarray
) -> np.ndarray:
  """Draws of a variance from its conjugate distribution: scale / chi2(freedom)."""
  return scale / rng.chisquare(np.broadcast_to(freedom, scale.shape))
