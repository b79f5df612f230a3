"""Properties of the Transformer; its numbers are checked against PyTorch in test_reference.py."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from stability import config as config_lib
from stability.model import attention_stats, measure
from stability.model import norms as norms_lib
from stability.model import transformer as transformer_lib
from stability.step import objective as objective_lib

T = 16
# Optimization takes most of the compile time and does not change the results.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module')
def tiny(tiny):
  """Tiny runs of two blocks."""
  return lambda overrides=None: tiny({'model.depth': 2} | (overrides or {}))


def network(run, vocabulary_size=64):
  return transformer_lib.Transformer(run.static.model, vocabulary_size)


def apply(run, params, tokens):
  return network(run).apply({'params': params}, tokens, run.hparams)


@functools.cache
def compiled_init(c, vocabulary_size):
  return compiled(transformer_lib.Transformer(c, vocabulary_size).init)


def initial(run, vocabulary_size=64, seed=0):
  tokens = jnp.zeros((1, T), jnp.int32)
  init = compiled_init(run.static.model, vocabulary_size)
  return init(jax.random.key(seed), tokens, run.hparams)['params']


def abstract(run):
  """Shapes and dtypes of the parameters, by path."""
  tokens = jnp.zeros((1, T), jnp.int32)
  params = jax.eval_shape(network(run).init, jax.random.key(0), tokens, run.hparams)['params']
  return traverse_util.flatten_dict(params, sep='/')


@pytest.fixture(scope='module', params=['layernorm', 'none'])
def started(request, tiny):
  """A network as a function of parameters and tokens, and its initial parameters."""
  run = tiny({'model.qk_norm': request.param})
  return functools.partial(apply, run), initial(run)


def test_causal_by_gradients(started):
  """No logit depends on the embedding of a later token; each depends on all earlier ones."""
  logits_of, params = started
  rng = np.random.default_rng(0)
  tokens = rng.permutation(64)[:T].astype(np.int32)  # distinct: an embedding is of one position
  cotangents = np.zeros((T, T, 64), np.float32)
  cotangents[np.arange(T), np.arange(T)] = rng.normal(size=(T, 64))

  def sensitivity(embedding):
    def logits(embedding):
      return logits_of(params | {'embedding': embedding}, tokens[None])[0]

    _, pull_back = jax.vjp(logits, embedding)
    return jax.vmap(pull_back)(cotangents)[0]

  gradients = compiled(sensitivity)(params['embedding'])
  influence = np.abs(gradients[:, tokens]).max(-1)  # of position s on the logits of position t
  later = np.triu(np.ones((T, T), bool), 1)
  assert (influence[later] == 0).all()
  assert (influence[~later] > 0).all()


def test_later_tokens_do_not_change_earlier_logits(started):
  logits_of, params = started
  forward = compiled(functools.partial(logits_of, params))
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 64, (2, T), np.int32)
  logits = np.asarray(forward(tokens))
  for t in (1, T // 2, T - 1):
    changed = tokens.copy()
    changed[:, t:] = (tokens[:, t:] + rng.integers(1, 64, (2, T - t))) % 64
    changed_logits = np.asarray(forward(changed))
    np.testing.assert_array_equal(changed_logits[:, :t], logits[:, :t])
    assert (changed_logits[:, t:] != logits[:, t:]).any(-1).all()


def test_initial_loss(tiny):
  """The loss is that of logits from the unit normal, ln(vocabulary) + 1/2."""
  run = tiny({'model.width': 64, 'model.depth': 1})
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 256, (32, T + 1), np.int32)
  params = {'params': initial(run, 256)}
  logits = compiled(network(run, 256).apply)(params, rows[:, :-1], run.hparams)
  loss = float(objective_lib.cross_entropy(logits, rows[:, 1:]))
  assert loss == pytest.approx(np.log(256), rel=0.1)
  assert loss == pytest.approx(np.log(256) + 0.5, rel=0.02)
  assert float(logits.std()) == pytest.approx(1, rel=0.05)


def test_parameters_of_the_default_model(tiny):
  block = {
      'attention_norm/scale': (32,),
      'attention/query': (32, 32),
      'attention/key': (32, 32),
      'attention/value': (32, 32),
      'attention/output': (32, 32),
      'attention/qk_norm_query/scale': (16,),  # over a head; shared by both heads
      'attention/qk_norm_key/scale': (16,),
      'mlp_norm/scale': (32,),
      'mlp/up': (32, 128),
      'mlp/down': (128, 32),
  }
  expected = {f'block_{i}/{name}': shape for i in range(2) for name, shape in block.items()}
  expected |= {'embedding': (64, 32), 'final_norm/scale': (32,), 'head': (32, 64)}
  assert {path: leaf.shape for path, leaf in abstract(tiny()).items()} == expected


@pytest.mark.parametrize(
    'overrides',
    [
        {},
        {'model.depth': 0},
        {'model.qk_norm': 'none'},
        {'model.dtype': 'bfloat16'},
        {'model.width': 48, 'model.depth': 5, 'model.head_dim': 8},
    ],
)
def test_parameters_count_the_matrices_of_the_blocks(tiny, overrides):
  run = tiny(overrides)
  leaves = abstract(run)
  matrices = [v for path, v in leaves.items() if path.startswith('block_') and v.ndim == 2]
  assert sum(leaf.size for leaf in matrices) == config_lib.parameters(run.config)
  assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype('float32')}


def test_initial_parameters(tiny):
  """Embedding: normal, std 1/sqrt(width); matrices: truncated, std 1/sqrt(fan_in); scales: 1."""
  params = initial(tiny({'model.width': 128, 'model.depth': 1}), 256)
  leaves = traverse_util.flatten_dict(jax.device_get(params), sep='/')
  for path, value in leaves.items():
    if path.endswith('scale'):
      np.testing.assert_array_equal(value, 1)
      continue
    width = value.shape[1 if path == 'embedding' else 0]
    unit = value * np.sqrt(width)
    assert np.std(unit) == pytest.approx(1, rel=0.02), path
    assert np.mean(unit) == pytest.approx(0, abs=0.04), path
    cut = 2 / 0.87962566  # two standard deviations of the normal before truncation
    if path == 'embedding':
      assert np.abs(unit).max() > 3
    else:
      assert 0.98 * cut < np.abs(unit).max() <= cut * (1 + 1e-5), path


def test_initial_parameters_differ(tiny):
  params, other = initial(tiny()), initial(tiny(), seed=1)
  squares = {}
  for name, tree in {'seed 0': params, 'seed 1': other}.items():
    for path, value in traverse_util.flatten_dict(jax.device_get(tree), sep='/').items():
      if value.ndim == 2:
        squares[name, path] = value[:32, :32].tobytes()
  assert len(set(squares.values())) == len(squares) == 2 * (2 * 6 + 2)


def equations(jaxpr):
  """All equations of a jaxpr, including those of inner jaxprs."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def test_bfloat16_is_for_activations_only(tiny):
  """Products take bfloat16; parameters, logits, softmax and norms' statistics are float32."""
  exact, rounded = tiny(), tiny({'model.dtype': 'bfloat16'})
  params = initial(exact)
  tokens = np.random.default_rng(0).integers(0, 64, (4, T), np.int32)

  jaxpr = jax.make_jaxpr(functools.partial(apply, rounded))(params, tokens).jaxpr
  dtypes = {}  # primitive -> dtypes of inputs, dtypes of outputs
  for equation in equations(jaxpr):
    into, out = dtypes.setdefault(equation.primitive.name, ([], []))
    into += [variable.aval.dtype.name for variable in equation.invars]
    out += [variable.aval.dtype.name for variable in equation.outvars]
  # A block: queries, keys and values at once, logits, values, output; up and down. And the head.
  assert dtypes['dot_general'][0] == ['bfloat16'] * 2 * (6 * 2 + 1)
  assert dtypes['dot_general'][1].count('float32') == 2 + 1  # attention logits, output logits
  assert dtypes['exp'][0] == ['float32'] * 2  # the softmax of each block
  assert set(dtypes['rsqrt'][0]) == {'float32'}
  assert [variable.aval.dtype.name for variable in jaxpr.outvars] == ['float32']

  pair = compiled(lambda p: (apply(exact, p, tokens), apply(rounded, p, tokens)))(params)
  assert 1e-4 < float(jnp.abs(pair[0] - pair[1]).max()) < 0.1  # of logits of order 1


