"""The JAX implementation, compared with the PyTorch reference on equal inputs in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from stability.data import batches
from stability.model import parameterization
from stability.model import transformer as transformer_lib
from stability.optim import apply, optimizers
from stability.step import objective as objective_lib
from stability.step import train_step

torch = pytest.importorskip('torch', reason="needs PyTorch: pip install -e '.[torch]'")

from helpers import reference_torch  # noqa: E402

torch.set_num_threads(1)  # more would compete with XLA's threads

VOCABULARY = 64
CAPS = {'model.attention_soft_cap': 1.5, 'model.output_soft_cap': 2.0}
INVERSE = {'model.attention_scale': 'inverse'}
# Each switch of the model and the objective at least once, with others that do not hide it.
SWITCHES = {
    'default': {},
    'qk_norm=none': {'model.qk_norm': 'none'},
    'depth=0': {'model.depth': 0, 'model.output_soft_cap': 2.0, 'objective.mu_loss': 0.3},
    'rmsnorm': {'model.norm': 'rmsnorm', 'model.qk_norm': 'rmsnorm', 'model.norm_position': 'peri'},
    'peri': {'model.norm_position': 'peri', 'model.qk_norm': 'none', **INVERSE},
    'over the model': {'model.qk_norm': 'layernorm_model', 'model.attention_gate': 'sigmoid'},
    'l2': {'model.qk_norm': 'l2', 'objective.mu_loss': 0.3},
    'fixed': {'model.qk_norm': 'fixed', 'model.logit_scale': 2.5, **CAPS},
    'squared_relu': {'model.attention': 'squared_relu'},
    'squared_relu, capped': {'model.attention': 'squared_relu', **CAPS, **INVERSE},
}
# Optimization takes most of the compile time and does not change the results.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def settings(run):
  """The settings of the reference, with numbers rounded like the traced float32 ones."""
  return run.flat | {field: value.item() for field, value in run.hparams.items()}


def random_params(run):
  """Weights as large as initial ones; scales are spread around 1, a scalar logit scale is 5."""
  tokens = jnp.zeros((1, 2), jnp.int32)
  network = transformer_lib.Transformer(run.static.model, VOCABULARY)
  shapes = jax.eval_shape(network.init, jax.random.key(0), tokens, run.hparams)['params']
  rng = np.random.default_rng(1)

  def draw(shape):
    if not shape:
      return np.float32(5)
    noise = rng.normal(size=shape)
    return np.float32(noise / np.sqrt(shape[0]) if len(shape) > 1 else 1 + 0.2 * noise)

  return jax.tree.map(lambda leaf: draw(leaf.shape), shapes)


def named(tree):
  """The leaves by the names that PyTorch gives parameters."""
  return traverse_util.flatten_dict(jax.device_get(tree), sep='.')


def in_torch(run, params):
  """The reference with these weights; fails on names or shapes other than its own."""
  network = reference_torch.Transformer(settings(run), VOCABULARY)
  weights = {name: torch.tensor(value) for name, value in named(params).items()}
  network.load_state_dict(weights, strict=True)
  return network


def batch(run, text, step):
  """Batch number `step`, as the host draws it."""
  c = run.static.data
  sizes = dict(batch_size=c.batch_size, sequence_length=c.sequence_length)
  starts = batches.window_starts(
      np, run.flat['data.seed'], step, tokens=len(text['text']), **sizes
  )
  return batches.gather(text['text'], starts, c.sequence_length)


def assert_close(ours, theirs, tolerance):
  """Every tensor within tolerance of its own norm."""
  assert ours.keys() == theirs.keys()
  for name, value in theirs.items():
    expected = value.detach().numpy()
    error = np.linalg.norm(ours[name] - expected) / np.linalg.norm(expected)
    assert error <= tolerance, f'{name}: {error:.1e}'


@pytest.fixture(scope='module', params=SWITCHES)
def switched(request, tiny):
  """A run, weights, and its compiled forward and backward pass."""
  run = tiny(SWITCHES[request.param])
  network = transformer_lib.Transformer(run.static.model, VOCABULARY)

  def total(params, inputs, targets, hparams):
    logits = network.apply({'params': params}, inputs, hparams)
    value, terms = objective_lib.objective(
        run.static, hparams, logits, targets, params, {}
    )
    return value, (logits, terms)

  return run, random_params(run), compiled(jax.value_and_grad(total, has_aux=True))


@pytest.mark.parametrize('z_loss', [0.0, 1e-4, 0.1])
def test_logits_loss_and_gradients(switched, text, z_loss):
  """Logits, of order 1, and losses to 1e-5; gradients to 1e-5 of each tensor's norm."""
  run, params, value_and_grad = switched
  rows = batch(run, text, 0)
  z_loss = {'objective.z_loss': np.float32(z_loss)}
  (ours_total, (ours_logits, ours_terms)), gradients = value_and_grad(
      params, rows[:, :-1], rows[:, 1:], run.hparams | z_loss
  )
  network = in_torch(run, params)
  rows = torch.tensor(rows, dtype=torch.int64)
  logits = network(rows[:, :-1])
  total, terms = reference_torch.objective(
      settings(run) | z_loss, logits, rows[:, 1:], network.head
  )
  total.backward()

  assert 0.5 < logits.std() < 2
  np.testing.assert_allclose(ours_logits, logits.detach().numpy(), rtol=0, atol=1e-5)
  assert ours_terms.keys() == terms.keys()
  for name, value in terms.items():
    assert float(ours_terms[name]) == pytest.approx(value.item(), rel=0, abs=1e-5), name
  assert float(ours_total) == pytest.approx(total.item(), rel=0, abs=1e-5)
  assert_close(named(gradients), {n: p.grad for n, p in network.named_parameters()}, 1e-5)


