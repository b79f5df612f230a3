"""Reparametrised kernels, compared with their definitions."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.extend import core as jax_core

from stability.model import kernels
from stability.model.kernels import CARRIED, SigmaReparam
from stability.model.transformer import Transformer
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


@pytest.mark.parametrize('shape', [(6, 20), (20, 6), (9, 9), (1, 4), (4, 1)])
def test_vector_starts_as_a_singular_vector(shape):
  """Up to its sign, that of NumPy's decomposition; no array on the way exceeds the kernel."""
  kernel = np.random.default_rng(3).normal(size=shape).astype(np.float32)
  init = functools.partial(SigmaReparam().init, jax.random.key(0))
  found = np.asarray(init(kernel)[CARRIED]['u'])
  expected = np.linalg.svd(np.float64(kernel))[0][:, 0]
  np.testing.assert_allclose(found * np.sign(found @ expected), expected, atol=1e-5)
  assert max(sizes(jax.make_jaxpr(init)(kernel).jaxpr)) <= kernel.size


def sizes(jaxpr):
  """The sizes of the arrays that a program computes, in its inner programs too."""
  for equation in jaxpr.eqns:
    yield from (out.aval.size for out in equation.outvars)
    for inner in jax_core.jaxprs_in_params(equation.params):
      yield from sizes(inner)


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


@pytest.mark.slow
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


def test_multipliers(kernel):
  """Row i and column j are multiplied by numbers of their own, at first by 1."""
  module = kernels.Multipliers()
  start = module.init(jax.random.key(0), kernel)
  np.testing.assert_array_equal(module.apply(start, kernel), kernel)
  rows, columns = np.arange(1.0, 13), np.arange(1.0, 8)
  params = {'row': np.float32(rows), 'column': np.float32(columns)}
  expected = np.diag(rows) @ np.float64(kernel) @ np.diag(columns)
  np.testing.assert_allclose(module.apply({'params': params}, kernel), expected, rtol=1e-6)


class Layers(nn.Module):
  """Two kernels of different fan-in."""

  c: ml_collections.ConfigDict

  @nn.compact
  def __call__(self):
    return [kernels.kernel(self, name, shape) for name, shape in SHAPES.items()]


SHAPES = {'up': (8, 32), 'down': (32, 8)}


def test_wesar():
  """All parameters start with a variance of 4e-5, the kernels as without WeSaR."""
  found = {}
  for name in ('plain', 'wesar'):
    layers = Layers(ml_collections.FrozenConfigDict({'kernel': name}))
    params = layers.init(jax.random.key(0))
    found[name] = params['params'], layers.apply(params)
  (plain, _), (params, computed) = found['plain'], found['wesar']
  for (name, shape), kernel in zip(SHAPES.items(), computed, strict=True):
    np.testing.assert_allclose(kernel, plain[name], rtol=1e-6)
    assert np.square(params[name]).mean() == pytest.approx(4e-5, rel=0.2)
    assert params[f'{name}_reparam']['gain'] == pytest.approx(shape[0] ** -0.5 / 4e-5**0.5)


@pytest.mark.parametrize('head', ['linear', 'tied'])
def test_wesar_of_a_model(tiny, head):
  """It covers embedding, gate and head as well, and at first computes what the plain model does."""
  logits, params = {}, {}
  for form in ('plain', 'wesar'):
    options = {'model.kernel': form, 'model.head': head, 'model.attention_gate': 'sigmoid'}
    run = tiny(options)
    model = Transformer(run.static.model, 64)
    tokens = np.arange(12).reshape(2, 6)
    variables = model.init(jax.random.key(0), tokens, run.hparams)
    params[form] = flax.traverse_util.flatten_dict(variables['params'])
    logits[form] = model.apply(variables, tokens, run.hparams)
  np.testing.assert_allclose(logits['wesar'], logits['plain'], rtol=1e-4, atol=1e-5)
  matrices = [path for path, p in params['wesar'].items() if p.ndim == 2]
  assert matrices == [path for path, p in params['plain'].items() if p.ndim == 2]
  for path in matrices:
    p = params['wesar'][path]
    assert np.square(p).mean() == pytest.approx(4e-5, rel=0.3), path
    gain = params['wesar'][(*path[:-1], f'{path[-1]}_reparam', 'gain')]
    np.testing.assert_allclose(gain * p, params['plain'][path], rtol=1e-5)
