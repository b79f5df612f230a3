"""Residual connections, compared with the formulas of their papers in NumPy's float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from stability.model.residuals import RESIDUALS, SKIPS
from stability.model.transformer import Transformer

rng = np.random.default_rng(0)
X, START = rng.normal(size=(2, 2, 3, 8))
KERNELS = dict(zip(('attention', 'mlp'), rng.normal(size=(2, 8, 8))))
DEPTH = 6


class Stream(nn.Module):
  """A block whose layers are linear."""

  c: ml_collections.ConfigDict
  index: int

  @nn.compact
  def __call__(self, x, start):
    skip = SKIPS[self.c.embedding_skip].make
    if skip is not None:
      x = skip(self, x, start)
    residual = RESIDUALS[self.c.norm_position].make.make(self)
    for name, kernel in KERNELS.items():
      x = residual(name, x, lambda x, kernel=kernel: x @ kernel)
    return x


def run(index, position='pre', skip='none'):
  """The parameters of a block, all of which are moved from their start, and its output."""
  fields = {'norm_position': position, 'embedding_skip': skip, 'norm': 'layernorm'}
  c = ml_collections.FrozenConfigDict(fields | {'dtype': 'float32', 'depth': DEPTH})
  block = Stream(c, index)

  @jax.jit
  def apply(x, start):
    params = block.init(jax.random.key(0), x, start)['params']
    moved = jax.tree.map(lambda p: p + 0.5 + jnp.arange(p.size).reshape(p.shape) / 10, params)
    return params, moved, block.apply({'params': moved}, x, start)

  return jax.device_get(apply(X, START))


def norm(x, scale):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6) * scale


SCALE = 1.5 + np.arange(8) / 10  # of every norm in `run`
GAIN = 0.5  # of every scalar, which starts at 0


@pytest.mark.parametrize(
    'position, index, formula',
    [
        ('pre', 3, lambda x, f: x + f(norm(x, SCALE))),
        ('pre_scaled', 0, lambda x, f: x + f(norm(x, SCALE))),
        ('pre_scaled', 3, lambda x, f: x + f(norm(x, SCALE) / np.sqrt(4))),
        ('peri', 3, lambda x, f: x + norm(f(norm(x, SCALE)), SCALE)),
        ('post', 3, lambda x, f: norm(x + f(x), SCALE)),
        ('deepnorm', 3, lambda x, f: norm((2 * DEPTH) ** 0.25 * x + f(x), SCALE)),
        ('rezero', 3, lambda x, f: x + GAIN * f(x)),
    ],
)
def test_formula(position, index, formula):
  _, _, found = run(index, position)
  expected = X
  for kernel in KERNELS.values():
    expected = formula(expected, lambda x, kernel=kernel: x @ kernel)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_pre_norm_of_the_mlp_alone():
  _, _, found = run(3, 'pre_mlp')
  x = X + X @ KERNELS['attention']
  expected = x + norm(x, SCALE) @ KERNELS['mlp']
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_rezero_starts_as_the_identity():
  """One gain for both layers, at first 0, and no norm."""
  start, _, _ = run(0, 'rezero')
  assert start == {'residual_gain': 0}


def test_embedding_skip():
  """The block reads a x + b start, where a starts at 1 and moves 100 times more slowly than b."""
  start, moved, found = run(0, 'rezero', 'learned')
  assert moved == {'residual_gain': 0.5, 'skip_stream': 0.5, 'skip_start': 0.5}
  assert start == dict.fromkeys(moved, 0)
  expected = 1.005 * X + 0.5 * START
  for kernel in KERNELS.values():
    expected = expected + 0.5 * expected @ kernel
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_embedding_skip_in_bfloat16():
  """Small changes of the factor of the stream act, though 1.002 is no bfloat16 number."""

  class Skip(nn.Module):
    @nn.compact
    def __call__(self, x):
      return SKIPS['learned'].make(self, x, x)

  x = jnp.linspace(1, 2, 1000, dtype=jnp.bfloat16)[None]
  params = {'skip_stream': jnp.float32(0.2), 'skip_start': jnp.float32(0)}
  found = Skip().apply({'params': params}, x)
  assert found.dtype == jnp.bfloat16
  expected = (np.float64(1.002) * np.asarray(x, np.float32)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(found, expected)
  assert (found != x).any()


@pytest.mark.parametrize('position', RESIDUALS)
def test_final_norm(tiny, position):
  """If a block ends with a norm, there is none before the head."""
  run = tiny({'model.norm_position': position})
  tokens = jnp.zeros((1, 4), jnp.int32)
  network = Transformer(run.static.model, 64)
  params = jax.eval_shape(network.init, jax.random.key(0), tokens, run.hparams)['params']
  assert ('final_norm' in params) == (position not in ('post', 'deepnorm', 'ngpt'))
