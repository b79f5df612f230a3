"""Mixtures of experts: outputs, losses, probes and balancing, compared with NumPy in float64."""

import functools

import jax
import numpy as np
import pytest
from scipy import special

from stability.devices import shapes
from stability.model.kernels import CARRIED
from stability.model.measure import LOSSES, PROBES
from stability.model.mlp import MLPS
from stability.step import gradients as gradients_lib
from stability.step import probes, run_model, train_step

B, T, D, E = 2, 6, 16, 4
# Optimization takes most of the compile time and does not change the results.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
MOE = {
    'model.mlp': 'moe',
    'model.width': D,
    'model.experts': E,
    'model.mlp_width': 8,
    'model.head_dim': 8,
}
COLLECTIONS = [LOSSES, PROBES, CARRIED]


@functools.cache
def forward(c):
  module = MLPS['moe'].make(c)
  apply = functools.partial(module.apply, mutable=COLLECTIONS)
  return module.init, compiled(lambda variables, hparams: apply(variables, X, hparams))


def gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference(params, k, bias=0.0):
  """Output, router logits, probabilities, and which experts are chosen."""
  p = jax.tree.map(np.float64, params)
  logits = X @ p['router']
  probabilities = special.softmax(logits, -1)
  out, chosen = np.zeros((B, T, D)), np.zeros((B, T, E))
  for b in range(B):
    for t in range(T):
      best = np.argsort(-(probabilities[b, t] + bias))[:k]
      chosen[b, t, best] = 1
      for e, weight in zip(best, special.softmax(logits[b, t, best])):
        expert = p[f'expert_{e}']
        out[b, t] += weight * gelu(X[b, t] @ expert['up']) @ expert['down']
  return out, logits, probabilities, chosen


@pytest.mark.parametrize('k', [2, E])
def test_against_numpy(tiny, k):
  run = tiny(MOE | {'model.experts_per_token': k})
  init, apply = forward(run.static.model)
  params = init(jax.random.key(0), X, run.hparams)['params']
  out, new = apply({'params': params}, run.hparams)
  expected, logits, probabilities, chosen = reference(params, k)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)

  losses = {name: float(value) for name, (value,) in new[LOSSES].items()}
  share = chosen.mean(1) / k  # of each sequence
  assert losses == pytest.approx({
      'balance_loss': np.mean(E * (share * probabilities.mean(1)).sum(-1)),
      'router_z_loss': np.mean(special.logsumexp(logits, -1) ** 2),
  })
  found = probes.scalars(probes.forward({PROBES: {'block_0': {'mlp': new[PROBES]}}}))
  load = chosen.mean((0, 1)) / k
  assert {name: float(value) for name, value in found.items()} == pytest.approx({
      'block_0/router_entropy': special.entr(probabilities).sum(-1).mean(),
      'block_0/router_logit_max': logits.max(),
      'block_0/router_load_max': load.max(),
      'block_0/router_load_dead': np.mean(load == 0),
  })


def test_balanced_and_collapsed_routers(tiny):
  """The balance loss is 1 for a uniform router, and E / k if all tokens choose the same k."""
  run = tiny(MOE)
  init, apply = forward(run.static.model)
  params = init(jax.random.key(0), X, run.hparams)['params']
  uniform = params | {'router': np.zeros((D, E), np.float32)}
  _, new = apply({'params': uniform}, run.hparams)
  assert float(new[LOSSES]['balance_loss'][0]) == pytest.approx(1)
  # The first feature, which is positive, gives two experts large logits.
  router = np.zeros((D, E), np.float32)
  router[0, 2:] = 1e3
  positive = 1 + np.abs(X)
  _, new = MLPS['moe'].make(run.static.model).apply(
      {'params': params | {'router': router}}, positive, run.hparams, mutable=COLLECTIONS
  )
  assert float(new[LOSSES]['balance_loss'][0]) == pytest.approx(E / 2)
  (load,) = new[PROBES]['router_load']
  np.testing.assert_array_equal(load.value, [0, 0, 0.5, 0.5])