OPTIMIZERS = {
    'default': {},
    'tiny eps': {'optimizer.eps': 1e-15},
    'large eps': {'optimizer.eps': 1e-3},
    'always clipped': {'optimizer.clip_norm': 1e-2, 'optimizer.eps': 1e-3},
    'never clipped': {'optimizer.clip_norm': 0.0, 'optimizer.eps': 1e-3},
    'other betas': {'optimizer.beta1': 0.5, 'optimizer.beta2': 0.99},
    'no warm-up': {'schedule.warmup_steps': 0, 'schedule.steps': 5},
}
STATIC = {
    'independent': {'optimizer.weight_decay_kind': 'independent'},
    'coupled': {'optimizer.weight_decay_kind': 'coupled'},
    'adam_atan2': {'optimizer.name': 'adam_atan2'},
    'stable_adamw': {'optimizer.name': 'stable_adamw'},
    'lion': {'optimizer.name': 'lion'},
    'muon': {'optimizer.name': 'muon'},
    'adafactor': {'optimizer.name': 'adafactor'},
    'parameter_rms': {'optimizer.learning_rate_scale': 'parameter_rms'},
    'wsd': {'schedule.shape': 'wsd', 'schedule.decay_steps': 2, 'schedule.steps': 5},
    'rsqrt': {'schedule.shape': 'rsqrt'},
    'muparam': {'parameterization.name': 'muparam_simple', 'parameterization.base_width': 8},
    'muparam, coupled': {
        'parameterization.name': 'muparam_full',
        'parameterization.base_width': 8,
        'optimizer.weight_decay_kind': 'coupled',
    },
}
CASES = [(name, case) for name in ('independent', 'coupled') for case in OPTIMIZERS]
CASES += [(name, case) for name in list(STATIC)[2:] for case in ('default', 'other betas')]
CASES += [(name, 'large eps') for name in ('stable_adamw', 'muon')]
# Muon's polynomial has a slope of up to 3.4 and is iterated five times. It amplifies rounding, most
# where a singular value is small; the largest error seen is 1.9e-6.
TOLERANCES = {'muon': 1e-5}


@pytest.fixture(scope='module')
def update(request, tiny):
  """Static overrides, and a compiled update that returns directions, parameters and state."""
  overrides = {'optimizer.weight_decay': 0.03} | STATIC[request.param]
  static = tiny(overrides).static

  def update(hparams, gradients, state, params, step):
    directions, state = optimizers.make_optimizer(hparams, static).update(gradients, state, params)
    moves = apply.scale_updates(params, directions, hparams, step, static)
    return directions, apply.apply_updates(params, moves, hparams, step, static), state

  return overrides, compiled(update)


