"""Causal multi-head attention and the variants that keep its logits from growing.

The steps apply in this order: adapter, qk-norm and its gain, norm and residual of values, rotary
positions, attention scale, soft cap, mask, weights, gate. Section and figure numbers are those of
arXiv 2309.14322. Shape suffixes: B batch, T (= S) positions, D width, H heads, K head dimension,
N = B H.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stability.model import adapters, attention_stats, ngpt
from stability.model.kernels import kernel
from stability.model.measure import PROBES, QUIET, Measured, sow, sow_activation
from stability.model.norms import norm, unit_rms
from stability.model.products import linear
from stability.types import HParams
from stability.variants import Choices, Variant

ROPE_BASE = 10_000.0
FUSED = 'cudnn'  # the implementation of jax.nn.dot_product_attention: flash attention on GPUs

# Causal softmax attention of queries that are scaled already, keys and values: all are [N, T, K].
Fused = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class QKNorm(NamedTuple):
  """A normalisation of queries and keys."""

  # (module, x, 'query' or 'key', hparams) -> x, where x is [N, T, K], or [B T, D] over all heads.
  apply: Callable[[nn.Module, jax.Array, str, HParams], jax.Array]
  over_all_heads: bool = False
  # Number of positions -> initial value of a learned scale, which replaces model.attention_scale.
  learned_scale: Callable[[int], float] | None = None


class Attention(nn.Module):
  """Attention over the normalised residual stream [B, T, D]; logits and weights are float32."""

  c: ml_collections.FrozenConfigDict  # config.model
  fused: Fused | None = None  # stores no [T, S] matrix; used for the configs that it suits
  needs: tuple[str, ...] = ()  # measurements to take in quiet steps as well

  @nn.compact
  def __call__(
      self, x_BxTxD: jax.Array, hparams: HParams, first_NxTxK: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Returns the output [B, T, D] and the values of the first block, if later ones read them.

    Args:
      x_BxTxD: the normalised residual stream.
      hparams: the run's hyperparameters.
      first_NxTxK: the values of the first block; None in the first block.
    """
    c = self.c
    B, T, D = x_BxTxD.shape
    K = c.head_dim
    H = D // K
    # The gate is drawn last, so that the other kernels start the same with and without it.
    shared = D // c.query_group  # width of all keys, and that of all values
    widths = {'query': D, 'key': shared, 'value': shared}
    kernels = [kernel(self, name, (D, width)) for name, width in widths.items()]
    output_DxD = kernel(self, 'output', (D, D))
    gate = GATES[c.attention_gate].make(self)

    x = x_BxTxD.reshape(B * T, D)
    qkv = linear(self, x, jnp.concatenate(kernels, axis=1))
    if adapters.acts(self):
      q, k, v = jnp.split(qkv, (D, D + shared), axis=1)
      k, v = adapters.adapt(self, 'key', k), adapters.adapt(self, 'value', v)
      qkv = jnp.concatenate([q, k, v], axis=1)
    qk_norm = QK_NORMS[c.qk_norm].make
    if qk_norm.over_all_heads:
      q, k, v = jnp.split(qkv, (D, D + shared), axis=1)
      q, k = (qk_norm.apply(self, q, 'query', hparams), qk_norm.apply(self, k, 'key', hparams))
      qkv = jnp.concatenate([q, k, v], axis=1)
    if c.query_group > 1:
      qkv = _copy_shared_heads(qkv, D, K, c.query_group)
    # Fold heads into the batch: [B T, 3 D] -> three of [N, T, K].
    q, k, v = qkv.reshape(B, T, 3, H, K).transpose(2, 0, 3, 1, 4).reshape(3, B * H, T, K)
    if not qk_norm.over_all_heads:
      q, k = (qk_norm.apply(self, q, 'query', hparams), qk_norm.apply(self, k, 'key', hparams))
    if c.qk_gain:
      q, k = ((x * hparams['model.qk_gain']).astype(x.dtype) for x in (q, k))
    v = VALUE_NORMS[c.v_norm].make(self, v)
    v, first_NxTxK = VALUE_RESIDUALS[c.value_residual].make(self, v, first_NxTxK)
    sow(self, 'query_norm', attention_stats.norms(q).mean())
    sow(self, 'key_norm', attention_stats.norms(k).mean())
    if qk_norm.learned_scale is not None:
      start = nn.initializers.constant(qk_norm.learned_scale(T))
      scale = self.param('logit_scale', start, ())
    else:
      scale = SCALES[c.attention_scale].make(K)
    q = (rope(q) * jnp.float32(scale)).astype(q.dtype)
    k = rope(k).astype(k.dtype)
    if self.fused and _kernel_serves(c):
      out = self._measure_in_blocks(self.fused(q, k, v), q, k, H, hparams)
    else:
      causal_TxS = np.tril(np.ones((T, T), bool))
      logits_NxTxS = _logits(q, k)
      att_NxTxS = self._weights(logits_NxTxS, causal_TxS, H, hparams)
      out = jnp.einsum('nts,nsk->ntk', att_NxTxS.astype(v.dtype), v)
      self._sow(lambda: attention_stats.stats(q, k, logits_NxTxS, att_NxTxS, causal_TxS, H))
      self._sow_needed(lambda: attention_stats.max_by_head(logits_NxTxS, causal_TxS, H))
    out = out.reshape(B, H, T, K).transpose(0, 2, 1, 3).reshape(B * T, D)
    out = linear(self, gate(x, out), output_DxD).reshape(B, T, D)
    sow_activation(self, 'output', out)
    return out, first_NxTxK

  def _weights(
      self,
      logits_NxTxS: jax.Array,
      causal_TxS: jax.Array | np.ndarray,
      heads: int,
      hparams: HParams,
  ) -> jax.Array:
    """Attention weights [N, T, S], from logits before the soft cap."""
    if self.c.attention_soft_cap:
      logits_NxTxS = soft_cap(logits_NxTxS, hparams['model.attention_soft_cap'])
    return WEIGHTS[self.c.attention].make(self, logits_NxTxS, causal_TxS, heads, hparams)

  def _measure_in_blocks(
      self,
      out_NxTxK: jax.Array,
      q_NxTxK: jax.Array,
      k_NxSxK: jax.Array,
      heads: int,
      hparams: HParams,
  ) -> jax.Array:
    """Measures fused attention, which stores no [T, S] matrix, one block of queries at a time.

    Returns the output. It waits for the measurements, since XLA otherwise puts off those of all
    blocks and keeps their queries and keys.
    """

    def weights(logits_NxRxS, causal_RxS):
      return self._weights(logits_NxRxS, causal_RxS, heads, hparams)

    q, k = jax.lax.stop_gradient((q_NxTxK, k_NxSxK))
    if self.is_mutable_collection(PROBES):
      found = attention_stats.stats_in_blocks(q, k, _logits, weights, heads)
      out_NxTxK, found = jax.lax.optimization_barrier((out_NxTxK, found))
      self._sow(lambda: found)
    self._sow_needed(lambda: attention_stats.max_by_head_in_blocks(q, k, _logits, heads))
    return out_NxTxK

  def _sow(self, measure: Callable[[], dict[str, Measured]]) -> None:
    if self.is_mutable_collection(PROBES):
      for name, measured in measure().items():
        self.sow(PROBES, name, measured)

  def _sow_needed(self, max_by_head: Callable[[], jax.Array]) -> None:
    if attention_stats.MAX_BY_HEAD in self.needs and self.is_mutable_collection(QUIET):
      measured = Measured(max_by_head(), 'max', by_head=True, logged=False)
      self.sow(QUIET, attention_stats.MAX_BY_HEAD, measured)


