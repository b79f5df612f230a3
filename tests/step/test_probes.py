"""Every probe, compared with NumPy on parameters, gradients and the outputs of modules."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

from stability.control.alarms import Monitor
from stability.data import batches
from stability.model import kernels
from stability.model import transformer as transformer_lib
from stability.optim import optimizers
from stability.step import objective as objective_lib
from stability.step import probes, train_step

# Optimization takes most of the compile time and does not change the results.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})

B, T, H, K = 4, 16, 2, 16
CAUSAL = np.tril(np.ones((T, T), bool))


def flat(tree):
  return traverse_util.flatten_dict(jax.device_get(tree), sep='/')


def rms(x):
  return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


def rotated(x):
  """RoPE by complex numbers."""
  pairs = x[..., : K // 2] + 1j * x[..., K // 2 :]
  pairs *= np.exp(1j * np.outer(np.arange(T), 10_000.0 ** (-np.arange(K // 2) / (K // 2))))
  return np.concatenate([pairs.real, pairs.imag], axis=-1)


MODELS = {
    'default': {},
    'capped': {
        'model.qk_norm': 'none',
        'model.attention_soft_cap': 1.0,
        'model.output_soft_cap': 2.0,
        'model.output_centering': 'mean',
        'probe.stable_rank': 'power_iteration',
        'probe.qk_spectral_entropy': 'svd',
    },
    'squared_relu': {'model.attention': 'squared_relu', 'model.attention_scale': 'inverse'},
}


@pytest.fixture(scope='module')
def tiny(tiny):
  """Tiny runs of two blocks."""
  return lambda overrides=None: tiny({'model.depth': 2} | (overrides or {}))


@pytest.fixture(
    scope='module',
    params=[
        name if name == 'default' else pytest.param(name, marks=pytest.mark.slow)
        for name in MODELS
    ],
)
def probed(request, tiny):
  """A run before its first update, and its probed step, compiled."""
  overrides = {'optimizer.clip_norm': 0.1, 'optimizer.eps': 1e-3}  # so that clipping shows
  run = tiny(overrides | MODELS[request.param])
  programs = train_step.programs(run.static, vocabulary_size=64)
  state = compiled(programs.init)(run.hparams)
  # Weights are larger than initial ones, so that attention is far from uniform; scales are not 1.
  rng = np.random.default_rng(0)
  state['params'] = jax.tree.map(
      lambda p: np.float32(1.5 * p + 0.1 * rng.normal(size=p.shape)), state['params']
  )
  return run, state, compiled(programs.steps['probed'])


@dataclasses.dataclass(frozen=True)
class Inside:
  """The metrics of a probed step and the arrays that they measure, by path."""

  c: dict[str, object]  # the config, by dotted field
  metrics: dict[str, float]
  inputs: np.ndarray
  params: dict[str, np.ndarray]
  gradients: dict[str, np.ndarray]
  outputs: dict[str, np.ndarray]  # of every module; of the model under __call__


@pytest.fixture(scope='module')
def inside(probed, text):
  run, state, step = probed
  _, metrics = step(text, state)
  starts = batches.window_starts(np, 0, 0, batch_size=B, sequence_length=T, tokens=2_001)
  rows = batches.gather(text['text'], starts, T)
  network = transformer_lib.Transformer(run.static.model, 64)

  def total(params):
    logits, collections = network.apply(
        {'params': params},
        rows[:, :-1],
        run.hparams,
        capture_intermediates=True,
        mutable=['intermediates'],
    )
    value, _ = objective_lib.objective(
        run.static, run.hparams, logits, rows[:, 1:], params, {}
    )
    return value, collections['intermediates']

  gradients, outputs = compiled(jax.grad(total, has_aux=True))(state['params'])
  return Inside(
      c=run.flat,
      metrics={name: float(value) for name, value in metrics.items()},
      inputs=rows[:, :-1],
      params=flat(state['params']),
      gradients=flat(gradients),
      # Blocks and attention return the values of the first block as well.
      outputs={
          path.removesuffix('/__call__'): value[0] if isinstance(value, tuple) else value
          for path, (value,) in flat(outputs).items()
      },
  )


def attention(inside, block):
  """Queries and keys after RoPE, logits of all pairs [B, H, T, T], and normalised weights."""
  x = inside.outputs[f'{block}/attention_norm'].astype(np.float64)
  projected = []
  for name in ('query', 'key'):
    norm = f'{block}/attention/qk_norm_{name}'
    if norm in inside.outputs:
      projected.append(inside.outputs[norm].reshape(B, H, T, K).astype(np.float64))
    else:
      heads = (x @ inside.params[f'{block}/attention/{name}']).reshape(B, T, H, K)
      projected.append(heads.transpose(0, 2, 1, 3))
  q, k = rotated(projected[0]), rotated(projected[1])
  scale = {'inverse_sqrt': np.sqrt(K), 'inverse': K}[inside.c['model.attention_scale']]
  logits = q @ k.swapaxes(-1, -2) / scale
  if inside.c['model.attention'] == 'squared_relu':
    weights = np.where(CAUSAL, np.maximum(logits, 0), 0) ** 2
    sums = weights.sum(-1, keepdims=True)
    assert (sums == 0).any()  # a row without weights has no entropy
    return q, k, logits, np.divide(weights, sums, out=0 * weights, where=sums > 0)
  cap = inside.c['model.attention_soft_cap']
  capped = cap * np.tanh(logits / cap) if cap else logits
  return q, k, logits, special.softmax(np.where(CAUSAL, capped, -np.inf), axis=-1)


@pytest.mark.parametrize('block', ['block_0', 'block_1'])
def test_attention_and_stream(inside, block):
  q, k, logits, weights = attention(inside, block)
  entropy_H = special.entr(weights).sum(-1).mean((0, 2))
  assert np.ptp(entropy_H) > 1e-3  # the smallest head is not the mean
  norms = np.linalg.norm(q, axis=-1)[..., None] * np.linalg.norm(k, axis=-1)[..., None, :]
  cosines = q @ k.swapaxes(-1, -2) / norms
  best = np.where(CAUSAL, logits, -np.inf).argmax(-1)[..., None]
  expected = {
      'query_key_cosine': np.take_along_axis(cosines, best, axis=-1).mean(),
      'attention_logit_max': logits[..., CAUSAL].max(),
      'attention_logit_mean': logits[..., CAUSAL].mean(),
      'attention_entropy': entropy_H.mean(),
      'attention_entropy_min': entropy_H.min(),
      'query_norm': np.linalg.norm(q, axis=-1).mean(),
      'key_norm': np.linalg.norm(k, axis=-1).mean(),
      'output_rms': rms(inside.outputs[block]),
  }
  for name, value in expected.items():
    assert inside.metrics[f'{block}/{name}'] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize('probed', ['default'], indirect=True)  # whose largest logit is masked
def test_masked_logits_are_ignored(inside):
  """The largest logit is of a query and a later key; it is not reported."""
  hidden = 0
  for block in ('block_0', 'block_1'):
    _, _, logits, _ = attention(inside, block)
    hidden += logits.max() > 1.01 * logits[..., CAUSAL].max()
    assert inside.metrics[f'{block}/attention_logit_max'] < 1.01 * logits[..., CAUSAL].max()
  assert hidden


def test_entropy_of_uniform_attention(probed, text):
  """Position t has t + 1 equal weights, ln(t + 1) nats, in every head; with ReLU, no weights."""
  run, state, step = probed
  params = flat(state['params'])
  for name in params:
    if name.endswith(('attention/query', 'qk_norm_query/scale')):
      params[name] = np.zeros_like(params[name])
  _, metrics = step(text, state | {'params': traverse_util.unflatten_dict(params, sep='/')})
  softmax = run.static.model.attention == 'softmax'
  expected = np.log(np.arange(1, T + 1)).mean() if softmax else 0
  for block in ('block_0', 'block_1'):
    assert metrics[f'{block}/attention_logit_max'] == 0
    assert metrics[f'{block}/query_key_cosine'] == 0
    for name in ('attention_entropy', 'attention_entropy_min'):
      assert float(metrics[f'{block}/{name}']) == pytest.approx(expected, rel=1e-5)


def test_activations(inside):
  params, outputs, metrics = inside.params, inside.outputs, inside.metrics
  expected = {'embedding': params['embedding'][inside.inputs]}
  expected['logits'] = outputs['final_norm'] @ params['head']
  for i in range(2):
    hidden = outputs[f'block_{i}/mlp_norm'] @ params[f'block_{i}/mlp/up']
    gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    expected[f'block_{i}/mlp/hidden'] = gelu
    expected[f'block_{i}/mlp/output'] = outputs[f'block_{i}/mlp']
    expected[f'block_{i}/attention/output'] = outputs[f'block_{i}/attention']
  found = {name for name in metrics if name.startswith('activation_rms/')}
  assert found == {f'activation_rms/{path}' for path in expected}
  for path, value in expected.items():
    assert metrics[f'activation_rms/{path}'] == pytest.approx(rms(value), rel=1e-4), path


def test_output_logits(inside):
  """output_logit is of the head's output, log_z of the softmax's input, which may be capped."""
  capped = inside.outputs['__call__'].astype(np.float64)
  log_z = special.logsumexp(capped, axis=-1).mean()
  logits = inside.outputs['final_norm'].astype(np.float64) @ inside.params['head']
  assert (np.abs(logits - capped).max() > 0.1) == (inside.c['model.output_soft_cap'] > 0)
  assert inside.metrics['output_logit_mean'] == pytest.approx(logits.mean(), rel=1e-4, abs=1e-6)
  assert inside.metrics['output_logit_max'] == pytest.approx(logits.max(), rel=1e-4)
  assert inside.metrics['log_z'] == pytest.approx(log_z, rel=1e-5)


def test_parameters_gradients_and_updates(inside):
  """Gradients are those before clipping, updates those that Adam returns (here, its first)."""
  norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in inside.gradients.values()))
  assert inside.metrics['gradient_norm'] == pytest.approx(norm, rel=1e-4)
  assert norm > 0.2  # it is clipped to 0.1
  for path, gradient in inside.gradients.items():
    clipped = gradient.astype(np.float64) * 0.1 / norm
    expected = {
        'parameter_rms': rms(inside.params[path]),
        'gradient_rms': rms(gradient),
        'gradient_over_eps': rms(gradient) / 1e-3,
        'update_rms': rms(clipped / (np.abs(clipped) + 1e-3)),
    }
    for kind, value in expected.items():
      assert inside.metrics[f'{kind}/{path}'] == pytest.approx(value, rel=1e-4), (kind, path)
    if gradient.ndim == 2:
      rate = inside.metrics['learning_rate'] * expected['update_rms'] / expected['parameter_rms']
      found = inside.metrics[f'effective_learning_rate/{path}']
      assert found == pytest.approx(rate, rel=1e-4), path


@pytest.mark.parametrize(
    'name, acts', [('adamw', (True, True)), ('muon', (False, True)), ('lion', (False, False))]
)
def test_eps_that_does_not_act_is_not_compared(name, acts):
  """Muon's guards the norm of a matrix, Lion has none."""
  params = {'block_0': {'mlp': {'up': np.ones((2, 2))}}, 'head': np.ones((2, 2))}
  inside = probes.Inside(
      params=params,
      gradients=params,
      updates=params,
      moves=params,
      hparams={'optimizer.eps': 0.5},
      static={'optimizer': {'name': name}},
  )
  (term,) = (term for term in probes.INSIDE if term.name == 'gradients')
  found = term.make(inside)
  assert {path.partition('/')[0] for path in found} == (
      {'gradient_rms'} | ({'gradient_over_eps'} if any(acts) else set())
  )
  present = tuple(f'gradient_over_eps/{path}' in found for path in ('block_0/mlp/up', 'head'))
  assert present == acts


