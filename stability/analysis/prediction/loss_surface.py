"""The final loss as a function of arm, size and learning rate: a Gaussian process.

It interpolates between trained cells and says how uncertain it is, also at sizes and arms with few
runs or none. Losses are modelled in the logarithm, where a curve over learning rates has a similar
shape at all sizes, shifted along the axis of log rates in proportion to the log size. Arms share a
part of their curves.

  log loss = constant + slope x log size + deviation(arm, log size, log rate + shift x log size)

The deviation has a Matern 5/2 covariance. Runs have independent noise: that of `Covariance.noise`,
and above a curve's best rate more, in proportion to the rise, which is the log loss above the
lowest one of the same arm and size. The six numbers of `Covariance` are those of the highest
posterior density, under priors that matter as long as there are few runs.

Suffixes of arrays: N runs, C cells, D draws.
"""

import dataclasses

import numpy as np
import pandas as pd
from scipy import linalg, optimize

# Prior standard deviations of the constant and of the slope per decade of size, in log loss.
_CONSTANT, _SLOPE = 2.0, 0.3
_MOST_FITTED = 400  # runs that the covariance is fitted to, evenly spread; all runs condition
# Standard deviation of the noise per rise. Seeds of the quickstart differ by 1 % at the best rates,
# and above them by 0.2 times the rise (quadratic mean over 18 cells). It is not fitted: the fit
# would take cliffs for noise.
NOISE_GROWTH = 0.2
# Draws are widened about their mean by this factor, since the covariance is not known exactly and
# curves have cliffs. With it, 90 % intervals hold the critical rates of simulated curves in about
# 90 % of cases (launch/benchmarks/next_coverage.py).
SPREAD = 1.2
_ORIGIN = 5.0  # subtracted from log sizes, near the middle of those of sweeps here

# Medians and standard deviations of the priors, which are normal: of the logarithm where a number
# is positive. Rates shift by at most about half a decade per decade of size: theory has exponents
# between 0 and -1/2. The noise is that of the loss over seeds, 1 %.
_PRIORS = {
    'deviation': (np.log(0.3), 0.7),  # standard deviation, in log loss
    'rate_length': (np.log(0.8), 0.4),  # decades of the learning rate
    'size_length': (np.log(2.0), 0.5),  # decades of the size
    'arm_length': (np.log(1.0), 0.7),  # arms share exp(-1 / length) of their deviation
    'noise': (np.log(0.01), 0.7),
    'shift': (0.25, 0.25),
}


@dataclasses.dataclass(frozen=True)
class Cells:
  """Cells of a sweep, or runs in them, as arrays [C]."""

  arm_C: np.ndarray  # number of the arm
  log_size_C: np.ndarray  # log10(parameters)
  log_rate_C: np.ndarray  # log10(learning rate)

  def __len__(self) -> int:
    return len(self.arm_C)

  def __getitem__(self, which: np.ndarray | slice) -> 'Cells':
    return Cells(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))


def join(*parts: Cells) -> Cells:
  """The cells of all parts, one part after another."""
  return Cells(
      *(
          np.concatenate([getattr(part, field.name) for part in parts])
          for field in dataclasses.fields(Cells)
      )
  )


@dataclasses.dataclass(frozen=True)
class Covariance:
  """The covariance of log losses; see _PRIORS."""

  deviation: float
  rate_length: float
  size_length: float
  arm_length: float
  noise: float
  shift: float

  @classmethod
  def from_vector(cls, vector: np.ndarray) -> 'Covariance':
    """From the numbers in the order of _PRIORS, in the logarithm where they are positive."""
    return cls(*np.exp(vector[:-1]).tolist(), float(vector[-1]))

  def to_vector(self) -> np.ndarray:
    """The inverse of from_vector."""
    *positive, shift = dataclasses.astuple(self)
    return np.array([*np.log(positive), shift])

  def noise_at(self, rise: np.ndarray) -> np.ndarray:
    """The standard deviation of the noise of runs with these rises."""
    return np.hypot(self.noise, NOISE_GROWTH * rise)

  def __call__(self, left: Cells, right: Cells) -> np.ndarray:
    """The covariance [left, right] without noise."""
    s, t = left.log_size_C[:, None] - _ORIGIN, right.log_size_C[None] - _ORIGIN
    r, q = left.log_rate_C[:, None] + self.shift * s, right.log_rate_C[None] + self.shift * t
    distance = np.sqrt(5 * (((r - q) / self.rate_length) ** 2 + ((s - t) / self.size_length) ** 2))
    across_arms = (left.arm_C[:, None] != right.arm_C[None]) / self.arm_length
    shape = (1 + distance + distance**2 / 3) * np.exp(-distance - across_arms)
    return _CONSTANT**2 + _SLOPE**2 * s * t + self.deviation**2 * shape