def _copy_shared_heads(qkv: jax.Array, width: int, head_dim: int, group: int) -> jax.Array:
  """Queries, keys and values with a key and value head for every query head (arXiv 2305.13245).

  Query head h uses key and value head h // group. [B T, D + 2 D / group] -> [B T, 3 D].
  """
  q, k_and_v = jnp.split(qkv, (width,), axis=1)
  heads = k_and_v.reshape(len(qkv), -1, head_dim)
  return jnp.concatenate([q, jnp.repeat(heads, group, axis=1).reshape(len(qkv), -1)], axis=1)


def fused_attention(q_NxTxK: jax.Array, k_NxSxK: jax.Array, v_NxSxK: jax.Array) -> jax.Array:
  """Attention by cuDNN; see Fused."""
  q, k, v = (x[:, :, None] for x in (q_NxTxK, k_NxSxK, v_NxSxK))  # [N, T, 1, K]: one head
  out = jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=True, implementation=FUSED)
  return out[:, :, 0]


def _kernel_serves(c: ml_collections.FrozenConfigDict) -> bool:
  """Whether cuDNN's flash attention suits the config; for others, our own is as good."""
  fits = c.dtype == 'bfloat16' and c.head_dim % 8 == 0 and c.head_dim <= 128
  return fits and c.attention == 'softmax' and not c.attention_soft_cap


