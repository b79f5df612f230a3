"""Sharpness, compared with dense Hessians, NumPy's eigenvalues and losses along the update."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import flatten_util

from stability.data import batches
from stability.devices import multi_device
from stability.model import transformer as transformer_lib
from stability.optim import apply, optimizers
from stability.step import objective as objective_lib
from stability.step import sharpness, train_step

pytestmark = pytest.mark.slow

# Optimization takes most of the compile time and does not change the results.
LEVEL = {'xla_backend_optimization_level': 0}
compiled = functools.partial(jax.jit, compiler_options=LEVEL)

SMALL = {
    'data.batch_size': 4,
    'data.sequence_length': 8,
    'model.width': 8,
    'model.head_dim': 4,
    'model.depth': 1,
    'optimizer.eps': 1e-4,
    'optimizer.weight_decay': 0.1,  # not part of the update along which the loss is measured
    'schedule.warmup_steps': 0,
    'probe.sharpness_every_steps': 20,
}
RESOLUTION = 2 ** (24 / 2**8)  # of seven bisections of 24 octaves, to either side
NAMES = {
    'critical_sharpness',
    'critical_sharpness_ratio',
    'preconditioned_sharpness',
    'preconditioned_sharpness_ratio',
}


# The two methods.


@pytest.mark.parametrize('edge', [1e-3, 0.3, 1.0, 700.0])
def test_critical_scale_of_a_parabola(edge):
  found = sharpness.critical_scale(lambda s: s * (s - edge), jnp.float32(0))
  assert edge / RESOLUTION <= found <= edge * RESOLUTION


def test_critical_scale_at_its_limits():
  lowest, highest = 2.0**-sharpness.OCTAVES, 2.0**sharpness.OCTAVES
  always = sharpness.critical_scale(lambda s: 1.0 + s, jnp.float32(1.0))
  never = sharpness.critical_scale(lambda s: 1.0 - s, jnp.float32(1.0))
  assert lowest <= always < lowest * RESOLUTION**2
  assert highest / RESOLUTION**2 < never <= highest
  explodes = sharpness.critical_scale(
      lambda s: jnp.where(s > 3.0, jnp.nan, 1.0 - s), jnp.float32(1.0)
  )
  assert 3 / RESOLUTION <= explodes <= 3 * RESOLUTION


@pytest.mark.parametrize(('step', 'edge'), [(0.5, 2.0), (-0.5, np.nan)])
def test_step_uphill_has_no_critical_sharpness(step, edge):
  params = jnp.float32(1.0)  # loss p^2 / 2: a step of 0.5 down comes back up at 4 times its length

  def loss(p):
    return p**2 / 2

  found = sharpness.critical(loss, params, params, jnp.float32(step), jnp.float32(0.25))
  np.testing.assert_allclose(found['critical_sharpness'], edge, rtol=RESOLUTION - 1)


@pytest.mark.parametrize(
    ('spectrum', 'tolerance'),
    [
        (np.concatenate([np.linspace(-1, 1, 60), [3.0, 9.0]]), 1e-4),
        (np.concatenate([np.linspace(-1, 1, 60), [-20.0, 2.0]]), 1e-2),  # not the largest in size
        (np.linspace(0, 1, 62), 0.05),  # no gap: approached from below
        (np.concatenate([np.zeros(61), [4.0]]), 1e-4),  # exhausted after two products
    ],
)
def test_largest_eigenvalue_equals_numpy(spectrum, tolerance):
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.normal(size=(62, 62)))
  matrix = np.float32(turn @ np.diag(spectrum) @ turn.T)

  def product(tree):
    flat, unravel = flatten_util.ravel_pytree(tree)
    return unravel(jnp.matmul(matrix, flat, precision='highest'))

  start = {'a': jnp.float32(rng.normal(size=(6, 7))), 'b': jnp.float32(rng.normal(size=20))}
  found = compiled(functools.partial(sharpness.largest_eigenvalue, product))(start)
  assert found <= spectrum.max() + 1e-3
  assert found == pytest.approx(spectrum.max(), rel=tolerance)


# The step.


class Stepped:
  """A run of three quiet steps, the sharp step after them, and its loss."""

  def __init__(self, run, text):
    self.run = run
    programs = train_step.programs(run.static, 64)
    state = compiled(programs.init)(run.hparams)
    quiet = compiled(programs.steps['quiet'])
    for _ in range(3):
      state, _ = quiet(text, state)
    self.before = state
    self.after_quiet = quiet(text, state)[0]
    self.after, metrics = compiled(programs.steps['sharp'])(text, state)
    self.metrics = {name: float(value) for name, value in metrics.items()}
    starts = batches.window_starts(
        np, 0, 3, batch_size=4, sequence_length=run.flat['data.sequence_length'], tokens=2_001
    )
    self._rows = batches.gather(text['text'], starts, run.flat['data.sequence_length'])
    self._network = transformer_lib.Transformer(run.static.model, 64)

  def loss(self, params):
    logits = self._network.apply({'params': params}, self._rows[:, :-1], self.run.hparams)
    total, _ = objective_lib.objective(
        self.run.static, self.run.hparams, logits, self._rows[:, 1:], params, {}
    )
    return total

  def direction(self):
    """Adam's direction from the moments after the step, in float64 and by path."""
    adam = self.after['optimizer'][1]
    count = int(adam.count)
    m = jax.tree.map(lambda m: np.float64(m) / (1 - 0.9**count), adam.mu)
    v = jax.tree.map(lambda v: np.float64(v) / (1 - 0.95**count), adam.nu)
    p = jax.tree.map(lambda v: np.sqrt(v) + self.run.flat['optimizer.eps'], v)
    return jax.tree.map(np.divide, m, p), p


