"""The critical learning rate of a target size, from draws of the loss curves of a sweep.

Law, errors and priors are those of surface.py, so that an interval covers as often as the ones of
launch.predict do. In each draw, a law is fitted to the critical rates of an arm:

  critical = a + b x + c x^2 / 2 + deviation of size and seed + error of interpolation

Arms share nothing but the priors. Suffixes of arrays: D draws, S sizes of an arm, K coefficients.
"""

import numpy as np

from stability.analysis.prediction import fits, surface_posterior
from stability.analysis.prediction.surface_posterior import FREEDOM, SEED_SD, SIZE_SD

MIN_EXACT = 2  # sizes whose critical rate lies within the grid; launch.predict asks for as many
_SWEEPS = 20  # of Gibbs sampling
_LAW = slice(0, 3)  # the coefficients of the critical rate among those of surface_posterior.py
_PRIOR_SD_K = np.hypot(surface_posterior.MEAN_SD_K, surface_posterior.ARM_SD_K)[_LAW]
_DEVIATION_VAR = SIZE_SD**2 + SEED_SD**2


def extrapolate(
    log_critical_DxS: np.ndarray,
    censored_DxS: np.ndarray,
    log_sizes_S: np.ndarray,
    log_size: float,
    centre: float,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws [D] of log10 of the critical learning rate of an arm at another size.

  Args:
    log_critical_DxS: log10 of the critical rates or, of those beyond the grid, its end.
    censored_DxS: 0: exact; 1: above the grid; -1: below it.
    log_sizes_S: log10 of the parameters.
    log_size: that of the target.
    centre: the middle of the log rates.
    step: the distance of neighbouring learning rates, in decades.

  Returns:
    The mean of the law, which the curves decide, and the value of a single run; at a size of the
    curves, both with its deviation.
  """
  draws, sizes = log_critical_DxS.shape
  rng = np.random.default_rng(2)
  origin = log_sizes_S.mean()
  X_SxK = surface_posterior.law_rows(log_sizes_S - origin, np.zeros(sizes))[:, _LAW]
  row_K = surface_posterior.law_rows(np.array([log_size - origin]), np.zeros(1))[0, _LAW]
  prior_mean_K = surface_posterior.MEAN_K[_LAW] + [centre, 0, 0]
  # Coefficients are the prior's mean plus root @ law: in the basis of law, prior and posterior are
  # diagonal.
  values_K, vectors_KxK = np.linalg.eigh((X_SxK * _PRIOR_SD_K).T @ (X_SxK * _PRIOR_SD_K))
  root_KxK = _PRIOR_SD_K[:, None] * vectors_KxK
  prior_S, Z_SxK = X_SxK @ prior_mean_K, X_SxK @ root_KxK
  # As in surface.py, sizes share half of the variance of interpolation.
  interpolation_var = fits.interpolation_sd(step) ** 2 / 2
  var_Dx1 = np.full((draws, 1), _DEVIATION_VAR)
  law_DxK = np.zeros((draws, len(row_K)))
  for _ in range(_SWEEPS):
    total_Dx1 = var_Dx1 + interpolation_var
    y_DxS = fits.censored_draws(
        prior_S + law_DxK @ Z_SxK.T, np.sqrt(total_Dx1), log_critical_DxS, censored_DxS, rng
    )
    precision_DxK = values_K / total_Dx1 + 1
    mean_DxK = (y_DxS - prior_S) @ Z_SxK / total_Dx1 / precision_DxK
    law_DxK = mean_DxK + rng.standard_normal(mean_DxK.shape) / np.sqrt(precision_DxK)
    share_Dx1 = var_Dx1 / total_Dx1
    own_DxS = share_Dx1 * (y_DxS - prior_S - law_DxK @ Z_SxK.T)
    own_DxS += np.sqrt(share_Dx1 * interpolation_var) * rng.standard_normal((draws, sizes))
    squares_Dx1 = (own_DxS**2).sum(axis=1, keepdims=True)
    freedom = rng.chisquare(FREEDOM + sizes, (draws, 1))
    var_Dx1 = (FREEDOM * _DEVIATION_VAR + squares_Dx1) / freedom
  shared_D = np.sqrt(interpolation_var) * rng.standard_normal(draws)
  new_D = np.sqrt(var_Dx1[:, 0]) * rng.standard_normal(draws)
  prior, row_K = row_K @ prior_mean_K, row_K @ root_KxK
  mean_D, value_D = prior + mean_DxK @ row_K, prior + law_DxK @ row_K + shared_D
  is_fitted_S = np.isclose(log_sizes_S, log_size)
  if not is_fitted_S.any():
    return mean_D, value_D + new_D
  own_D = own_DxS[:, is_fitted_S].mean(axis=1)
  return mean_D + own_D, value_D + own_D