def _logits(q_NxTxK: jax.Array, k_NxSxK: jax.Array) -> jax.Array:
  return jnp.einsum('ntk,nsk->nts', q_NxTxK, k_NxSxK, preferred_element_type=jnp.float32)


# Normalisation of queries and keys.


def _learned_norm(kind: str) -> Callable[[nn.Module, jax.Array, str, HParams], jax.Array]:
  """LayerNorm or RMSNorm with a learned scale; if applied per head, all heads share it (E.8)."""

  def apply(module, x, name, hparams):
    del hparams
    return norm(kind, module.c.dtype, f'qk_norm_{name}')(x)

  return apply


def _l2(module, x, name, hparams):
  """Scales to an L2 norm of 1."""
  del name, hparams
  return (unit_rms(x) * module.c.head_dim**-0.5).astype(x.dtype)


def _fixed(module, x, name, hparams):
  """Scales to a mean square of kappa (model.logit_scale)."""
  del module, name
  return (unit_rms(x) * jnp.sqrt(hparams['model.logit_scale'])).astype(x.dtype)


def _ngpt(module, x, name, hparams):
  """Scales to an L2 norm of sqrt(head_dim), times a scale that is learned for each feature.

  The logits of nGPT are sqrt(head_dim) times the product of unit vectors; here, they are divided by
  sqrt(head_dim) afterwards (model.attention_scale).
  """
  del name, hparams
  c = module.c
  heads = x.reshape(x.shape[0], -1, c.head_dim)
  scale_D = ngpt.scale(module, 'qk_scale', c.width) * c.head_dim**0.5
  return (ngpt.unit(heads).reshape(x.shape) * scale_D).astype(x.dtype)


def _l2_scale(positions: int) -> float:
  """log2(T^2 - T), which bounds the initial logits in absolute value."""
  return np.log2(max(positions * positions - positions, 2))  # T = 1 would give log2(0)


QK_NORMS = Choices(
    'model.qk_norm',
    {
        'none': Variant(QKNorm(lambda module, x, name, hparams: x), 'no normalisation'),
        'layernorm': Variant(QKNorm(_learned_norm('layernorm')), 'section 2.1'),
        'layernorm_model': Variant(
            QKNorm(_learned_norm('layernorm'), over_all_heads=True), 'figure E.8'
        ),
        'rmsnorm': Variant(QKNorm(_learned_norm('rmsnorm')), 'arXiv 2503.19786'),
        'l2': Variant(QKNorm(_l2, learned_scale=_l2_scale), 'arXiv 2010.04245'),
        'ngpt': Variant(QKNorm(_ngpt, over_all_heads=True), 'arXiv 2410.01131'),
        'fixed': Variant(QKNorm(_fixed), 'section 3.3, figure 10', reads=('model.logit_scale',)),
    },
)

# Head dimension -> the factor of attention logits.
SCALES = Choices(
    'model.attention_scale',
    {
        'inverse_sqrt': Variant(lambda K: K**-0.5, 'arXiv 1706.03762'),
        'inverse': Variant(lambda K: 1 / K, 'figure E.6; arXiv 2203.03466'),
    },
)


# Normalisation of values.


def _value_norm(kind: str) -> Callable[[nn.Module, jax.Array], jax.Array]:
  """LayerNorm or RMSNorm on each head; all heads share its learned scale."""
  return lambda module, v: norm(kind, module.c.dtype, 'v_norm')(v)


# (module, values [N, T, K]) -> values.
VALUE_NORMS = Choices(
    'model.v_norm',
    {
        'none': Variant(lambda module, v: v, 'no normalisation'),
        'layernorm': Variant(_value_norm('layernorm'), 'arXiv 2410.16682'),
        'rmsnorm': Variant(_value_norm('rmsnorm'), 'arXiv 2410.16682'),
    },
)


def _learned_residual(module, v_NxTxK, first_NxTxK):
  """A learned sum of the values of the first block and of this one; both factors start at 1/2.

  The first block adds its own values to themselves, so that it has the same form as the others.
  """
  first_NxTxK = v_NxTxK if first_NxTxK is None else first_NxTxK
  factors = module.param('value_residual', nn.initializers.constant(0.5), (2,))
  mixed_NxTxK = factors[0] * first_NxTxK + factors[1] * v_NxTxK
  return mixed_NxTxK.astype(v_NxTxK.dtype), first_NxTxK