@pytest.fixture(scope='module')
def stepped(tiny, text):
  return Stepped(tiny(SMALL), text)


@pytest.mark.slow
def test_critical_sharpness_matches_losses_along_the_update(stepped):
  direction, _ = stepped.direction()
  loss = compiled(stepped.loss)
  params = stepped.before['params']

  def at(rate):
    return loss(jax.tree.map(lambda p, d: np.float32(p - rate * d), params, direction))

  rates = np.geomspace(1e-4, 10, 120)
  raised = np.array([at(rate) for rate in rates]) > loss(params)
  assert not raised[0] and raised[-1]
  edge = rates[np.flatnonzero(raised)[0]]
  measured = 2 / stepped.metrics['critical_sharpness']
  assert edge / RESOLUTION / 1.1 <= measured <= edge * RESOLUTION
  ratio = stepped.metrics['learning_rate'] / measured
  assert stepped.metrics['critical_sharpness_ratio'] == pytest.approx(ratio, rel=1e-4)


@pytest.mark.slow
def test_preconditioned_sharpness_matches_the_dense_hessian(stepped):
  flat, unravel = flatten_util.ravel_pytree(stepped.before['params'])
  hessian = np.float64(compiled(jax.hessian(lambda x: stepped.loss(unravel(x))))(flat))
  p, _ = flatten_util.ravel_pytree(stepped.direction()[1])
  root = np.sqrt(np.float64(p))  # P^-1/2 H P^-1/2 has the eigenvalues of P^-1 H
  eigenvalue = np.linalg.eigvalsh(hessian / root / root[:, None])[-1]
  measured = stepped.metrics['preconditioned_sharpness']
  assert 0.9 * eigenvalue <= measured <= 1.001 * eigenvalue  # ten products: approached from below
  limit = (2 + 2 * 0.9) / (1 - 0.9) / stepped.metrics['learning_rate']  # 38 / LR
  expected = pytest.approx(measured / limit, rel=1e-4)
  assert stepped.metrics['preconditioned_sharpness_ratio'] == expected


