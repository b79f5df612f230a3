"""Simulated FP8, compared with products of ml_dtypes' numbers in NumPy's float64."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from stability.model import attention, mlp, products
from stability.model.rounding import E4M3, E5M2
from stability.model.transformer import Transformer


def rounded(x, form):
  """X as FP8 represents it, with one scale."""
  scale = form.largest / np.abs(x).max()
  scaled = np.clip(np.float32(x) * np.float32(scale), -form.largest, form.largest)
  dtype = {E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}[form]
  return scaled.astype(dtype).astype(np.float64) / scale


@pytest.fixture
def factors():
  rng = np.random.default_rng(0)
  return [np.float32(scale * rng.normal(size=(16, 16))) for scale in (1e4, 1e-3, 1e-6)]


def test_product_and_gradients(factors):
  """Factors are in e4m3, the gradient of the product in e5m2, for any size of the numbers."""
  x, kernel, gradient = factors
  found, pull_back = jax.vjp(products.fp8_dot, x, kernel)
  x8, kernel8 = rounded(x, E4M3), rounded(kernel, E4M3)
  gradient8 = rounded(gradient, E5M2)

  def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

  close(found, x8 @ kernel8)
  for one, expected in zip(pull_back(gradient), (gradient8 @ kernel8.T, x8.T @ gradient8)):
    close(one, expected)
  exact = np.float64(x) @ kernel
  assert 1e-3 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.1


def test_zeros():
  zeros = jnp.zeros((2, 2))
  found, pull_back = jax.vjp(products.fp8_dot, zeros, zeros)
  assert not np.any(found) and not np.any(pull_back(zeros))


def test_second_derivative(factors):
  """Rounding is straight-through in the Hessian as well, which sharpness needs."""
  x, kernel, _ = factors

  def gradient(kernel):
    return jax.grad(lambda k: jnp.sum(jnp.square(products.fp8_dot(x, k))) / 2)(kernel)

  direction = np.random.default_rng(1).normal(size=kernel.shape).astype(np.float32)
  found = jax.jvp(gradient, (kernel,), (direction,))[1]
  expected = np.float64(x).T @ (np.float64(x) @ direction)
  assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    'overrides',
    [
        {},
        *({'model.mlp': name} for name in mlp.MLPS if name != 'gelu'),
        *({'model.attention_gate': name} for name in attention.GATES if name != 'none'),
    ],
    ids=str,
)
def test_every_linear_layer_of_a_block_is_fp8(tiny, overrides):
  """With FP8, a block has no product of two matrices but those of FP8."""
  run = tiny(overrides | {'model.linear_precision': 'fp8'})
  tokens = jnp.zeros((2, 8), jnp.int32)
  network = Transformer(run.static.model, 64)
  params = jax.eval_shape(network.init, jax.random.key(0), tokens, run.hparams)
  apply = functools.partial(network.apply, hparams=run.hparams)
  jaxpr = jax.make_jaxpr(lambda p: apply(p, tokens))(params).jaxpr
  plain = [e for e in jaxpr.eqns if e.primitive.name == 'dot_general']
  of_matrices = [e for e in plain if all(v.aval.ndim == 2 for v in e.invars)]
  assert len(of_matrices) == 1  # the head's
  assert any(e.primitive.name == 'custom_vjp_call' for e in jaxpr.eqns)