def test_router_bias(tiny):
  """The bias grows for experts below the mean load; it changes the choice, not the weights."""
  run = tiny(MOE | {'model.router_bias_rate': 0.25})
  init, apply = forward(run.static.model)
  variables = init(jax.random.key(0), X, run.hparams)
  params, start = variables['params'], variables[CARRIED]['router_bias']
  for value in start.values():
    np.testing.assert_array_equal(value, np.zeros(E))
  _, new = apply(variables, run.hparams)
  first = new[CARRIED]['router_bias']
  _, _, _, chosen = reference(params, 2)
  np.testing.assert_array_equal(first['bias'], 0)  # no load was known
  np.testing.assert_array_equal(first['load'], chosen.sum((0, 1)))
  carried = {'bias': np.float32([0.5, 0, 0, 0]), 'load': np.float32([9, 6, 3, 6])}
  out, new = apply({'params': params, CARRIED: {'router_bias': carried}}, run.hparams)
  second = new[CARRIED]['router_bias']
  bias = np.array([0.25, 0, 0.25, 0])
  np.testing.assert_array_equal(second['bias'], bias)
  expected, _, _, chosen = reference(params, 2, bias)
  np.testing.assert_array_equal(second['load'], chosen.sum((0, 1)))
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)
  assert (second['load'] != first['load']).any()


def test_rounding_moves_no_bias(tiny):
  """Equal loads, averaged over three parts, are not equal to their mean in float32."""
  run = tiny(MOE | {'model.router_bias_rate': 0.25, 'model.experts': 6})
  init, apply = forward(run.static.model)
  variables = init(jax.random.key(0), X, run.hparams)
  load = np.full(6, 1000 / 3, np.float32)
  carried = {'bias': np.zeros(6, np.float32), 'load': load}
  _, new = apply(variables | {CARRIED: {'router_bias': carried}}, run.hparams)
  np.testing.assert_array_equal(new[CARRIED]['router_bias']['bias'], 0)
  one_more = load + np.eye(6, dtype=np.float32)[0] / 3
  carried = {'bias': np.zeros(6, np.float32), 'load': one_more}
  _, new = apply(variables | {CARRIED: {'router_bias': carried}}, run.hparams)
  np.testing.assert_array_equal(
      new[CARRIED]['router_bias']['bias'], np.float32([-0.25] + 5 * [0.25])
  )


@pytest.mark.slow
def test_load_is_that_of_the_whole_batch(tiny, text):
  """Parts of the batch carry the same bias and, together, the load of the whole batch."""
  run = tiny(MOE | {'model.router_bias_rate': 0.01})
  programs = train_step.programs(run.static, 64)
  state = compiled(programs.init)(run.hparams)
  rows = np.int32(text['validation'][0])
  load = np.float32([3, 1, 8, 4])
  state['carried']['block_0']['mlp']['router_bias']['load'] = load
  model = run_model.make(run.static, 64)
  part = functools.partial(train_step.gradient, model, run.static, 'quiet', state)
  found = []
  for microbatches in (1, 2):
    _, _, carried = compiled(
        lambda rows, m=microbatches: gradients_lib.over_parts(part, rows, state['params'], m, None)
    )(rows)
    found.append(jax.device_get(carried['block_0']['mlp']['router_bias']))
  whole, halves = found
  np.testing.assert_array_equal(whole['bias'], np.float32([0.01, 0.01, -0.01, 0]))
  np.testing.assert_array_equal(halves['bias'], whole['bias'])
  np.testing.assert_array_equal(2 * halves['load'], whole['load'])
  assert whole['load'].sum() == 4 * 16 * 2


def test_parameters(tiny):
  """All experts count; the router does not."""
  run = tiny(MOE | {'model.depth': 2})
  assert shapes.parameters(run.config) == 2 * (4 * D**2 + E * 2 * D * 8)