def test_gains_that_a_norm_undoes_raise_no_alarm(tiny, text):
  """The gradient of WeSaR's gain of queries, under qk-layernorm, is rounding errors."""
  run = tiny({'model.kernel': 'wesar'})
  programs = train_step.programs(run.static, vocabulary_size=64)
  _, metrics = compiled(programs.steps['probed'])(text, compiled(programs.init)(run.hparams))
  metrics = {name: float(value) for name, value in metrics.items()}
  gain = 'block_0/attention/query_reparam/gain'
  assert metrics[f'gradient_rms/{gain}'] < 1e-3 * metrics['gradient_rms/block_0/attention/query']
  assert f'update_rms/{gain}' not in metrics and 'update_rms/block_0/attention/query' in metrics
  assert Monitor().observe(metrics) == []


@pytest.mark.parametrize(
    'zeros',
    [
        {
            'parameterization.name': 'muparam_full',
            'init.head': 'zero',
            'probe.stable_rank': 'power_iteration',
            'probe.qk_spectral_entropy': 'svd',
        },
        {'adapter.kind': 'lora', 'adapter.rank': 2},
    ],
    ids=['queries_and_head', 'lora'],
)
def test_matrices_that_begin_at_zero_raise_no_alarm(tiny, text, zeros):
  run = tiny(zeros)
  programs = train_step.programs(run.static, vocabulary_size=64)
  _, metrics = compiled(programs.steps['probed'])(text, compiled(programs.init)(run.hparams))
  metrics = {name: float(value) for name, value in metrics.items()}
  undefined = {name.partition('/')[0] for name, v in metrics.items() if not np.isfinite(v)}
  assert undefined == {'effective_learning_rate'}
  assert Monitor().observe(metrics) == []


