"""Properties of attention and its variants; test_reference.py checks its numbers."""

import functools

import jax
import numpy as np
import pytest

from stability.model import attention, attention_stats, measure
from stability.step import train_step

T = 16
# Optimization takes most of the compile time and does not change the results.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def test_rope_rotates_pairs():
  """(x_i, x_{i + K/2}) is a complex number that is multiplied by exp(i t base^(-2i/K))."""
  x = np.random.default_rng(0).normal(size=(3, 50, 8)).astype(np.float32)
  angle = np.outer(np.arange(50), 10_000.0 ** (-np.arange(4) / 4))
  expected = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
  got = np.asarray(attention.rope(x))
  np.testing.assert_allclose(got[..., :4], expected.real, atol=1e-6)
  np.testing.assert_allclose(got[..., 4:], expected.imag, atol=1e-6)


def test_rope_of_bfloat16_at_large_positions():
  """Angles of 500 in bfloat16 would be off by one."""
  x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(1, 512, 64)), 'bfloat16')
  exact = attention.rope(np.asarray(x, np.float32))
  np.testing.assert_allclose(attention.rope(x), exact, atol=1e-6)


def test_causal_mask_with_large_logits(tiny):
  """The paper's logits pass 1e4 (section 3.1.1); the mask must be below them."""
  module = attention.Attention(tiny().static.model)
  causal = np.tril(np.ones((T, T), bool))
  logits = np.where(causal, -1e9, 1e9).astype(np.float32)[None]
  weights = np.asarray(module._weights(jax.numpy.asarray(logits), causal, 1, {}))[0]
  np.testing.assert_array_equal(weights[~causal], 0)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_mean_logit_over_more_pairs_than_int32():
  heads, length = 16_384, 512
  causal = np.tril(np.ones((length, length), bool))

  def mean(q, logits):
    stats = attention_stats.stats(q, q, logits, logits, causal, 1)
    return stats['attention_logit_mean'].value

  shapes = [(heads, length, 8), (heads, length, length)]
  jaxpr = jax.make_jaxpr(mean)(*(jax.ShapeDtypeStruct(shape, 'float32') for shape in shapes)).jaxpr
  [sum_over_pairs] = jaxpr.outvars
  [division] = [equation for equation in jaxpr.eqns if sum_over_pairs in equation.outvars]
  assert division.invars[1].val == heads * length * (length + 1) / 2


def test_rope_is_relative():
  """The product of query and key depends only on their distance; norms do not change."""
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


