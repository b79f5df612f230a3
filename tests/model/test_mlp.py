"""The variants of the MLP, compared with NumPy in float64."""

import functools

import jax
import numpy as np
import pytest
from scipy import special

from stability.model import mlp
from stability.model.measure import ACTIVATIONS

X = np.float32(np.random.default_rng(0).normal(size=(2, 3, 16)))


def run_mlp(run):
  """The output of an MLP on X, the RMS of its hidden layer, and its kernels in float64."""
  module = mlp.MLPS[run.static.model.mlp].make(run.static.model)
  params = module.init(jax.random.key(0), X, run.hparams)['params']
  apply = functools.partial(module.apply, mutable=[ACTIVATIONS])
  out, sown = apply({'params': params}, X, run.hparams)
  hidden_rms = float(sown[ACTIVATIONS]['hidden'][0].value)
  return np.asarray(out), hidden_rms, {name: np.float64(p) for name, p in params.items()}


def silu(x):
  return x * special.expit(x)


HIDDEN = {
    'relu2': lambda p: np.maximum(X @ p['up'], 0) ** 2,
    'swiglu': lambda p: silu(X @ p['gate']) * (X @ p['up']),
}


@pytest.mark.parametrize('name', HIDDEN)
def test_against_numpy(tiny, name):
  out, hidden_rms, params = run_mlp(tiny({'model.mlp': name, 'model.width': 16}))
  hidden = HIDDEN[name](params)
  assert hidden_rms == pytest.approx(np.sqrt(np.mean(hidden**2)), rel=1e-5)
  np.testing.assert_allclose(out, hidden @ params['down'], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'width', 'mlp_width', 'expected'),
    [
        ('gelu', 16, 0, 64),
        ('relu2', 16, 0, 64),
        ('swiglu', 16, 0, 40),  # 8/3 * 16 = 42.7
        ('swiglu', 64, 0, 168),  # 170.7
        ('swiglu', 1024, 0, 2728),  # 2730.7
        ('swiglu', 2, 0, 8),
        ('gelu', 16, 24, 24),
        ('swiglu', 16, 24, 24),
    ],
)
def test_hidden_width(tiny, name, width, mlp_width, expected):
  run = tiny({
      'model.mlp': name,
      'model.width': width,
      'model.head_dim': 2,
      'model.mlp_width': mlp_width,
  })
  module = mlp.MLPS[name].make(run.static.model)
  x = jax.ShapeDtypeStruct((1, 1, width), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, run.hparams)['params']
  matrices = {'up', 'down', 'gate'} if name == 'swiglu' else {'up', 'down'}
  assert shapes.keys() == matrices
  assert {shapes[m].shape for m in matrices - {'down'}} == {(width, expected)}
  assert shapes['down'].shape == (expected, width)
