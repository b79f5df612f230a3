"""Variants of blocks, embedding and head: what defines each of them."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from stability.model import transformer as transformer_lib
from stability.model.mlp import MLPS
from stability.step import objective as objective_lib

V, T, D = 64, 8, 16
TOKENS = np.random.default_rng(0).integers(0, V, (2, T), np.int32)
# Optimization takes most of the compile time and does not change the results.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module')
def small(tiny):
  return lambda overrides: tiny({'model.width': D, 'model.head_dim': 8} | overrides)


def network(run):
  return transformer_lib.Transformer(run.static.model, V)


def initial(run):
  return compiled(network(run).init)(jax.random.key(0), TOKENS, run.hparams)['params']


def outputs(run, params):
  """The logits and the output of every module, by path."""

  def apply(params):
    logits, found = network(run).apply(
        {'params': params},
        TOKENS,
        run.hparams,
        capture_intermediates=True,
        mutable=['intermediates'],
    )
    return logits, found['intermediates']

  logits, found = compiled(apply)(params)
  flat = traverse_util.flatten_dict(found, sep='/')
  return logits, {path.removesuffix('/__call__'): value for path, (value,) in flat.items()}


@pytest.mark.parametrize('norm_position', ['pre', 'peri'])
def test_parallel_block(small, norm_position):
  """A block computes x + attention(norm(x)) + MLP(norm(x)), with one norm."""
  run = small({'model.block': 'parallel', 'model.norm_position': norm_position})
  params = initial(run)
  norms = {'block_norm', 'block_output_norm'} if norm_position == 'peri' else {'block_norm'}
  assert params['block_0'].keys() == {'attention', 'mlp'} | norms
  _, found = outputs(run, params)
  read, mlp_out = found['block_0/block_norm'], found['block_0/mlp']
  attention_out, _ = found['block_0/attention']
  mlp = MLPS['gelu'].make(run.static.model)
  expected = mlp.apply({'params': params['block_0']['mlp']}, read, run.hparams)
  np.testing.assert_allclose(mlp_out, expected, rtol=1e-5, atol=1e-6)
  added = attention_out + mlp_out
  if norm_position == 'peri':
    added = (added - added.mean(-1, keepdims=True)) / added.std(-1, keepdims=True)
  stream, _ = found['block_0']
  np.testing.assert_allclose(stream, params['embedding'][TOKENS] + added, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_value_residual_reaches_later_blocks(small):
  """Values of the first block act in the second one, though the first adds nothing itself."""
  run = small({'model.value_residual': 'learned', 'model.depth': 2})
  params = initial(run)
  params['block_0']['attention']['output'] = np.zeros((D, D), np.float32)
  params['block_1']['attention']['value_residual'] = np.float32([1, 0])

  def total(params):
    logits = network(run).apply({'params': params}, TOKENS, run.hparams)
    return objective_lib.cross_entropy(logits, TOKENS)

  gradients = compiled(jax.grad(total))(params)
  assert np.abs(gradients['block_0']['attention']['value']).max() > 1e-5
  assert np.abs(gradients['block_1']['attention']['value']).max() == 0


@pytest.mark.slow
def test_tied_head(small):
  """The head is the transposed embedding, which gets the sum of both gradients."""
  untied, tied = small({}), small({'model.head': 'tied'})
  params = initial(tied)
  start = initial(untied)
  with_head = params | {'head': params['embedding'].T}
  assert start.keys() - params.keys() == {'head'}
  for path, value in traverse_util.flatten_dict(params).items():  # the same start
    np.testing.assert_array_equal(value, traverse_util.flatten_dict(start)[path])

  def gradients(run, params):
    def total(params):
      logits = network(run).apply({'params': params}, TOKENS, run.hparams)
      return objective_lib.cross_entropy(logits, TOKENS), logits

    return compiled(jax.grad(total, has_aux=True))(params)

  found, logits = gradients(tied, params)
  expected, expected_logits = gradients(untied, with_head)
  np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-6)
  both = expected['embedding'] + expected['head'].T
  np.testing.assert_allclose(found['embedding'], both, rtol=1e-4, atol=1e-7)


class Embedding(nn.Module):
  c: object
  vocabulary_size: int

  @nn.compact
  def __call__(self, tokens):
    return transformer_lib.EMBEDDINGS[self.c.embedding].make(self, tokens, {})


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_embeddings(small, dtype):
  table = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32) * np.arange(V)[:, None]
  rms = np.sqrt(np.mean(np.float64(table) ** 2, -1, keepdims=True) + 1e-6)
  expected = {'learned': table, 'scaled': 4 * table, 'rmsnorm': table / rms}
  for name, vectors in expected.items():
    run = small({'model.embedding': name, 'model.dtype': dtype})
    found = Embedding(run.static.model, V).apply({'params': {'embedding': table}}, TOKENS)
    assert found.dtype == dtype
    rtol = 1e-5 if dtype == 'float32' else 2**-8
    np.testing.assert_allclose(np.float32(found), vectors[TOKENS], rtol=rtol, atol=1e-9)
