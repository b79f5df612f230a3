"""sigmaReparam, compared with its definition: spectral norms, gradients, carried vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.model.kernels import CARRIED, SigmaReparam
from stability.step import train_step


@pytest.fixture(scope='module')
def kernel():
  return np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)


@pytest.fixture(scope='module')
def variables(kernel):
  return SigmaReparam().init(jax.random.key(0), kernel)


def test_spectral_norm_is_the_gain(kernel, variables):
  """The vector starts as a singular vector of the kernel, from an exact decomposition."""
  for gain in (1.0, 0.3):
    params = {'gain': jnp.float32(gain)}
    found = SigmaReparam().apply(variables | {'params': params}, kernel)
    assert np.linalg.norm(found, 2) == pytest.approx(gain, rel=1e-5)
    np.testing.assert_allclose(found, gain * kernel / np.linalg.norm(kernel, 2), rtol=1e-5)


def test_vector_follows_a_changing_kernel(variables):
  """Power iteration, one step per forward pass, finds the spectral norm of another kernel."""
  rng = np.random.default_rng(1)
  other = (rng.normal(size=(12, 1)) @ rng.normal(size=(1, 7)) + 0.3 * rng.normal(size=(12, 7)))
  other = other.astype(np.float32)
  norms = []
  for _ in range(20):
    found, new = SigmaReparam().apply(variables, other, mutable=[CARRIED])
    variables = variables | new
    norms.append(np.linalg.norm(found, 2))
  assert norms[0] > 1.001 and norms[-1] == pytest.approx(1, rel=1e-5)
  assert np.linalg.norm(variables[CARRIED]['u']) == pytest.approx(1, rel=1e-6)


def test_gradient_passes_through_sigma(kernel, variables):
  """Compared with finite differences of u' W v with fixed vectors, in float64 NumPy."""
  weights = np.random.default_rng(2).normal(size=kernel.shape)
  u = np.float64(variables[CARRIED]['u'])
  v = kernel.T @ u
  v /= np.linalg.norm(v)
  u = kernel @ v
  u /= np.linalg.norm(u)

  def total(kernel):
    return np.sum(weights * kernel / (u @ kernel @ v))

  found = jax.grad(lambda k: jnp.sum(weights * SigmaReparam().apply(variables, k)))(kernel)
  for i, j in [(0, 0), (3, 5), (11, 6)]:
    step = np.zeros(kernel.shape)
    step[i, j] = 1e-6
    slope = (total(np.float64(kernel) + step) - total(np.float64(kernel) - step)) / 2e-6
    assert found[i, j] == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_only_training_updates_the_vectors(tiny, text):
  run = tiny({'model.kernel': 'sigma_reparam', 'optimizer.learning_rate': 0.1})
  programs = train_step.programs(run.static, 64)
  state = jax.jit(programs.init)(run.hparams)
  vectors = jax.tree.leaves(state['carried'])
  assert len(vectors) == 6  # of the six kernels of a block
  new, _ = jax.jit(programs.steps['quiet'])({'text': text['text']}, state)
  newer, _ = jax.jit(programs.steps['quiet'])({'text': text['text']}, new)
  moved = [not np.array_equal(a, b) for a, b in
           zip(jax.tree.leaves(new['carried']), jax.tree.leaves(newer['carried']))]  # fmt: skip
  assert all(moved)
  plain = jax.jit(train_step.programs(tiny().static, 64).init)(run.hparams)
  for path in (('head',), ('block_0', 'attention', 'output')):  # the same draws as without
    ours, theirs = (functools.reduce(dict.get, path, s['params']) for s in (state, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)  # another program rounds differently
