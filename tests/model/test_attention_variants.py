"""Variants of attention, compared with attention by NumPy in float64, one head at a time."""

import functools

import jax
import numpy as np
import pytest

from stability.model import attention, attention_stats, measure

B, T, D, K = 2, 16, 32, 8
H = D // K
# Optimization takes most of the compile time and does not change the results.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
PLAIN = {'model.head_dim': K, 'model.qk_norm': 'none'}


def random(shapes, seed=1):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda s: np.float32(1.5 * rng.normal(size=s.shape) / np.sqrt(max(s.shape[:1], default=1))),
      shapes,
  )


def attend(run, fused=False):
  """Parameters drawn at random, and what attention computes with them: output and probes."""
  module = attention.Attention(run.static.model, attention.fused_attention if fused else None)
  params = random(jax.eval_shape(module.init, jax.random.key(0), X, run.hparams)['params'])
  apply = functools.partial(module.apply, mutable=[measure.PROBES])
  (out, _), sown = compiled(apply)({'params': params}, X, run.hparams)
  probes = {name: np.asarray(m.value) for name, (m,) in sown[measure.PROBES].items()}
  return params, np.asarray(out), probes


def rotated(x_BxTxK):
  half = K // 2
  turn = np.exp(1j * np.arange(T)[:, None] * 10_000.0 ** (-np.arange(half) / half))
  z = (x_BxTxK[..., :half] + 1j * x_BxTxK[..., half:]) * turn
  return np.concatenate([z.real, z.imag], axis=-1)


def softmax(logits, h):
  del h
  weights = np.exp(logits)
  return weights / weights.sum(-1, keepdims=True)


