"""Averages of parameters: uniform, exponential, and that of schedule-free training."""

import jax
import numpy as np
import pytest

from stability.errors import BadInput
from stability.optim.after_update import Update
from stability.optim.evaluation import EVALUATED
from stability.step import run_model, train_step

TRAINED = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)


def averages(name, hparams):
  """The evaluated parameters before the first update and after each, if TRAINED are trained."""
  average_of = EVALUATED[name].make
  average = average_of.init({'p': TRAINED[0]})
  for step in range(9):
    if step:
      update = Update({}, {}, None, {}, np.int32(step), np.float32(1), hparams, None)
      average, new = average_of.update(average, {'p': TRAINED[step]}, update)
      np.testing.assert_array_equal(new['p'], TRAINED[step])
    yield average_of.read({
        'params': {'p': TRAINED[step]},
        'average': average,
        'step': np.int32(step),
        'hparams': hparams,
    })['p']


@pytest.mark.parametrize('average_steps, first', [(3, 6), (1, 8), (100, 1)])
def test_uniform_average(average_steps, first):
  """The mean over updates first to 8, the last; before, the parameters themselves."""
  hparams = {
      'schedule.steps': np.int32(8), 'evaluation.average_steps': np.int32(average_steps)
  }  # fmt: skip
  for step, found in enumerate(averages('uniform', hparams)):
    expected = TRAINED[first : step + 1].mean(0) if step >= first else TRAINED[step]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_exponential_average():
  """Update n of t has a weight of 0.9^(t - n); before the first, the parameters themselves."""
  found = averages('ema', {'evaluation.decay': np.float32(0.9)})
  np.testing.assert_array_equal(next(found), TRAINED[0])
  for step, average in enumerate(found, start=1):
    weights = 0.9 ** np.arange(step)[::-1]
    expected = np.average(TRAINED[1 : step + 1], axis=0, weights=weights)
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', EVALUATED)
def test_sharpness_is_along_the_step_of_the_parameters(tiny, kind):
  """It is measured along the optimizer's, and refused where parameters move otherwise."""
  options = {'evaluation.parameters': kind, 'evaluation.decay': 0.9}
  hparams, make = tiny(options).hparams, EVALUATED[kind].make
  new = {'p': TRAINED[2]}
  if make.update:
    average = make.init({'p': TRAINED[0]})
    for n in (1, 2):
      old, new = {'p': TRAINED[n - 1]}, {'p': TRAINED[n]}
      update = Update(old, {}, None, {}, np.int32(n), np.float32(1), hparams, None)
      average, new = make.update(average, new, update)
  try:
    tiny(options | {'probe.sharpness_every_steps': 20})
  except BadInput:
    assert not np.array_equal(new['p'], TRAINED[2])
  else:
    np.testing.assert_array_equal(new['p'], TRAINED[2])


@pytest.mark.slow
def test_schedule_free(tiny, text):
  """Against NumPy in float64, with three explicit sequences and gradients at y."""
  beta, beta2, eps, decay = 0.8, 0.95, 1e-2, 0.01
  run = tiny({
      'model.depth': 0,
      'model.width': 8,
      'model.head_dim': 8,
      'evaluation.parameters': 'schedule_free',
      'evaluation.decay': beta,
      'optimizer.beta1': 0.0,
      'optimizer.eps': eps,
      'optimizer.clip_norm': 0.0,
      'optimizer.weight_decay': decay,
      'optimizer.learning_rate': 0.05,
      'schedule.shape': 'wsd',
      'schedule.decay_steps': 17,  # the weight of later updates is that of the highest rate
  })
  programs = train_step.programs(run.static, 64)
  model = run_model.make(run.static, 64)
  state = jax.jit(programs.init)(run.hparams)
  step = jax.jit(programs.steps['quiet'])

  @jax.jit
  def gradient_at(state, params, rows):
    return train_step.gradient(model, run.static, 'quiet', state | {'params': params}, rows)[0]

  batches = text['text'][: 7 * 4 * 17].reshape(7, 4, 17).astype(np.int32)
  y = jax.tree.map(np.float64, state['params'])
  x, z, square, weights, highest = y, y, jax.tree.map(np.zeros_like, y), 0.0, 0.0
  each = jax.tree.map
  for n, rows in enumerate(batches, start=1):
    g = each(np.float64, gradient_at(state, each(np.float32, y), rows))
    state, metrics = step({'batch': rows}, state)
    rate = float(metrics['learning_rate'])
    square = each(lambda v, g: beta2 * v + (1 - beta2) * g**2, square, g)
    u = each(lambda v, g, n=n: g / (np.sqrt(v / (1 - beta2**n)) + eps), square, g)
    z = each(lambda z, u, y, r=rate: z - r * u - decay * r / 0.05 * y, z, u, y)
    highest = max(highest, rate)
    weights += highest**2
    x = each(lambda x, z, c=highest**2 / weights: (1 - c) * x + c * z, x, z)
    y = each(lambda x, z: beta * x + (1 - beta) * z, x, z)
    evaluated = EVALUATED['schedule_free'].make.read(state)
    for found, expected in ((state['params'], y), (evaluated, x)):
      for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  assert rate < highest / 1.1
  distance = np.linalg.norm(np.float64(state['params']['head']) - evaluated['head'])
  assert distance > 1e-3