@pytest.mark.parametrize(
    'changed',
    [
        {'optimizer.learning_rate': np.float32(1)},
        {'optimizer.weight_decay': np.float32(0.1)},
        {'schedule.warmup_steps': np.int32(10)},
    ],
)
def test_probes_ignore_learning_rate_schedule_and_decay(probed, text, changed):
  """Bit for bit on one state: update_rms is that of the direction only."""
  run, state, step = probed
  one, one_metrics = jax.device_get(step(text, state))
  other, other_metrics = jax.device_get(step(text, state | {'hparams': run.hparams | changed}))
  assert (one['params']['head'] != other['params']['head']).any()

  def same(metrics):
    return {name: value for name, value in metrics.items() if 'learning_rate' not in name}

  assert same(one_metrics) == same(other_metrics)


def test_spectra_are_of_the_matrices_that_layers_multiply_by():
  """With model.kernel=multipliers, those of r_i W_ij c_j, against NumPy's singular values."""
  rng = np.random.default_rng(0)
  attention = {}
  for name in ('query', 'key'):
    attention[name] = np.float32(rng.normal(size=(8, 8)))
    row, column = np.float32(np.exp(rng.normal(size=(2, 8))))
    attention[f'{name}_reparam'] = {'row': row, 'column': column}
  inside = probes.Inside(
      params={'block_0': {'attention': attention}, 'head': np.eye(8, dtype=np.float32)},
      gradients={},
      updates={},
      moves={},
      hparams={},
      static={'model': {'head_dim': 8, 'kernel': 'multipliers'}},
  )
  terms = {term.name: term.make(inside) for term in probes.INSIDE if term.when}
  query, key = (
      kernels.Multipliers().apply({'params': attention[f'{name}_reparam']}, attention[name])
      for name in ('query', 'key')
  )
  ranks = {'block_0/attention/query': query, 'block_0/attention/key': key, 'head': np.eye(8)}
  assert terms['stable_ranks'].keys() == {f'stable_rank/{path}' for path in ranks}
  for path, matrix in ranks.items():
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    found = terms['stable_ranks'][f'stable_rank/{path}']
    # Power iteration stops before it has converged.
    assert found == pytest.approx(squares.sum() / squares[0], rel=1e-3), path
  squares = np.linalg.svd(query @ key.T, compute_uv=False) ** 2
  expected = special.entr(squares / squares.sum()).sum() / np.log(8)
  found = terms['qk_spectral_entropies']['block_0/qk_spectral_entropy']
  assert found == pytest.approx(expected, rel=1e-4)  # float32