def reference(params, group=1, gain=1.0, weigh=softmax, norm_v=lambda v: v):
  """The output [B, T, D] and the entropy of each head, [H]."""
  p = {name: np.float64(value) for name, value in params.items() if not isinstance(value, dict)}
  heads, entropies = [], []
  for h in range(H):
    own, shared = (slice(K * i, K * (i + 1)) for i in (h, h // group))
    q, k = gain * X @ p['query'][:, own], gain * X @ p['key'][:, shared]
    v = norm_v(X @ p['value'][:, shared])
    logits = np.einsum('btk,bsk->bts', rotated(q), rotated(k)) / np.sqrt(K)
    weights = weigh(np.where(np.tril(np.ones((T, T), bool)), logits, -np.inf), h)
    heads.append(weights @ v)
    shares = weights / weights.sum(-1, keepdims=True)
    entropies.append(-np.sum(shares * np.log(np.where(shares > 0, shares, 1)), -1).mean())
  return np.concatenate(heads, axis=-1) @ p['output'], np.array(entropies)


def check(found, expected):
  (out, probes), (expected_out, entropy_H) = found, expected
  np.testing.assert_allclose(out, expected_out, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(probes['attention_entropy'], entropy_H, rtol=1e-4)


@pytest.mark.parametrize('group', [1, 2, 4])
def test_grouped_query_attention(tiny, group):
  params, *found = attend(tiny(PLAIN | {'model.query_group': group}))
  assert params['key'].shape == params['value'].shape == (D, D // group)
  check(found, reference(params, group))


def test_fused_attention_of_shared_heads(tiny, monkeypatch):
  """Output and probes of the fused kernel and of statistics in blocks are those of our own.

  The kernel is XLA's implementation in float32, since cuDNN's runs only on a GPU.
  """
  monkeypatch.setattr(attention, 'FUSED', 'xla')
  monkeypatch.setattr(attention, '_kernel_serves', lambda c: True)
  monkeypatch.setattr(attention_stats, 'BLOCK', 4)
  run = tiny(PLAIN | {'model.query_group': 2})
  params, *found = attend(run, fused=True)
  check(found, reference(params, group=2))
  _, _, ours = attend(run)
  for name, value in ours.items():
    np.testing.assert_allclose(found[1][name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('qk_norm', ['layernorm', 'layernorm_model'])
def test_norm_of_shared_keys(tiny, qk_norm):
  """The norm over all heads has a scale for each feature of the keys that exist."""
  run = tiny({'model.head_dim': K, 'model.qk_norm': qk_norm, 'model.query_group': 4})
  module = attention.Attention(run.static.model)
  shapes = jax.eval_shape(module.init, jax.random.key(0), X, run.hparams)['params']
  query, key = (shapes[f'qk_norm_{name}']['scale'].shape for name in ('query', 'key'))
  assert (query, key) == (((K,), (K,)) if qk_norm == 'layernorm' else ((D,), (K,)))


def softmax_with_sink(sink_H):
  def weigh(logits, h):
    weights = np.exp(logits)
    return weights / (np.exp(sink_H[h]) + weights.sum(-1, keepdims=True))

  return weigh


def test_softmax1(tiny):
  """The entropy is that of the weights divided by their sum."""
  params, *found = attend(tiny(PLAIN | {'model.attention': 'softmax1'}))
  check(found, reference(params, weigh=softmax_with_sink(np.zeros(H))))


def test_learned_sink(tiny):
  run = tiny(PLAIN | {'model.attention': 'learned_sink'})
  params, *found = attend(run)
  assert len(set(params['sink'])) == H
  check(found, reference(params, weigh=softmax_with_sink(np.float64(params['sink']))))


@pytest.mark.parametrize('logit', [-300.0, 300.0])
def test_sink_and_extreme_logits(logit):
  """Far below the sink all weight is lost; far above it none is, and nothing overflows."""
  causal = np.tril(np.ones((4, 4), bool))
  logits = np.full((1, 4, 4), logit, np.float32)
  weights = attention.WEIGHTS['softmax1'].make(None, logits, causal, 1, {})
  expected = causal / causal.sum(-1, keepdims=True) if logit > 0 else np.zeros((4, 4))
  np.testing.assert_allclose(weights[0], expected, rtol=1e-6)


@pytest.mark.parametrize('name', ['layernorm', 'rmsnorm'])
def test_v_norm(tiny, name):
  params, *found = attend(tiny(PLAIN | {'model.v_norm': name}))
  scale = np.float64(params['v_norm']['scale'])
  assert scale.shape == (K,)

  def norm_v(v):
    v = v - v.mean(-1, keepdims=True) if name == 'layernorm' else v
    return v / np.sqrt(np.mean(v**2, -1, keepdims=True) + 1e-6) * scale

  check(found, reference(params, norm_v=norm_v))


def test_value_residual(tiny):
  """V' = a V_0 + b V, where the first block's own values are V_0 (arXiv 2410.17897)."""
  run = tiny(PLAIN | {'model.value_residual': 'learned'})
  module = attention.Attention(run.static.model)
  start = module.init(jax.random.key(0), X, run.hparams)['params']
  np.testing.assert_array_equal(start['value_residual'], 0.5)
  params, out, probes = attend(run)
  a, b = np.float64(params['value_residual'])
  check((out, probes), reference(params, norm_v=lambda v: (a + b) * v))

  # Those of another block, which are the same for all heads.
  first = np.random.default_rng(2).normal(size=(B, T, K)).astype(np.float32)
  apply = functools.partial(module.apply, mutable=[measure.PROBES])
  (out, passed_on), sown = compiled(apply)(
      {'params': params}, X, run.hparams, np.repeat(first, H, axis=0)
  )
  np.testing.assert_array_equal(passed_on, np.repeat(first, H, axis=0))
  probes = {'attention_entropy': sown[measure.PROBES]['attention_entropy'][0].value}
  check((out, probes), reference(params, norm_v=lambda v: a * first + b * v))


def test_qk_gain(tiny):
  params, *found = attend(tiny(PLAIN | {'model.qk_gain': 1.5}))
  check(found, reference(params, gain=1.5))
  bounded = PLAIN | {'model.qk_norm': 'fixed', 'model.qk_gain': 1.5}
  _, _, probes = attend(tiny(bounded))  # after the norm, so that norms have this length
  for name in ('query_norm', 'key_norm'):
    np.testing.assert_allclose(probes[name], 1.5 * np.sqrt(K), rtol=1e-5)
