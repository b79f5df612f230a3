import math

import numpy as np
import pytest

from stability.data import synthetic


def binary_entropy(p: float) -> float:
  return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize('a, b', [(0.5, 0.5), (0.1, 0.3), (0.01, 0.9)])
def test_two_state_chain(a, b):
  transition = np.array([[1 - a, a], [b, 1 - b]])
  np.testing.assert_allclose(synthetic.stationary(transition), [b / (a + b), a / (a + b)])
  rate = (b * binary_entropy(a) + a * binary_entropy(b)) / (a + b)
  assert synthetic.entropy_rate(transition) == pytest.approx(rate, rel=1e-12)


def test_entropy_rate_limits():
  assert synthetic.entropy_rate(np.roll(np.eye(5), 1, axis=1)) == pytest.approx(0, abs=1e-12)
  assert synthetic.entropy_rate(np.full((64, 64), 1 / 64)) == pytest.approx(math.log(64))


def test_language_is_ergodic_and_learnable():
  transition = synthetic.transition_matrix()
  assert transition.shape == (64, 64) and transition.min() > 0
  np.testing.assert_allclose(transition.sum(axis=1), 1)
  law = synthetic.stationary(transition)
  np.testing.assert_allclose(law @ transition, law, atol=1e-15)
  assert 1 < synthetic.entropy_rate(transition) < 0.7 * -(law @ np.log(law))
  np.testing.assert_array_equal(transition, synthetic.transition_matrix())


def test_sample_follows_the_chain():
  transition = np.random.default_rng(0).dirichlet(np.ones(8), size=8)
  text = synthetic.sample(transition, 200_000, seed=0)
  counts = np.zeros((8, 8))
  np.add.at(counts, (text[:-1], text[1:]), 1)
  firsts = counts.sum(1, keepdims=True)
  law = synthetic.stationary(transition)
  np.testing.assert_allclose(firsts[:, 0] / counts.sum(), law, atol=0.01)
  np.testing.assert_allclose(counts / firsts, transition, atol=0.015)
  observed = counts > 0
  empirical = -(counts[observed] * np.log((counts / firsts)[observed])).sum() / counts.sum()
  assert empirical == pytest.approx(synthetic.entropy_rate(transition), abs=0.005)


def test_first_symbol_is_stationary():
  transition = np.array([[0.99, 0.01], [0.09, 0.91]])  # stationary: 0.9, 0.1
  firsts = [synthetic.sample(transition, 1, seed)[0] for seed in range(2000)]
  assert np.mean(firsts) == pytest.approx(0.1, abs=0.03)


def test_impossible_transitions_never_occur():
  assert synthetic.sample(np.roll(np.eye(3), 1, axis=1), 7, seed=0).tolist() in (
      [0, 1, 2, 0, 1, 2, 0],
      [1, 2, 0, 1, 2, 0, 1],
      [2, 0, 1, 2, 0, 1, 2],
  )


def test_sample_is_deterministic():
  transition = synthetic.transition_matrix()
  one = synthetic.sample(transition, 1000, seed=0)
  np.testing.assert_array_equal(one, synthetic.sample(transition, 1000, seed=0))
  assert not np.array_equal(one, synthetic.sample(transition, 1000, seed=1))