def test_acted(tiny):
  """A transformation that changes nothing is inert, such as a clipping above the norm."""
  run = tiny({'optimizer.update_mask': 'cautious'})
  params = {'a': np.ones((2, 3), np.float32), 'b': np.ones(3, np.float32)}
  state = optimizers.make_optimizer(run.hparams, run.static).init(params)
  _, state = optimizers.make_optimizer(run.hparams, run.static).update(
      params, state, params, learning_rate=1e-3, loss=1.0
  )
  same, opposite = params, {'a': params['a'], 'b': -0.1 * params['b']}
  for clip_norm, gradients, acted in ((2.9, same, (1, 0)), (3.1, opposite, (0, 1))):
    watch = probes.Acted()  # the norm is 3
    hparams = run.hparams | {'optimizer.clip_norm': np.float32(clip_norm)}
    optimizers.make_optimizer(hparams, run.static, watch).update(
        gradients, state, params, learning_rate=1e-3, loss=1.0
    )
    assert watch.found == dict(zip(('acted/clip_norm', 'acted/cautious'), acted, strict=True))


def test_acted_in_any_place():
  watch = probes.Acted()
  tree = {'a': np.zeros(3), 'b': np.zeros(2)}
  watch('x', tree, tree | {'b': np.float32([0, 1e-9])})
  watch('x', tree, dict(tree))
  watch('y', tree, dict(tree))
  watch('nan', {'a': np.float32([np.nan, 1])}, {'a': np.float32([np.nan, 1])})
  watch('to nan', {'a': np.float32([0, 1])}, {'a': np.float32([np.nan, 1])})
  assert watch.found == {'acted/x': 1, 'acted/y': 0, 'acted/nan': 0, 'acted/to nan': 1}


