"""The mixture of a model with its neighbours, against sums over all keys."""

import math

import numpy as np
import pytest

from stability.retrieval import knn
from stability.retrieval.knn import Setting


@pytest.fixture(scope='module')
def case():
  """Sorted distances, targets and log-probabilities of 60 queries with 20 neighbours."""
  rng = np.random.default_rng(0)
  distances = np.sort(rng.gamma(3, 2, (60, 20)), axis=1).astype(np.float32)
  log_p = np.log(rng.uniform(0.05, 0.6, 60)).astype(np.float32)
  return log_p, distances, rng.random((60, 20)) < np.exp(-distances / 8)


def direct(case, setting):
  """The loss from the definition, a query and a neighbour at a time."""
  losses = []
  for log_p, distances, is_target in zip(*case, strict=True):
    total = hit = 0.0
    for distance, match in list(zip(distances, is_target, strict=True))[: setting.k]:
      share = math.exp(-float(distance) / setting.temperature)
      total += share
      hit += share * match
    p = setting.weight * hit / total + (1 - setting.weight) * math.exp(log_p)
    losses.append(-math.log(p))
  return sum(losses) / len(losses)


@pytest.mark.parametrize(
    'setting', [Setting(1, 1.0, 0.25), Setting(7, 0.4, 0.9), Setting(20, 30.0, 0.5)]
)
def test_loss(case, setting):
  assert knn.loss(*case, setting) == pytest.approx(direct(case, setting), rel=1e-6)


def test_weight_of_zero_is_the_model_alone(case):
  assert knn.loss(*case, Setting(20, 1.0, 0.0)) == pytest.approx(-case[0].mean(), rel=1e-7)


def test_far_neighbours_do_not_underflow(case):
  log_p, distances, is_target = case
  far = distances + np.float32(1e5)
  setting = Setting(20, 2.0, 0.5)
  assert knn.loss(log_p, far, is_target, setting) == pytest.approx(
      knn.loss(log_p, distances, is_target, setting), rel=1e-2
  )


def test_tuned_setting_is_the_best_of_the_grid(case):
  found = knn.tune(*case)
  assert 0 < found.weight < 1
  spread = np.median(case[1][:, -1] - case[1][:, 0])
  for k in (1, 4, 16, 20):
    for power in range(-5, 3):
      for weight in (0.0, 0.05, 0.3, 0.5, 0.7, 0.95):
        other = Setting(k, 2.0**power * spread, weight)
        assert direct(case, found) <= direct(case, other) + 1e-3


def test_neighbours_that_never_help_have_no_weight(case):
  log_p, distances, is_target = case
  assert knn.tune(log_p, distances, np.zeros_like(is_target)).weight == 0


def test_spread():
  distances = np.float32([[0.0, 1.0, 4.0], [1.0, 1.0, 3.0]])
  assert knn.spread(distances) == 3 and knn.spread(distances[:, :1]) == 1


def test_equal_distances_have_a_temperature():
  found = knn.tune(np.float32([-1, -1]), np.ones((2, 3), np.float32), np.ones((2, 3), bool))
  assert found.temperature > 0 and found.weight == max(knn.WEIGHTS)