@pytest.mark.parametrize('update, case', CASES, indirect=['update'])
@pytest.mark.parametrize('size', [1.0, 1e-12])
def test_optimizer(tiny, update, case, size):
  """For equal gradients, directions and new parameters agree to 1e-6 of their norms."""
  overrides, update = update
  run = tiny(overrides | OPTIMIZERS[case])
  tolerance = TOLERANCES.get(run.flat['optimizer.name'], 1e-6)
  rng = np.random.default_rng(2)
  shapes = {
      ('embedding',): (64, 8),
      ('block_0', 'mlp', 'up'): (8, 32),
      ('block_0', 'mlp', 'down'): (160, 130),
      ('block_0', 'mlp_norm', 'scale'): (8,),
      ('block_1', 'mlp_norm', 'scale'): (8,),
  }
  params = {path: rng.normal(size=shape) for path, shape in shapes.items()}
  params['block_1', 'mlp_norm', 'scale'] *= 1e-4  # below the least RMS that scales a learning rate
  params = {path: np.float32(value) for path, value in params.items()}
  theirs = {'.'.join(path): torch.tensor(value) for path, value in params.items()}
  reference, directions_only = (
      reference_torch.OPTIMIZERS[run.flat['optimizer.name']](settings(run), theirs)
      for _ in range(2)
  )
  params = traverse_util.unflatten_dict(params)
  state = optimizers.make_optimizer(run.hparams, run.static).init(params)
  for step in range(1, 6):
    std = size * 10.0 ** rng.uniform(-4, -1)  # the global norm, 147 std, lies on both sides of 1
    gradients = {}
    for path, shape in shapes.items():
      noise = rng.normal(size=shape)
      noise = np.copysign(np.maximum(np.abs(noise), 1e-2), noise)  # squares must not underflow
      gradients[path] = np.float32(std * noise)
    torch_gradients = [torch.tensor(value) for value in gradients.values()]
    gradients = traverse_util.unflatten_dict(gradients)
    directions, params, state = update(run.hparams, gradients, state, params, np.int32(step))
    assert_close(named(directions), directions_only.direction(torch_gradients), tolerance)
    reference.step(torch_gradients)
    assert_close(named(params), theirs, tolerance)


STEPS = {
    'default': {'model.depth': 1},
    'qk_norm=none': {'model.depth': 1, 'model.qk_norm': 'none'},
    'coupled': {'model.depth': 0, 'optimizer.weight_decay_kind': 'coupled'},
    'output_centering': {'model.depth': 0, 'model.output_centering': 'mean'},
    'muon': {'model.depth': 1, 'optimizer.name': 'muon'},
    'muparam_full': {
        'model.depth': 1,
        'parameterization.name': 'muparam_full',
        'parameterization.base_width': 8,
    },
}


@pytest.mark.parametrize('case', STEPS)
def test_three_steps(tiny, text, case):
  """train.step, compared with the loop of the reference on the batches that the host draws."""
  overrides = {
      'optimizer.learning_rate': 1e-3,
      'optimizer.weight_decay': 0.03,  # large, for three steps to show it
      'schedule.warmup_steps': 1,
      'schedule.steps': 4,
  }
  run = tiny(STEPS[case] | overrides)
  params = parameterization.initial(random_params(run), run.hparams, run.static)
  network = in_torch(run, params)
  name = run.flat['optimizer.name']
  reference = reference_torch.OPTIMIZERS[name](settings(run), dict(network.named_parameters()))
  state = {
      'params': params,
      'optimizer': optimizers.make_optimizer(run.hparams, run.static).init(params),
      'carried': {},
      'step': np.int32(0),
      'skipped': np.int32(0),
      'diverged': np.bool(False),
      'hparams': run.hparams,
  }
  step = compiled(train_step.programs(run.static, VOCABULARY).steps['quiet'])
  for i in range(3):
    state, metrics = step(text, state)
    rows = torch.tensor(batch(run, text, i), dtype=torch.int64)
    loss = reference_torch.train_step(settings(run), network, reference, rows)
    assert float(metrics['loss']) == pytest.approx(loss.item(), rel=0, abs=1e-4)
    rate = reference_torch.schedule(settings(run), i + 1)
    assert float(metrics['learning_rate']) == pytest.approx(rate, rel=1e-6)
  assert_close(named(state['params']), dict(network.named_parameters()), 1e-4)
