"""The optimizer's state in bfloat16, compared with Adam's definition in NumPy."""

import jax
import ml_dtypes
import numpy as np
import pytest

from stability.errors import BadInput
from stability.model.transformer import Transformer
from stability.optim import optimizers
from stability.optim.after_update import AFTER_UPDATE
from stability.step import run_model, train_step

BFLOAT16 = {'optimizer.state_dtype': 'bfloat16', 'optimizer.clip_norm': 0.0}


def rounded(x):
  return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def test_adam_with_moments_in_bfloat16(tiny):
  """Moments are rounded after each update, which reads those before rounding."""
  run = tiny(BFLOAT16)
  optimizer = optimizers.make_optimizer(run.hparams, run.static)
  rng = np.random.default_rng(0)
  params = {'a': np.zeros((3, 4), np.float32)}
  state = optimizer.init(params)
  step = jax.jit(optimizer.update)
  beta1, beta2, eps = (run.flat[f'optimizer.{name}'] for name in ('beta1', 'beta2', 'eps'))
  m = v = np.zeros((3, 4))
  for t in range(1, 5):
    g = rng.normal(size=(3, 4)).astype(np.float32)
    updates, state = step({'a': g}, state, params, learning_rate=1e-3)
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * np.float64(g) ** 2
    expected = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
    np.testing.assert_allclose(updates['a'], expected, rtol=1e-5)
    m, v = rounded(np.float32(m)), rounded(np.float32(v))
    stored = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert stored == {'bfloat16'}


def assert_bfloat16(params):
  for p in jax.tree.leaves(params):
    np.testing.assert_array_equal(p, rounded(np.asarray(p)))


def test_stochastically_rounded_parameters(tiny, text):
  """They are bfloat16 at the start and after each update, with other random bits each time."""
  run = tiny({'optimizer.parameter_rounding': 'stochastic', 'model.depth': 0})
  programs = train_step.programs(run.static, 64)
  state = jax.jit(programs.init)(run.hparams)
  assert_bfloat16(state['params'])
  step = jax.jit(programs.steps['quiet'])
  first, _ = step(text, state)
  # The same update of the same parameters, with the same batch and learning rate, as number 2.
  hparams = state['hparams'] | {'schedule.warmup_steps': np.int32(4)}
  moved = {'step': np.int32(1), 'skipped': np.int32(-1), 'hparams': hparams}
  later, _ = step(text, state | moved)
  assert_bfloat16(first['params'])
  assert (first['params']['head'] != state['params']['head']).any()
  assert (first['params']['head'] != later['params']['head']).any()


def test_parameters_rounded_to_nearest(tiny):
  run = tiny({'optimizer.parameter_rounding': 'nearest'})
  params = {'a': np.random.default_rng(0).normal(size=100).astype(np.float32)}
  for term in AFTER_UPDATE.active(run.static):
    params = term.make(params, None)
  assert_bfloat16(params)


def test_start_is_rounded(tiny):
  """Parameters that a parent gives as well."""
  run = tiny({'optimizer.parameter_rounding': 'nearest', 'model.depth': 1})
  model = Transformer(run.static.model, 64)
  head = np.random.default_rng(0).normal(size=(run.static.model.width, 64)).astype(np.float32)
  params, _ = run_model.init(model, run.static, run.hparams, {'params': {'head': head}})
  assert_bfloat16(params)
  np.testing.assert_allclose(params['head'], head, rtol=2**-8)


def test_other_optimizers_are_refused(tiny):
  with pytest.raises(BadInput, match=r'must be float32 unless config\.optimizer\.name=adamw'):
    tiny(BFLOAT16 | {'optimizer.name': 'soap'})
