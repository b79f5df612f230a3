"""nGPT, compared with its definition in NumPy's float64, written from github.com/NVIDIA/ngpt."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from stability.errors import BadInput
from stability.model import ngpt
from stability.model.initialisation import INITIALISATION
from stability.model.parameterization import PARAMETERIZATIONS
from stability.model.transformer import Transformer
from stability.optim.after_update import AFTER_UPDATE
from stability.step import train_step

OPTIONS = {f'model.{part}': 'ngpt' for part in ('norm_position', 'qk_norm', 'mlp', 'head')}
OPTIONS |= {'model.width': 16, 'model.head_dim': 8, 'optimizer.weight_decay': 0.0}
D, K, T = 16, 8, 5


def unit(x, axis=-1):
  return x / np.linalg.norm(x, axis=axis, keepdims=True)


def rotated(x):
  """RoPE of [T, K]: pairs (i, i + K/2) as complex numbers."""
  turn = np.exp(1j * np.arange(T)[:, None] * 10_000.0 ** (-np.arange(K // 2) / (K // 2)))
  z = (x[:, : K // 2] + 1j * x[:, K // 2 :]) * turn
  return np.concatenate([z.real, z.imag], -1)


def forward(params, tokens):
  """Logits [T, V] of a sequence in a model of one block.

  Scales are stored times 1 / sqrt(D), but that of the MLP (suv_init_scaling = 1).
  """
  block, root = params['block_0'], np.sqrt(D)
  attention, mlp = block['attention'], block['mlp']
  h = params['embedding'][tokens]
  heads = []
  for head in np.split(np.arange(D), D // K):
    scale = attention['qk_scale'][head] * root
    q, k, v = (h @ attention[name][:, head] for name in ('query', 'key', 'value'))
    q, k = (scale * unit(rotated(y)) for y in (q, k))
    logits = np.where(np.tril(np.ones((T, T), bool)), np.sqrt(K) * q @ k.T, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    heads.append(weights / weights.sum(-1, keepdims=True) @ v)

  def move(h, out, rate):
    rate = np.abs(rate * 0.05 * root)
    return unit(unit(h) + rate * (unit(out) - unit(h)))

  h = move(h, np.concatenate(heads, -1) @ attention['output'], block['attention_rate'])
  u = h @ mlp['up'] * mlp['hidden_scale'] * root
  gelu = u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
  h = move(h, gelu @ mlp['down'], block['mlp_rate'])
  return h @ params['head'] * (params['logit_scale'] * root)


@pytest.fixture(scope='module')
def run(tiny):
  return tiny(OPTIONS)


@pytest.fixture(scope='module')
def start(run):
  init = jax.jit(train_step.programs(run.static, 64).init)
  return init(run.hparams)['params']


def test_logits(run, start):
  rng = np.random.default_rng(0)
  flat = traverse_util.flatten_dict(jax.device_get(start))
  for path, p in flat.items():
    if p.ndim < 2:
      stored = 1 if path[-1] == 'hidden_scale' else D**-0.5
      np.testing.assert_allclose(p, stored, rtol=1e-6)
      flat[path] = np.float32(p * rng.uniform(-2, 2, p.shape))
    if path[-1] == 'qk_scale':  # equal in the pairs that RoPE rotates, so that the order is free
      flat[path] = np.tile(flat[path].reshape(2, 2, K // 2)[:, :1], (1, 2, 1)).ravel()
  params = traverse_util.unflatten_dict(flat)
  tokens = rng.integers(0, 64, T)
  network = Transformer(run.static.model, 64)
  found = jax.jit(network.apply)({'params': params}, tokens[None], run.hparams)[0]
  exact = jax.tree.map(np.float64, params)
  np.testing.assert_allclose(found, forward(exact, tokens), rtol=1e-4, atol=1e-5)


def test_vectors_of_matrices_have_unit_norm(run, start):
  """At the start and after an update: vectors of length D, along the residual stream."""
  rng = np.random.default_rng(0)
  moved = jax.tree.map(lambda p: p + np.float32(rng.normal(size=p.shape)), start)
  for term in AFTER_UPDATE.active(run.static):
    moved = term.make(moved, None)
  for params in (start, moved):
    check_vectors(params)


def check_vectors(params):
  axes = {'embedding': 1, 'head': 0, 'block_0/attention/output': 1, 'block_0/mlp/down': 1}
  axes |= {f'block_0/attention/{name}': 0 for name in ('query', 'key', 'value')}
  axes |= {'block_0/mlp/up': 0}
  leaves = traverse_util.flatten_dict(jax.device_get(params), sep='/')
  assert {path for path, p in leaves.items() if p.ndim == 2} == set(axes)
  for path, axis in axes.items():
    assert leaves[path].shape[axis] == D
    np.testing.assert_allclose(np.linalg.norm(leaves[path], axis=axis), 1, rtol=1e-5)


CHANGES = [term.when.split('=') for term in INITIALISATION if term.when]
CHANGES = [[option, value] for option, value in CHANGES if option != 'model.norm_position']
CHANGES += [['parameterization.name', name] for name in PARAMETERIZATIONS]


@pytest.mark.parametrize('option, value', [*CHANGES, ('optimizer.name', 'hyperball')])
def test_vectors_start_with_unit_norm_or_are_refused(tiny, start, option, value):
  """Whatever else changes the initial parameters."""
  try:
    run = tiny(OPTIONS | {option: value})
  except BadInput as error:
    assert str(error).startswith('config.model.norm_position=')
    return
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: p * np.float32(rng.uniform(1, 2, p.shape)), start)
  for term in INITIALISATION.active(run.static):
    params = term.make(params, run.hparams, run.static)
  check_vectors(params)


def test_gradient_at_zero():
  """Queries start at 0 under muparam_full."""
  gradient = jax.grad(lambda x: ngpt.unit(x).sum())(np.zeros(3, np.float32))
  assert np.isfinite(gradient).all()