def rises(cells: Cells, log_loss_C: np.ndarray) -> np.ndarray:
  """The log losses [C] above the lowest one of the same arm and size; 0 up to its learning rate."""
  table = pd.DataFrame({'rate': cells.log_rate_C, 'loss': log_loss_C})
  curves = table.groupby([cells.arm_C, cells.log_size_C])['loss']
  lowest = table.loc[curves.transform('idxmin')].reset_index(drop=True)
  is_above = table['rate'] > lowest['rate']
  return ((table['loss'] - lowest['loss']) * is_above).to_numpy()


@dataclasses.dataclass(frozen=True)
class LossSurface:
  """The posterior of the log loss, given runs."""

  covariance: Covariance
  runs: Cells
  log_loss_N: np.ndarray
  mean: float  # subtracted from log losses

  def with_runs(self, runs: Cells, log_loss_N: np.ndarray) -> 'LossSurface':
    """The posterior given more runs, with the same covariance."""
    return dataclasses.replace(
        self,
        runs=join(self.runs, runs),
        log_loss_N=np.concatenate([self.log_loss_N, log_loss_N]),
    )

  def predict(self, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Mean [C] and covariance [C, C] of the log loss in cells, without the noise of a run."""
    K_CxC = self.covariance(cells, cells)
    if not len(self.runs):
      return np.full(len(cells), self.mean), K_CxC
    K_NxN = self.covariance(self.runs, self.runs)
    K_NxN += np.diag(self.covariance.noise_at(rises(self.runs, self.log_loss_N)) ** 2)
    factor = linalg.cho_factor(K_NxN, lower=True)
    K_NxC = self.covariance(self.runs, cells)
    solved_NxC = linalg.cho_solve(factor, K_NxC)
    return (
        self.mean + solved_NxC.T @ (self.log_loss_N - self.mean),
        K_CxC - K_NxC.T @ solved_NxC,
    )

  def draw(self, cells: Cells, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Joint draws [D, C] of the log loss in cells, without the noise of a run; see SPREAD."""
    mean_C, covariance_CxC = self.predict(cells)
    values_C, vectors_CxC = linalg.eigh(covariance_CxC)
    root_CxC = SPREAD * vectors_CxC * np.sqrt(np.maximum(values_C, 0.0))
    return mean_C + rng.standard_normal((draws, len(cells))) @ root_CxC.T


def fit(runs: Cells, loss_N: np.ndarray, start: Covariance | None = None) -> LossSurface:
  """The posterior given runs with these losses in nats (finite, above 0); there may be none.

  `start`, the covariance of a similar set of runs, saves time.
  """
  log_loss_N = np.log(loss_N)
  some = slice(None, None, -(-len(runs) // _MOST_FITTED) or None)
  centre, width = np.array(list(_PRIORS.values())).T
  mean = float(log_loss_N.mean()) if len(runs) else 0.0
  if not len(runs):
    return LossSurface(Covariance.from_vector(centre), runs, log_loss_N, mean)

  fitted, y_N, rise_N = runs[some], log_loss_N[some] - mean, rises(runs, log_loss_N)[some]

  def objective(vector: np.ndarray) -> float:
    covariance = Covariance.from_vector(vector)
    K_NxN = covariance(fitted, fitted) + np.diag(covariance.noise_at(rise_N) ** 2)
    L_NxN = linalg.cholesky(K_NxN, lower=True, check_finite=False)
    whitened_N = linalg.solve_triangular(L_NxN, y_N, lower=True, check_finite=False)
    density = whitened_N @ whitened_N / 2 + np.log(np.diag(L_NxN)).sum()
    return float(density + (((vector - centre) / width) ** 2).sum() / 2)

  first = centre if start is None else start.to_vector()
  bounds = list(zip(centre - 4 * width, centre + 4 * width, strict=True))
  found = optimize.minimize(
      objective, first, method='L-BFGS-B', bounds=bounds, options={'maxiter': 40}
  )
  return LossSurface(Covariance.from_vector(found.x), runs, log_loss_N, mean)