@pytest.mark.slow
def test_gradients_in_bfloat16(tiny):
  """Gradients are those of float32 up to rounding, even of a very frequent token.

  Accumulated in bfloat16, thousands of small gradients of one row would give a fraction of their
  sum. Rounding of 0.4 % in each layer gives at most 1.6 %; three times that is allowed.
  """
  tokens = np.random.default_rng(0).integers(0, 64, (512, T), np.int32)
  tokens[:, ::2] = 7

  def gradients(run):
    def loss(params):
      return objective_lib.cross_entropy(apply(run, params, tokens[:, :-1]), tokens[:, 1:])

    return compiled(jax.grad(loss))(params)

  params = initial(tiny())
  exact, rounded = gradients(tiny()), gradients(tiny({'model.dtype': 'bfloat16'}))
  apart = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(a), exact, rounded)
  assert max(jax.tree.leaves(apart)) < 0.05, apart


def test_measurements_of_bfloat16_are_in_float32():
  """Measurements are exact within the rounding of float32."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 30, 64)) * 30, jnp.bfloat16)
  exact = np.asarray(x, np.float64)
  squares = np.square(exact).mean(-1, keepdims=True)
  assert float(measure.rms(x)) == pytest.approx(np.sqrt(squares.mean()), rel=1e-5)
  np.testing.assert_allclose(norms_lib.unit_rms(x), exact / np.sqrt(squares), rtol=1e-5)
  norms = np.asarray(attention_stats.norms(x))
  np.testing.assert_allclose(norms, np.linalg.norm(exact, axis=-1), rtol=1e-5)


def test_layernorm_of_a_stream_with_a_large_mean():
  """E[x^2] - E[x]^2 would lose all digits; a float32 near 1e4, and its mean, is exact to 1e-3."""
  noise = np.random.default_rng(0).normal(size=(4, 64))
  x = (1e4 + noise).astype(np.float32)
  centred = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
  module = norms_lib.norm('layernorm', 'float32', None)
  found = module.apply({'params': {'scale': np.ones(64, np.float32)}}, x)
  np.testing.assert_allclose(found, centred / centred.std(-1, keepdims=True), atol=2e-2)


# Everything that adds parameters; options of the same place are in another dict.
ALL_ON = {
    'model.norm': 'rmsnorm',
    'model.norm_position': 'peri',
    'model.qk_norm': 'l2',
    'model.attention': 'squared_relu',
    'model.attention_gate': 'sigmoid',
}
OTHERS_ON = {
    'model.norm': 'dyt',
    'model.norm_position': 'rezero',
    'model.embedding_skip': 'learned',
    'model.kernel': 'multipliers',
}


@pytest.mark.slow
@pytest.mark.parametrize('overrides', [ALL_ON, OTHERS_ON], ids=['all', 'others'])
def test_variants_have_the_same_initial_kernels(tiny, overrides):
  """Interventions are compared from the same initial weights."""

  def kernels(overrides):
    leaves = traverse_util.flatten_dict(jax.device_get(initial(tiny(overrides))), sep='/')
    return {path: value for path, value in leaves.items() if value.ndim == 2}

  plain, changed = kernels({}), kernels(overrides)
  gates = {f'block_{i}/attention/gate' for i in range(2)}
  assert changed.keys() - plain.keys() == (gates if 'model.attention_gate' in overrides else set())
  for path, value in plain.items():
    np.testing.assert_array_equal(changed[path], value, err_msg=path)


QK_SCALES = {  # name under 'block_i/attention/' -> shape
    'layernorm': {'qk_norm_query/scale': (16,), 'qk_norm_key/scale': (16,)},
    'layernorm_model': {'qk_norm_query/scale': (32,), 'qk_norm_key/scale': (32,)},
    'rmsnorm': {'qk_norm_query/scale': (16,), 'qk_norm_key/scale': (16,)},
    'l2': {'logit_scale': ()},
    'ngpt': {'qk_scale': (32,)},  # of queries and keys alike, per head
    'fixed': {},
    'none': {},
}


@pytest.mark.parametrize('qk_norm', QK_SCALES)
def test_parameters_of_qk_norms(tiny, qk_norm):
  plain, changed = (abstract(tiny({'model.qk_norm': kind})) for kind in ('none', qk_norm))
  added = {path: changed[path].shape for path in changed.keys() - plain.keys()}
  prefixes = [f'block_{i}/attention/' for i in range(2)]
  assert added == {p + name: shape for p in prefixes for name, shape in QK_SCALES[qk_norm].items()}


def test_parameters_of_peri_ln_and_gates(tiny):
  changed = tiny({'model.norm_position': 'peri', 'model.attention_gate': 'sigmoid'})
  added = ('attention/gate', 'attention_output_norm/scale', 'mlp_output_norm/scale')
  expected = {f'block_{i}/{name}' for i in range(2) for name in added}
  assert abstract(changed).keys() - abstract(tiny()).keys() == expected
  # Gates are matrices, but are not counted.
  assert config_lib.parameters(changed.config) == config_lib.parameters(tiny().config)


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['layernorm', 'rmsnorm'])
def test_peri_adds_unit_outputs(tiny, norm):
  """At the start, each position gains a vector of RMS 1 from attention and one from the MLP."""
  run = tiny({'model.norm_position': 'peri', 'model.norm': norm})
  params = initial(run)
  tokens = np.random.default_rng(0).integers(0, 64, (2, T), np.int32)

  def streams(params):
    _, found = network(run).apply(
        {'params': params},
        tokens,
        run.hparams,
        capture_intermediates=True,
        mutable=['intermediates'],
    )
    return found['intermediates']

  found = traverse_util.flatten_dict(compiled(streams)(params), sep='/')
  stream = params['embedding'][tokens]
  for i in range(2):
    added = [found[f'block_{i}/{name}_output_norm/__call__'][0] for name in ('attention', 'mlp')]
    for out in added:
      rms_BxT = np.sqrt(np.square(out).mean(-1))
      np.testing.assert_allclose(rms_BxT, 1, atol=1e-3)
      assert (np.abs(out.mean(-1)) < 1e-5).all() == (norm == 'layernorm')
    stream = stream + added[0] + added[1]
    np.testing.assert_allclose(found[f'block_{i}/__call__'][0][0], stream, atol=1e-5)


def test_output_soft_cap(tiny):
  """The cap bounds logits for any head, and does not change small ones."""
  run = tiny({'model.output_soft_cap': 0.5, 'model.depth': 0})
  params, tokens = initial(run), np.arange(T, dtype=np.int32)[None]
  forward = compiled(functools.partial(apply, run))
  head = params['head']
  assert float(np.abs(forward(params | {'head': 1e6 * head}, tokens)).max()) == 0.5
  small, smaller = (np.asarray(forward(params | {'head': s * head}, tokens)) for s in (2e-3, 1e-3))
  np.testing.assert_allclose(small, 2 * smaller, rtol=1e-4)


def test_dyt():
  """Gives scale * tanh(alpha x) + bias, with alpha = 0.5 at first; there are no statistics."""
  x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
  module = norms_lib.norm('dyt', 'float32', None)
  start = jax.device_get(module.init(jax.random.key(0), x)['params'])
  assert start['alpha'] == 0.5 and (start['scale'] == 1).all() and (start['bias'] == 0).all()
  scale, bias = np.linspace(0.5, 1.5, 8), np.linspace(-1, 1, 8)
  params = {'alpha': np.float32(0.7), 'scale': np.float32(scale), 'bias': np.float32(bias)}
  found = module.apply({'params': params}, x)
  np.testing.assert_allclose(found, scale * np.tanh(0.7 * np.float64(x)) + bias, atol=1e-6)
