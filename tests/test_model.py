"""Properties of the Transformer; its numbers are checked against PyTorch in test_reference.py."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from stability import attention, layers
from stability import config as config_lib
from stability import model as model_lib
from stability import objective as objective_lib

T = 16
# Optimizing machine code takes most of a compile; what is computed stays the same.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def network(run, vocabulary_size=64):
  return model_lib.Transformer(run.static.model, vocabulary_size)


def apply(run, params, tokens):
  return network(run).apply({'params': params}, tokens, run.hyper)


@functools.cache
def compiled_init(c, vocabulary_size):
  return compiled(model_lib.Transformer(c, vocabulary_size).init)


def initial(run, vocabulary_size=64, seed=0):
  tokens = jnp.zeros((1, T), jnp.int32)
  init = compiled_init(run.static.model, vocabulary_size)
  return init(jax.random.key(seed), tokens, run.hyper)['params']


def abstract(run):
  """Shapes and dtypes of the parameters, by path."""
  tokens = jnp.zeros((1, T), jnp.int32)
  params = jax.eval_shape(network(run).init, jax.random.key(0), tokens, run.hyper)['params']
  return traverse_util.flatten_dict(params, sep='/')


@pytest.fixture(
    scope='module',
    params=[
        {},
        {'model.qk_norm': 'none'},
        {'model.attention': 'squared_relu', 'model.attention_gate': 'sigmoid'},
    ],
)
def started(request, tiny):
  """A network as a function of parameters and tokens, and its initial parameters."""
  run = tiny(request.param)
  return functools.partial(apply, run), initial(run)


def test_causal_by_gradients(started):
  """No logit depends on the embedding of a later token; each on those of all earlier ones."""
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


def test_later_tokens_leave_earlier_logits_as_they_are(started):
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


def test_rope_turns_pairs_by_their_frequencies():
  """(x_i, x_{i + K/2}) as a complex number, times exp(i t base^(-2i/K))."""
  x = np.random.default_rng(0).normal(size=(3, 50, 8)).astype(np.float32)
  angle = np.outer(np.arange(50), 10_000.0 ** (-np.arange(4) / 4))
  expected = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
  got = np.asarray(attention.rope(x))
  np.testing.assert_allclose(got[..., :4], expected.real, atol=1e-6)
  np.testing.assert_allclose(got[..., 4:], expected.imag, atol=1e-6)


def test_rope_is_relative():
  """A product of query and key depends on their distance alone; norms stay."""
  rng = np.random.default_rng(0)
  q, k = (np.tile(rng.normal(size=16).astype(np.float32), (1, 64, 1)) for _ in range(2))
  rotated_q, rotated_k = np.asarray(attention.rope(q))[0], np.asarray(attention.rope(k))[0]
  products = rotated_q @ rotated_k.T
  by_distance = []
  for distance in range(-63, 64):
    diagonal = np.diagonal(products, distance)
    np.testing.assert_allclose(diagonal, diagonal[0], atol=2e-5)
    by_distance.append(diagonal[0])
  assert np.std(by_distance) > 0.5
  np.testing.assert_allclose(np.linalg.norm(rotated_q, axis=-1), np.linalg.norm(q[0, 0]), rtol=1e-6)
  np.testing.assert_array_equal(rotated_q[0], q[0, 0])


def test_an_untrained_model_knows_nothing(tiny):
  """Its loss is that of logits drawn from the unit normal, ln(vocabulary) + 1/2."""
  run = tiny({'model.width': 64, 'model.depth': 1})
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 256, (32, T + 1), np.int32)
  params = {'params': initial(run, 256)}
  logits = compiled(network(run, 256).apply)(params, rows[:, :-1], run.hyper)
  loss = float(objective_lib.cross_entropy(logits, rows[:, 1:]))
  assert loss == pytest.approx(np.log(256), rel=0.1)
  assert loss == pytest.approx(np.log(256) + 0.5, rel=0.02)
  assert float(logits.std()) == pytest.approx(1, rel=0.05)


def test_qk_layernorm_bounds_attention_logits(tiny):
  """At scale 1 by sqrt(head_dim), met where key and query agree; without it nothing does."""
  rng = np.random.default_rng(0)
  x, *kernels = rng.normal(size=(4, 32, 32)).astype(np.float32)
  params = dict(zip(('query', 'value', 'output'), kernels))
  params['key'] = params['query']
  scales = {name: {'scale': np.ones(16, np.float32)} for name in ('qk_norm_query', 'qk_norm_key')}

  def largest(qk_norm, params):
    run = tiny({'model.qk_norm': qk_norm})
    module = attention.Attention(run.static.model)
    apply = compiled(functools.partial(module.apply, mutable=[layers.PROBES]))
    _, sown = apply({'params': params}, x[None], run.hyper)
    return float(sown[layers.PROBES]['attention_logit_max'][0])

  assert largest('layernorm', params | scales) == pytest.approx(4, rel=1e-5)
  assert largest('none', params) > 100


def test_parameters_of_the_default_model(tiny):
  block = {
      'attention_norm/scale': (32,),
      'attention/query': (32, 32),
      'attention/key': (32, 32),
      'attention/value': (32, 32),
      'attention/output': (32, 32),
      'attention/qk_norm_query/scale': (16,),  # of a head: shared by both
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
  """Embedding: normal, std 1/sqrt(width); matrices: cut normal, std 1/sqrt(fan_in); scales: 1."""
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
    cut = 2 / 0.87962566  # two standard deviations, before cutting made it smaller
    if path == 'embedding':
      assert np.abs(unit).max() > 3
    else:
      assert 0.98 * cut < np.abs(unit).max() <= cut * (1 + 1e-5), path


def test_seeds_and_places_start_apart(tiny):
  params, other = initial(tiny()), initial(tiny(), seed=1)
  squares = {}
  for name, tree in {'seed 0': params, 'seed 1': other}.items():
    for path, value in traverse_util.flatten_dict(jax.device_get(tree), sep='/').items():
      if value.ndim == 2:
        squares[name, path] = value[:32, :32].tobytes()
  assert len(set(squares.values())) == len(squares) == 2 * (2 * 6 + 2)


def equations(jaxpr):
  """All of a jaxpr, those of its inner ones included."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def test_bfloat16_is_of_the_products_alone(tiny):
  """Products take bfloat16; parameters, logits, softmax and norms' statistics are float32."""
  exact, rounded = tiny(), tiny({'model.dtype': 'bfloat16'})
  params = initial(exact)
  tokens = np.random.default_rng(0).integers(0, 64, (4, T), np.int32)

  jaxpr = jax.make_jaxpr(functools.partial(apply, rounded))(params, tokens).jaxpr
  dtypes = {}  # primitive -> those that go in, those that come out
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