def test_names(inside):
  """Probes have exactly the names of the file contract."""
  of_blocks = ('query_norm', 'key_norm', 'output_rms')
  of_blocks += ('attention_logit_max', 'attention_logit_mean')
  of_blocks += ('attention_entropy', 'attention_entropy_min', 'query_key_cosine')
  names = {'step', 'diverged', 'loss', 'z_loss', 'learning_rate', 'gradient_norm'}
  names |= {'acted/clip_norm'}
  if inside.c['model.output_centering'] == 'mean':
    names |= {'acted/mu_centering'}
  names |= {'output_logit_mean', 'output_logit_max', 'log_z'}
  names |= {f'block_{i}/{name}' for i in range(2) for name in of_blocks}
  kinds = ('parameter_rms', 'gradient_rms', 'update_rms', 'gradient_over_eps')
  names |= {f'{kind}/{path}' for kind in kinds for path in inside.params}
  matrices = [path for path, value in inside.params.items() if value.ndim == 2]
  names |= {f'effective_learning_rate/{path}' for path in matrices}
  if inside.c['probe.stable_rank'] != 'none':
    names |= {f'stable_rank/{path}' for path in matrices}
  if inside.c['probe.qk_spectral_entropy'] != 'none':
    names |= {f'block_{i}/qk_spectral_entropy{end}' for i in range(2) for end in ('', '_min')}
  measured = {name for name in inside.metrics if not name.startswith('activation_rms/')}
  assert measured == names