@pytest.mark.slow
def test_sharp_and_quiet_steps_make_the_same_update(stepped):
  for a, b in zip(
      jax.tree.leaves(stepped.after), jax.tree.leaves(stepped.after_quiet), strict=True
  ):
    np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=1e-5, atol=1e-7)
  assert set(stepped.metrics) >= {'loss', 'block_0/attention_logit_max', *NAMES}


@pytest.mark.slow
def test_sharpness_of_a_batch_in_parts(stepped, tiny, text, monkeypatch):
  """On two devices, with two microbatches on each and remat of blocks."""
  lowered = jax.stages.Lowered.compile
  monkeypatch.setattr(jax.stages.Lowered, 'compile', lambda self: lowered(self, LEVEL))
  run = tiny(SMALL)
  data = {'text': text['text'], 'validation': text['validation'][..., :9]}
  programs = train_step.programs(run.static, 64, microbatches=2, remat=True)
  steps = {kind: programs.steps[kind] for kind in ('quiet', 'sharp')}
  programs = dataclasses.replace(programs, steps=steps)
  layout = multi_device.DataParallelLayout(programs, data, run.hparams, jax.devices()[:2])
  state, _ = layout.step(layout.insert(layout.empty(), 0, layout.init(run.hparams)), 'quiet', 3)
  _, fetch = layout.step(state, 'sharp')
  (metrics,) = fetch.read()
  for name in NAMES:
    # Bisection takes one of two neighbours where losses differ by rounding.
    tolerance = RESOLUTION**2 - 1 if 'critical' in name else 1e-2
    assert metrics[name] == pytest.approx(stepped.metrics[name], rel=tolerance), name


def test_layers_use_their_own_learning_rate(tiny):
  """The preconditioner is Adam's sqrt(v) + eps over the layer's share of the learning rate."""
  fields = {'parameterization.base_width': 2, 'parameterization.name': 'muparam_simple'}
  rng = np.random.default_rng(0)
  shapes = {'embedding': (64, 8), 'block_0': {'mlp': {'up': (8, 32)}}, 'head': (8, 64)}
  params, gradients = (
      jax.tree.map(lambda s: np.float32(rng.normal(size=s)), shapes, is_leaf=_is_shape)
      for _ in range(2)
  )
  for overrides, share_up, share_embedding in (
      ({}, 1.0, 1.0),
      (fields, 2 / 8, 1.0),  # of matrices that read the width: base_fan_in / fan_in
      (
          {'optimizer.learning_rate_scale': 'parameter_rms'},
          np.sqrt(np.mean(params['block_0']['mlp']['up'] ** 2)),
          np.sqrt(np.mean(params['embedding'] ** 2)),
      ),
  ):
    run = tiny(SMALL | {'optimizer.clip_norm': 0.0} | overrides)
    adam = optimizers.make_optimizer(run.hparams, run.static)
    _, state = adam.update(gradients, adam.init(params), params)
    found = apply.preconditioner(params, state, run.hparams, jnp.int32(5), run.static)
    for value, gradient, share in (
        (found['block_0']['mlp']['up'], gradients['block_0']['mlp']['up'], share_up),
        (found['embedding'], gradients['embedding'], share_embedding),
    ):
      np.testing.assert_allclose(value, (np.abs(gradient) + 1e-4) / share, rtol=1e-5)


def _is_shape(node):
  return isinstance(node, tuple)


def test_other_optimizers_have_only_critical_sharpness(tiny, text):
  run = tiny(SMALL | {'optimizer.name': 'lion'})
  programs = train_step.programs(run.static, 64)
  state = jax.eval_shape(programs.init, run.hparams)
  _, metrics = jax.eval_shape(programs.steps['sharp'], text, state)
  assert {name for name in metrics if 'sharpness' in name} == {
      'critical_sharpness',
      'critical_sharpness_ratio',
  }


def test_no_executable_without_sharpness(tiny):
  assert 'sharp' not in train_step.programs(tiny().static, 64).steps
  assert 'sharp' in train_step.programs(tiny(SMALL).static, 64).steps