# (module, values [N, T, K], those of the first block, None in it) -> the values to attend to, and
# those of the first block, or None if no later block reads them.
VALUE_RESIDUALS = Choices(
    'model.value_residual',
    {
        'none': Variant(lambda module, v, first: (v, None), 'no residual'),
        'learned': Variant(_learned_residual, 'arXiv 2410.17897'),
    },
)


# Attention weights.


def _softmax(module, logits_NxTxS, causal_TxS, heads, hparams):
  del module, heads, hparams
  return jax.nn.softmax(jnp.where(causal_TxS, logits_NxTxS, jnp.finfo(jnp.float32).min))


def _softmax_with_sink(logits_NxTxS, causal_TxS, sink_N):
  """Softmax over the positions and a sink, whose weight is left out: rows sum to less than 1."""
  masked_NxTxS = jnp.where(causal_TxS, logits_NxTxS, jnp.finfo(jnp.float32).min)
  log_z_NxTx1 = jax.nn.logsumexp(masked_NxTxS, axis=-1, keepdims=True)
  return jax.nn.softmax(masked_NxTxS) * nn.sigmoid(log_z_NxTx1 - sink_N[:, None, None])


def _softmax1(module, logits_NxTxS, causal_TxS, heads, hparams):
  """exp(logit) / (1 + sum of exp(logits))."""
  del module, heads, hparams
  return _softmax_with_sink(logits_NxTxS, causal_TxS, jnp.zeros(len(logits_NxTxS)))


def _learned_sink(module, logits_NxTxS, causal_TxS, heads, hparams):
  """exp(logit) / (exp(sink) + sum of exp(logits)), with a learned sink for each head.

  The sinks start at 0, as in softmax1.
  """
  del hparams
  sink_H = module.param('sink', nn.initializers.zeros, (heads,))
  sink_N = jnp.tile(sink_H, len(logits_NxTxS) // heads)
  return _softmax_with_sink(logits_NxTxS, causal_TxS, sink_N)


def _squared_relu(module, logits_NxTxS, causal_TxS, heads, hparams):
  """relu(logit)^2 / sqrt(T), without normalisation."""
  del module, heads, hparams
  scale = causal_TxS.shape[0] ** -0.5
  return jnp.where(causal_TxS, jnp.square(nn.relu(logits_NxTxS)), 0) * scale


# (module, logits [N, T, S], causal mask [T, S], heads, hparams) -> weights [N, T, S].
WEIGHTS = Choices(
    'model.attention',
    {
        'softmax': Variant(_softmax, 'arXiv 1706.03762'),
        'softmax1': Variant(_softmax1, 'evanmiller.org/attention-is-off-by-one.html'),
        'learned_sink': Variant(_learned_sink, 'arXiv 2508.10925'),
        'squared_relu': Variant(_squared_relu, 'figure E.11'),
    },
)


# Gates on the output of the heads.


def _no_gate(module):
  del module
  return lambda x, out: out


def _sigmoid_gate(module):
  """Multiplies each element of the output by a sigmoid of a projection of attention's input."""
  D = module.c.width
  gate_DxD = kernel(module, 'gate', (D, D))
  return lambda x, out: out * nn.sigmoid(linear(module, x, gate_DxD))


# module -> a function of attention's input x [B T, D] and of the heads' outputs [B T, D].
GATES = Choices(
    'model.attention_gate',
    {
        'none': Variant(_no_gate, 'no gate'),
        'sigmoid': Variant(_sigmoid_gate, 'arXiv 2505.06708'),
    },
)


def soft_cap(x: jax.Array, cap: jax.Array) -> jax.Array:
  """Keeps x within +-cap by cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118)."""
  return cap * jnp.tanh(x / cap)


def rope(x_NxTxK: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + K/2) by position / base^(2i/K) (RoFormer, arXiv 2104.09864).

  Computes in float32 whatever the type of x: bfloat16 would keep only two digits of the angle.
  """
  _, T, K = x_NxTxK.shape
  frequency = ROPE_BASE ** (-np.arange(K // 2) / (K // 2))
  angle_TxK = np.arange(T)[:, None] * np.tile(frequency, 2)
  cos_TxK = jnp.asarray(np.cos(angle_TxK), jnp.float32)
  signed_sin_TxK = np.sin(angle_TxK) * np.repeat([-1.0, 1.0], K // 2)
  rolled_NxTxK = jnp.roll(x_NxTxK, K // 2, axis=-1)
  return x_NxTxK * cos_TxK + rolled_NxTxK * jnp.asarray(signed_sin_TxK, jnp.float32)