@pytest.fixture(scope='module')
def attend(tiny):
  """A function of overrides: output and probes of one attention layer with random weights."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, T, 32)).astype(np.float32)
  names = ('query', 'key', 'value', 'output', 'gate')
  random = {name: np.float32(rng.normal(size=(32, 32))) for name in names}

  @functools.cache
  def forward(c):
    module = attention.Attention(c)

    @compiled
    def apply(kernels, hparams):
      start = module.init(jax.random.key(0), x, hparams)['params']  # initial scales are kept
      params = start | {name: value for name, value in kernels.items() if name in start}
      (out, _), sown = module.apply({'params': params}, x, hparams, mutable=[measure.PROBES])
      return out, sown

    return apply

  def attend(overrides, **kernels):
    run = tiny(overrides)
    out, sown = forward(run.static.model)(random | kernels, run.hparams)
    probes = {  # means over heads
        name: float(np.mean(m.value)) for name, (m,) in sown[measure.PROBES].items()
    }
    return np.asarray(out), probes

  attend.random = random
  return attend


def test_qk_norms_bound_attention_logits(attend):
  """With scale 1, the bound is sqrt(head_dim), reached by parallel vectors; "none" has no bound."""
  query = attend.random['query']
  for qk_norm in ('layernorm', 'rmsnorm'):
    _, probes = attend({'model.qk_norm': qk_norm}, key=query)
    assert probes['attention_logit_max'] == pytest.approx(4, rel=1e-5)
  _, probes = attend({'model.qk_norm': 'none'}, key=query)
  assert probes['attention_logit_max'] > 100


def test_gate_of_zeros_halves_the_output(attend):
  """The sigmoid of 0 is 1/2."""
  open_, _ = attend({})
  gate = {'model.attention_gate': 'sigmoid'}
  halved, _ = attend(gate, gate=np.zeros((32, 32), np.float32))
  np.testing.assert_allclose(halved, open_ / 2, rtol=1e-5, atol=1e-5)
  gated, _ = attend(gate)
  assert np.abs(gated - halved).max() > 1


def test_fixed_qk_norm_has_mean_square_kappa(attend):
  """For any weights, norms are sqrt(kappa head_dim) and logits at most kappa sqrt(head_dim)."""
  key = attend.random['query']  # so that some are parallel
  for kappa in (1.0, 100.0):
    for size in (1, 10):
      fixed = {'model.qk_norm': 'fixed', 'model.logit_scale': kappa}
      _, probes = attend(fixed, query=size * attend.random['query'], key=key)
      assert probes['query_norm'] == pytest.approx(np.sqrt(16 * kappa), rel=1e-5)
      assert probes['key_norm'] == pytest.approx(np.sqrt(16 * kappa), rel=1e-5)
      assert probes['attention_logit_max'] == pytest.approx(4 * kappa, rel=1e-5)


def test_l2_logits_are_cosines_times_a_learned_scale(attend):
  """The scale starts at log2(T^2 - T), which is the logit of a query that equals its key."""
  for size in (1, 10):
    query = size * attend.random['query']
    _, probes = attend({'model.qk_norm': 'l2'}, query=query, key=attend.random['query'])
    assert probes['query_norm'] == pytest.approx(1, rel=1e-5)
    assert probes['key_norm'] == pytest.approx(1, rel=1e-5)
    assert probes['attention_logit_max'] == pytest.approx(np.log2(T * T - T), rel=1e-5)
    assert probes['query_key_cosine'] <= 1 + 1e-6


def test_attention_scales(attend):
  """With muP's scale, logits are 1/sqrt(head_dim) times the usual ones."""
  _, usual = attend({'model.qk_norm': 'none'})
  _, inverse = attend({'model.qk_norm': 'none', 'model.attention_scale': 'inverse'})
  assert inverse['attention_logit_max'] == pytest.approx(usual['attention_logit_max'] / 4, rel=1e-5)


def test_squared_relu_attention_is_quadratic(attend):
  """Twice the queries give four times the output, since weights are not normalised."""
  relu = {'model.qk_norm': 'none', 'model.attention': 'squared_relu'}
  out, probes = attend(relu)
  four, four_probes = attend(relu, query=2 * attend.random['query'])
  np.testing.assert_allclose(four, 4 * out, rtol=1e-4, atol=1e-3 * np.abs(out).max())
  entropy = probes['attention_entropy']  # of normalised weights, so it does not change
  assert four_probes['attention_entropy'] == pytest.approx(entropy, rel=1e-4) and entropy > 0.1


def test_soft_cap(attend):
  """A cap far above the logits does not change outputs; a low cap makes attention uniform."""
  plain, probes = attend({'model.qk_norm': 'none'})
  far, _ = attend({'model.qk_norm': 'none', 'model.attention_soft_cap': 1e6})
  assert probes['attention_logit_max'] > 50
  np.testing.assert_allclose(far, plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())
  _, low_probes = attend({'model.qk_norm': 'none', 'model.attention_soft_cap': 1e-4})
  uniform = np.log(np.arange(1, T + 1)).mean()
  assert low_probes['attention_entropy'] == pytest.approx(uniform, rel=1e-4)
  assert low_probes['attention_logit_max'] == probes['attention_logit_max']  # before the cap


def test_query_key_cosine(attend):
  """The cosine does not depend on norms, and is 1 where every query is parallel to its key."""
  none = {'model.qk_norm': 'none'}
  _, probes = attend(none)
  _, larger = attend(none, query=8 * attend.random['query'])
  assert larger['attention_logit_max'] == pytest.approx(8 * probes['attention_logit_max'], rel=1e-5)
  assert larger['query_key_cosine'] == pytest.approx(probes['query_key_cosine'], rel=1e-5)
  _, aligned = attend({'model.qk_norm': 'layernorm'}, key=attend.random['query'])
  assert probes['query_key_cosine'] < 0.8
  assert aligned['query_key_cosine'] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('block', 'length'), [(attention_stats.BLOCK, T), (7, T), (5, 13)])
