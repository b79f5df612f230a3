"""The nearest-neighbour language model of arXiv 1911.00172.

A datastore has a key for each position of a text, the input of the last block's MLP, and as its
value the token that follows. The probability of a token is weight * p_knn + (1 - weight) * p, where
p is the model's and p_knn the share of the token among the k nearest keys, each weighted with
exp(-distance^2 / temperature).

Shape suffixes: Q queries, K neighbours.
"""

import dataclasses

import numpy as np

NUMBERS = (1, 4, 16, 64, 256, 1_024)  # of neighbours that are tried
WEIGHTS = tuple(round(0.05 * i, 2) for i in range(20))
# Temperatures that are tried, over the typical distance^2 between nearest and furthest neighbour.
_TEMPERATURES = tuple(2.0**i for i in range(-5, 3))
_DIGITS = 3  # of a temperature


@dataclasses.dataclass(frozen=True)
class Setting:
  """How to mix the neighbours with the model."""

  k: int
  temperature: float  # in units of squared distance
  weight: float  # of the neighbours, from 0 to below 1


def log_p_knn(
    distances_QxK: np.ndarray, is_target_QxK: np.ndarray, k: int, temperature: float
) -> np.ndarray:
  """The log-probability that the k nearest neighbours give each target: [Q]; -inf for none.

  Args:
    distances_QxK: squared distances, in ascending order.
    is_target_QxK: whether the value of a neighbour is the target.
    k: number of neighbours used.
    temperature: in units of squared distance.
  """
  distances = distances_QxK[:, :k].astype(np.float64)
  weights = np.exp((distances[:, :1] - distances) / temperature)
  share = (weights * is_target_QxK[:, :k]).sum(axis=1) / weights.sum(axis=1)
  with np.errstate(divide='ignore'):
    return np.log(share)


def mixed(log_p_Q: np.ndarray, log_p_knn_Q: np.ndarray, weight: float) -> np.ndarray:
  """The log-probability of each target under the mixture: [Q]."""
  if not weight:
    return log_p_Q.astype(np.float64)
  return np.logaddexp(np.log(weight) + log_p_knn_Q, np.log1p(-weight) + log_p_Q)


def loss(
    log_p_Q: np.ndarray, distances_QxK: np.ndarray, is_target_QxK: np.ndarray, setting: Setting
) -> float:
  """The mean loss of the mixture, in nats."""
  found = log_p_knn(distances_QxK, is_target_QxK, setting.k, setting.temperature)
  return float(-mixed(log_p_Q, found, setting.weight).mean())


def spread(distances_QxK: np.ndarray) -> float:
  """The typical difference of distance^2 between the nearest and the furthest neighbour, not 0."""
  return float(np.median(distances_QxK[:, -1] - distances_QxK[:, 0])) or 1.0


def tune(log_p_Q: np.ndarray, distances_QxK: np.ndarray, is_target_QxK: np.ndarray) -> Setting:
  """The setting with the lowest loss on these queries; of equal ones, the one with the least."""
  best: tuple[float, Setting] | None = None
  typical = spread(distances_QxK)
  numbers = sorted({min(k, distances_QxK.shape[1]) for k in NUMBERS})
  for factor in _TEMPERATURES:
    temperature = float(f'{factor * typical:.{_DIGITS}g}')
    for k in numbers:
      log_knn = log_p_knn(distances_QxK, is_target_QxK, k, temperature)
      for weight in WEIGHTS:
        found = float(-mixed(log_p_Q, log_knn, weight).mean())
        if best is None or found < best[0]:
          best = found, Setting(k, temperature, weight)
  return best[1]
