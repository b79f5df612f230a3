"""The optimizer's state in bfloat16, compared with Adam's definition in NumPy."""

import jax
import ml_dtypes
import numpy as np
import pytest

from stability.errors import BadInput
from stability.optim import optimizers
from stability.step import train_step

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


def test_parameters_are_bfloat16_after_every_update(tiny, text):
  """Those at the start too; a small learning rate moves more of them with stochastic rounding."""
  base = {'optimizer.learning_rate': 2e-5, 'schedule.min_learning_rate': 0.0, 'model.depth': 0}
  base |= {'optimizer.weight_decay': 0.0}
  moved = {}
  for kind in ('nearest', 'stochastic'):
    run = tiny(base | {'optimizer.parameter_rounding': kind})
    programs = train_step.programs(run.static, 64)
    start = jax.jit(programs.init)(run.hparams)
    state, _ = jax.jit(programs.steps['quiet'])(text, start)
    for params in (start['params'], state['params']):
      for p in jax.tree.leaves(params):
        np.testing.assert_array_equal(p, rounded(np.asarray(p)))
    moved[kind] = np.mean(start['params']['head'] != state['params']['head'])
  assert moved['stochastic'] > 2 * moved['nearest']


def test_other_optimizers_are_refused(tiny):
  with pytest.raises(BadInput, match=r'must be float32 unless config\.optimizer\.name=adamw'):
    tiny(BFLOAT16 | {'optimizer.name': 'soap'})
