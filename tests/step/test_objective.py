"""Cross-entropy, z-loss and mu-loss, compared with NumPy in float64."""

import jax
import ml_collections
import numpy as np
import pytest
from scipy import special

from stability.step import objective as objective_lib

RNG = np.random.default_rng(0)
LOGITS = np.float32(3 * RNG.normal(size=(2, 5, 11)))
TARGETS = RNG.integers(0, 11, (2, 5))
LOG_Z = special.logsumexp(LOGITS.astype(np.float64), axis=-1)
SOFTMAX = special.softmax(LOGITS.astype(np.float64), axis=-1)
HEAD = np.float32(0.3 + RNG.normal(size=(7, 11)))
TARGET_LOGITS = np.take_along_axis(LOGITS, TARGETS[..., None], axis=-1)[..., 0]


def objective(logits, z_loss=0.0, mu_loss=0.0, head=HEAD, **weights):
  hparams = {'objective.z_loss': np.float32(z_loss), 'objective.mu_loss': np.float32(mu_loss)}
  others = {'balance_loss': False, 'router_z_loss': False}
  static = ml_collections.FrozenConfigDict({'objective': {'mu_loss': mu_loss > 0} | others})
  return objective_lib.objective(static, hparams, logits, TARGETS, {'head': head, **weights}, {})


@pytest.mark.parametrize('z_loss', [0.0, 1e-4, 0.5])
def test_terms(z_loss):
  """The loss excludes z-loss, which is a separate term; the objective is their sum."""
  value, metrics = objective(LOGITS, z_loss)
  loss, z_term = np.mean(LOG_Z - TARGET_LOGITS), z_loss * np.mean(LOG_Z**2)
  assert metrics.keys() == {'loss', 'z_loss'}
  assert float(metrics['loss']) == pytest.approx(loss, rel=1e-6)
  assert float(metrics['z_loss']) == pytest.approx(z_term, rel=1e-6)
  assert float(value) == pytest.approx(loss + z_term, rel=1e-6)


def test_cross_entropy_is_the_loss():
  value = objective_lib.cross_entropy(LOGITS, TARGETS)
  assert float(value) == pytest.approx(np.mean(LOG_Z - TARGET_LOGITS), rel=1e-6)


@pytest.mark.parametrize('z_loss', [0.0, 0.5])
def test_gradient(z_loss):
  """(softmax - one-hot) / positions, and 2 z_loss log Z softmax / positions."""
  gradient = jax.grad(lambda logits: objective(logits, z_loss)[0])(LOGITS)
  expected = SOFTMAX - np.eye(11)[TARGETS] + 2 * z_loss * LOG_Z[..., None] * SOFTMAX
  np.testing.assert_allclose(gradient, expected / TARGETS.size, rtol=1e-5, atol=1e-7)


def test_large_logits_do_not_overflow():
  """Shifted logits have the same loss and a larger log Z; the paper's runs diverge at 1e4."""
  _, metrics = objective(LOGITS + np.float32(1e4), z_loss=1)
  # float32 has steps of 1e-3 there.
  assert float(metrics['loss']) == pytest.approx(np.mean(LOG_Z - TARGET_LOGITS), abs=2e-3)
  assert float(metrics['z_loss']) == pytest.approx(np.mean((LOG_Z + 1e4) ** 2), rel=1e-6)


def test_mu_loss():
  """The squared norm of the mean of the eleven embeddings; the gradient is equal for all."""
  mean = HEAD.astype(np.float64).sum(1) / 11
  value, metrics = objective(LOGITS, mu_loss=0.5)
  assert metrics.keys() == {'loss', 'z_loss', 'mu_loss'}
  assert float(metrics['mu_loss']) == pytest.approx(0.5 * np.linalg.norm(mean) ** 2, rel=1e-6)
  assert float(value) == pytest.approx(float(metrics['loss'] + metrics['mu_loss']), rel=1e-6)
  gradient = jax.grad(lambda head: objective(LOGITS, mu_loss=0.5, head=head)[0])(HEAD)
  np.testing.assert_allclose(gradient, np.tile(mean / 11, (11, 1)).T, rtol=1e-5)


def test_mu_loss_of_a_head_with_a_gain():
  """Of the matrix that the logits are computed with (WeSaR)."""
  _, plain = objective(LOGITS, mu_loss=0.5)
  gain = {'gain': np.float32(3)}
  _, found = objective(LOGITS, mu_loss=0.5, head=HEAD / 3, head_reparam=gain)
  assert float(found['mu_loss']) == pytest.approx(float(plain['mu_loss']), rel=1e-5)


def test_losses_of_routers():
  """The mean over the blocks that have a router, times the coefficient; 0 without blocks."""
  losses = {
      f'block_{i}': {'mlp': {'balance_loss': (balance,), 'router_z_loss': (z,)}}
      for i, (balance, z) in enumerate([(1.0, 4.0), (2.0, 16.0)])
  }
  names = ('mu_loss', 'balance_loss', 'router_z_loss')
  hparams = {f'objective.{name}': np.float32(0.5) for name in (*names, 'z_loss')}
  static = ml_collections.FrozenConfigDict({
      'objective': {'mu_loss': False, 'balance_loss': True, 'router_z_loss': True}
  })
  for sown, expected in ((losses, (0.75, 5.0)), ({}, (0.0, 0.0))):
    total, terms = objective_lib.objective(
        static, hparams, LOGITS, TARGETS, {'head': HEAD}, sown
    )
    assert (float(terms['balance_loss']), float(terms['router_z_loss'])) == expected
    assert float(total) == pytest.approx(
        float(terms['loss']) + float(terms['z_loss']) + sum(expected), rel=1e-6
    )
