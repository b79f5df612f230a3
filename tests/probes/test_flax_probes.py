"""Probes of Flax models against explicit computations in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import stability
from stability.probes import flax_probes

B, T, D, H, V = 2, 7, 16, 4, 11
K = D // H
FUNCTIONS = jax.nn.softmax, nn.softmax, jax.nn.dot_product_attention
CAUSAL = np.tril(np.ones((T, T), bool))
TOKENS = np.random.default_rng(0).integers(V, size=(B, T))


LOWEST = float(np.finfo(np.float32).min)


def explicit(softmax, lowest=LOWEST):
  def attend(q, k, v):
    logits = jnp.einsum('btnk,bsnk->bnts', q, k) / K**0.5
    weights = softmax(jnp.where(CAUSAL, logits, lowest))
    return jnp.einsum('bnts,bsnk->btnk', weights, v)

  return attend


def where(q, k, v):
  logits = jnp.einsum('btnk,bsnk->bnts', q, k) / K**0.5
  return jnp.einsum('bnts,bsnk->btnk', jax.nn.softmax(logits, axis=3, where=CAUSAL), v)


def fused(**options):
  options = {name: jnp.array(x) if isinstance(x, list) else x for name, x in options.items()}
  return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **options)


class SelfAttention(nn.Module):
  attend: object

  @nn.compact
  def __call__(self, x):
    q, k, v = (nn.DenseGeneral((H, K), name=name)(x) for name in ('query', 'key', 'value'))
    self.sow('seen', 'qk', (q, k))
    return self.attend(q, k, v).reshape(x.shape)


class Block(nn.Module):
  attend: object

  @nn.compact
  def __call__(self, x):
    x += SelfAttention(self.attend, name='attention')(x)
    return x + nn.Dense(D, name='mlp')(x)


class Model(nn.Module):
  attend: object = None
  layers: int = 2
  block: type = Block

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(V, D)(tokens)
    for layer in range(self.layers):
      x = self.block(self.attend or fused(is_causal=True), name=f'block_{layer}')(x)
    return nn.Dense(V, name='head')(x)


def variables(model):
  return {'params': model.init(jax.random.key(0), TOKENS)['params']}


def rms(x):
  return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def close(value):
  return pytest.approx(value, rel=1e-5)


def logits_of(seen, block):
  """The attention logits of a block, [B, H, T, S], in float64."""
  ((q, k),) = seen[block]['attention']['qk']
  return np.einsum('btnk,bsnk->bnts', np.asarray(q, float), np.asarray(k, float)) / K**0.5


LENGTHS = np.arange(T) < np.array([T, 4])[:, None]  # [B, T]
DISTANCE = np.arange(T)[:, None] - np.arange(T)


@pytest.mark.parametrize(
    ('attend', 'mask'),
    [
        (fused(is_causal=True), CAUSAL),
        (fused(mask=CAUSAL[None, None], bias=np.full((1, 1, T, T), 5.0, np.float32)), CAUSAL),
        (fused(bias=np.where(CAUSAL, 5.0, -1e10).astype(np.float32)[None, None]), CAUSAL),
        (fused(bias=np.where(CAUSAL, 0.0, -np.inf).astype(np.float32)[None, None]), CAUSAL),
        (fused(scale=K**-0.5), True),
        (fused(key_value_seq_lengths=[T, 4]), LENGTHS[:, None, None, :]),
        (fused(query_seq_lengths=[T, 4]), LENGTHS[:, None, :, None]),
        (fused(local_window_size=(2, 1)), (DISTANCE <= 2) & (DISTANCE >= -1)),
        (fused(local_window_size=2), abs(DISTANCE) <= 2),
        (explicit(lambda x: jax.nn.softmax(x, -1)), CAUSAL),
        (explicit(lambda x: nn.softmax(x, axis=-1)), CAUSAL),
        (explicit(lambda x: jax.nn.softmax(x, -1), -1e9), CAUSAL),
        (where, CAUSAL),
    ],
)
def test_attention_logits(attend, mask):
  model = Model(attend)
  (_, state), row = flax_probes.apply(model, variables(model), TOKENS, mutable='seen')
  for block in ('block_0', 'block_1'):
    logits = logits_of(state['seen'], block)
    found = logits[np.broadcast_to(mask, logits.shape)]
    assert row[f'{block}/attention_logit_max'] == close(found.max())
    assert row[f'{block}/attention_logit_mean'] == close(found.mean())
  assert (jax.nn.softmax, nn.softmax, jax.nn.dot_product_attention) == FUNCTIONS


def test_scale_is_that_of_the_softmax():
  model, other = Model(fused(scale=3.0), layers=1), Model(fused(), layers=1)
  _, row = flax_probes.apply(model, variables(model), TOKENS)
  _, usual = flax_probes.apply(other, variables(model), TOKENS)
  ratio = row['block_0/attention_logit_max'] / usual['block_0/attention_logit_max']
  assert ratio == close(3.0 * K**0.5)


def test_grouped_queries_and_blocks_of_queries(monkeypatch):
  def grouped(q, k, v):
    return jax.nn.dot_product_attention(q, k[:, :, :2], v[:, :, :2], is_causal=True)

  monkeypatch.setattr(flax_probes, '_QUERIES', 3)
  model = Model(grouped, layers=1)
  (_, state), row = flax_probes.apply(model, variables(model), TOKENS, mutable=['seen'])
  ((q, k),) = state['seen']['block_0']['attention']['qk']
  k = np.asarray(k, float)[:, :, [0, 0, 1, 1]]
  logits = np.einsum('btnk,bsnk->bnts', np.asarray(q, float), k) / K**0.5
  found = logits[np.broadcast_to(CAUSAL, logits.shape)]
  assert row['block_0/attention_logit_max'] == close(found.max())
  assert row['block_0/attention_logit_mean'] == close(found.mean())


def test_multi_head_attention_of_flax():
  """In a model without modules for its blocks: the attention of a layer stands for the block."""

  class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
      for _ in range(12):
        x += nn.MultiHeadDotProductAttention(H)(x, mask=CAUSAL[None, None])
      return x

  x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
  model = Flat()
  params = model.init(jax.random.key(0), x)
  _, row = flax_probes.apply(model, params, x)
  first = params['params']['MultiHeadDotProductAttention_0']
  q, k = (
      np.einsum('btd,dnk->btnk', x.astype(float), np.asarray(first[name]['kernel'], float))
      for name in ('query', 'key')
  )
  logits = np.einsum('btnk,bsnk->bnts', q, k) / K**0.5
  found = logits[np.broadcast_to(CAUSAL, logits.shape)]
  assert row['block_0/attention_logit_max'] == close(found.max())
  assert row['block_0/attention_logit_mean'] == close(found.mean())
  assert {f'block_{n}/attention_logit_max' for n in range(12)} <= set(row)
  assert not any(name.endswith('output_rms') for name in row)


@pytest.mark.parametrize('block', [Block, nn.remat(Block)])
def test_under_jit_and_grad(block):
  """The row, the loss and the gradients are those without probes and without transformations."""
  model = Model(block=block)
  params = variables(model)
  _, expected = flax_probes.apply(Model(), params, TOKENS)

  def probed(variables):
    logits, row = flax_probes.apply(model, variables, TOKENS)
    return logits.mean(), row

  (loss, row), grads = jax.jit(jax.value_and_grad(probed, has_aux=True))(params)
  plain = jax.jit(jax.value_and_grad(lambda v: model.apply(v, TOKENS).mean()))(params)
  assert {name: float(x) for name, x in row.items()} == pytest.approx(
      {name: float(x) for name, x in expected.items()}, rel=1e-4
  )
  assert loss == close(float(plain[0]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, plain[1])


def one_by_one(attend):
  return lambda *qkv: jax.lax.map(lambda one: attend(*(x[None] for x in one))[0], qkv)


@pytest.mark.parametrize(
    ('transform', 'attend', 'whole'),
    [
        (jax.jit, fused(is_causal=True), lambda step: step),
        (jax.checkpoint, fused(is_causal=True), jax.jit),
        (one_by_one, explicit(lambda x: jax.nn.softmax(x, -1)), jax.jit),
    ],
)
def test_attention_that_is_transformed_within_a_module(transform, attend, whole):
  """Its logits are not seen; the output is unchanged."""
  model, plain = Model(transform(attend)), Model(attend)
  params = variables(plain)
  logits, row = whole(lambda params: flax_probes.apply(model, params, TOKENS))(params)
  expected, seen = flax_probes.apply(plain, params, TOKENS)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  assert row['log_z'] == close(float(seen['log_z']))
  assert 'block_1/attention_logit_max' in seen
  assert not any('attention_logit' in name for name in row)


def test_scanned_layers():
  """They have the numbers that they would have as modules of their own."""

  class Layer(Block):
    @nn.compact
    def __call__(self, x, _):
      return super().__call__(x), None

  class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
      axes = {'params': 0, flax_probes.COLLECTION: 0}
      scan = nn.scan(Layer, variable_axes=axes, split_rngs={'params': True}, length=3)
      return scan(fused(), name='layers')(x, None)[0]

  class Looped(nn.Module):
    @nn.compact
    def __call__(self, x):
      for number in range(3):
        x = Block(fused(), name=f'layers_{number}')(x)
      return x

  x = jax.random.normal(jax.random.key(1), (B, T, D))
  params = Scanned().init(jax.random.key(0), x)['params']
  _, row = flax_probes.apply(Scanned(), {'params': params}, x)
  each = {
      f'layers_{n}': jax.tree.map(lambda p, n=n: p[n], params['layers']) for n in range(3)
  }
  _, expected = flax_probes.apply(Looped(), {'params': each}, x)
  assert {name: float(v) for name, v in row.items()} == pytest.approx(
      {name: float(v) for name, v in expected.items()}, rel=1e-4
  )


def test_activations_and_log_z():
  model = Model()
  params = variables(model)
  logits, row = flax_probes.apply(model, params, TOKENS)
  _, state = model.apply(params, TOKENS, capture_intermediates=True)
  seen = state['intermediates']
  for block in ('block_0', 'block_1'):
    assert row[f'{block}/output_rms'] == close(rms(seen[block]['__call__'][0]))
    for name in ('attention', 'mlp'):
      expected = rms(seen[block][name]['__call__'][0])
      assert row[f'activation_rms/{block}/{name}'] == close(expected)
  assert row['log_z'] == close(np.log(np.exp(np.asarray(logits, float)).sum(-1)).mean())
  assert len(row) == 2 * 5 + 1


class Mixer(SelfAttention):
  """A block with attention in its own call, of which its name says nothing."""


@pytest.mark.parametrize('kind', [Mixer, SelfAttention])
def test_output_of_blocks_without_a_module_of_attention(kind):
  """A list of modules named after attention is one of attention alone, not of blocks."""
  model, x = nn.Sequential([kind(fused()), kind(fused())]), jnp.ones((2, 3, D))
  y, row = flax_probes.apply(model, model.init(jax.random.key(0), x), x)
  names = ('block_1/output_rms', 'activation_rms/block_1/layers_1')
  measured, other = names if kind is Mixer else names[::-1]
  assert row[measured] == close(rms(y)) and other not in row
  assert 'block_1/attention_logit_max' in row


def test_output_is_that_of_apply():
  model = Model()
  params = variables(model)
  logits, _ = flax_probes.apply(model, params, TOKENS)
  assert (logits == model.apply(params, TOKENS)).all()
  (_, state), _ = flax_probes.apply(model, params, TOKENS, mutable=['seen'])
  assert set(state) == {'seen'}


def test_modules_of_nnx_are_refused():
  with pytest.raises(TypeError, match='wrap one of NNX'):
    flax_probes.apply(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {}, TOKENS)


def test_gradients():
  grads = {'a': {'kernel': jnp.array([3.0, 4.0])}, 'b': jnp.array([1e-3], jnp.bfloat16)}
  row = flax_probes.gradients(grads)
  assert {name: float(x) for name, x in row.items()} == {
      'gradient_rms/a/kernel': close(12.5**0.5),
      'gradient_rms/b': pytest.approx(1e-3, rel=0.01),
  }
  over_eps = flax_probes.gradients(grads, eps=1e-6).keys() - row.keys()
  assert over_eps == {'gradient_over_eps/a/kernel'}  # b is a single number
  assert flax_probes.gradients(grads, eps=1e-6)['gradient_over_eps/a/kernel'] == close(
      12.5**0.5 * 1e6
  )


@pytest.mark.parametrize('decay', [0.0, 0.5])
def test_updates_of_adamw(decay):
  """The second update against Adam's definition, without learning rate and decay."""
  rng, rate = np.random.default_rng(0), 1e-2
  params = {'kernel': jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
  optimizer = optax.adamw(rate, weight_decay=decay)
  state, first, second = optimizer.init(params), 0.0, 0.0
  for _ in range(2):
    g = rng.normal(size=(5, 3))
    changes, state = optimizer.update({'kernel': jnp.asarray(g, jnp.float32)}, state, params)
    row = flax_probes.updates(changes, params, rate, decay)
    params = optax.apply_updates(params, changes)
    first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
  update = first / (1 - 0.9**2) / (np.sqrt(second / (1 - 0.999**2)) + 1e-8)
  assert row['update_rms/kernel'] == pytest.approx(rms(update), rel=1e-4)
  assert flax_probes.updates(changes, params, 0.0) == {}


def test_updates_of_single_numbers_are_left_out():
  tree = {'gain': jnp.ones(()), 'bias': jnp.ones(1), 'kernel': jnp.ones(2)}
  assert flax_probes.updates(tree, tree, 0.1).keys() == {'update_rms/kernel'}


def test_monitor_lacks_nothing():
  model, monitor = Model(), stability.Monitor()
  params = variables(model)

  def probed(variables):
    logits, row = flax_probes.apply(model, variables, TOKENS)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS).mean()
    return loss, row | {'loss': loss}

  @jax.jit
  def step(params):
    grads, row = jax.grad(probed, has_aux=True)(params)
    changes = jax.tree.map(lambda g: -0.1 * g, grads)
    row |= flax_probes.gradients(grads, 1e-8) | flax_probes.updates(changes, params, 0.1)
    return optax.apply_updates(params, changes), row

  for number in range(12):
    params, row = step(params)
    monitor.observe({'step': number, **row})
  assert monitor.lacking == {}