def test_fused_kernel_equals_our_attention(tiny, monkeypatch, block, length):
  """Output, gradients and probes agree; probes take one block of queries or several.

  These have 4 of 16 positions, or 5, 5 and 3 of 13.

  The kernel is XLA's implementation in float32, since cuDNN's runs only on a GPU.
  """
  monkeypatch.setattr(attention, 'FUSED', 'xla')
  monkeypatch.setattr(attention, '_kernel_serves', lambda c: True)
  monkeypatch.setattr(attention_stats, 'BLOCK', block)
  run = tiny({'model.qk_norm': 'none'})
  x = np.random.default_rng(0).normal(size=(2, length, 32)).astype(np.float32)
  params = attention.Attention(run.static.model).init(jax.random.key(0), x, run.hparams)['params']
  found = []
  for fused in (False, True):
    module = attention.Attention(run.static.model, attention.fused_attention if fused else None)

    def loss(params, module=module):
      (out, _), sown = module.apply({'params': params}, x, run.hparams, mutable=[measure.PROBES])
      return (out**3).sum(), (out, sown)

    found.append(compiled(jax.grad(loss, has_aux=True))(params))
  pairs = [jax.tree.leaves_with_path(each) for each in found]
  assert len(pairs[0]) == 4 + 1 + 6
  for (path, ours), (other_path, theirs) in zip(*pairs, strict=True):
    assert path == other_path
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=str(path))


def test_largest_logit_of_each_head_with_the_fused_kernel(tiny, monkeypatch):
  """QK-clip reads it: of blocks with 5, 5 and 3 of 13 positions, and of all positions at once."""
  monkeypatch.setattr(attention, '_kernel_serves', lambda c: True)
  monkeypatch.setattr(attention_stats, 'BLOCK', 5)
  run = tiny({'model.qk_norm': 'none'})
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 13, 32)).astype(np.float32)
  params = {name: rng.normal(size=(32, 32)) for name in ('query', 'key', 'value', 'output')}
  name = attention_stats.MAX_BY_HEAD

  def largest(kernel):
    module = attention.Attention(run.static.model, kernel, (name,))
    _, sown = module.apply({'params': params}, x, run.hparams, mutable=[measure.QUIET])
    return sown[measure.QUIET][name][0].value

  ours, fused = compiled(lambda: (largest(None), largest(lambda q, k, v: v)))()
  assert ours.shape == (2,) and abs(ours[0] - ours[1]) > 1
  np.testing.assert_allclose(fused, ours, rtol=1e-5)


@pytest.mark.parametrize(
    ('overrides', 'serves'),
    [
        ({'model.dtype': 'bfloat16'}, True),
        ({}, False),
        ({'model.dtype': 'bfloat16', 'model.attention': 'squared_relu'}, False),
        ({'model.dtype': 'bfloat16', 'model.attention_soft_cap': 50.0}, False),
        ({'model.dtype': 'bfloat16', 'model.width': 24, 'model.head_dim': 12}, False),
        ({'model.dtype': 'bfloat16', 'model.width': 256, 'model.head_dim': 256}, False),
    ],
)
def test_where_the_fused_kernel_is_used(tiny, monkeypatch, overrides, serves):
  calls = []
  kernel = attention.fused_attention
  monkeypatch.setattr(attention, 'FUSED', 'xla')
  monkeypatch.setattr(attention, 'fused_attention', lambda *a: calls.append(a) or kernel(*a))
  run = tiny(overrides)
  for fused in (False, True):
    programs = train_step.programs(run.static, 64, fused=fused)
    jax.eval_shape(programs.init, run.hparams)
    assert len(calls) == (run.static.model.depth if fused and serves else 0)
