"""Causal multi-head attention, and what can be changed in it to keep its logits from growing.

In the order in which they apply: qk-norm, rotary positions, attention scale, soft cap, mask,
weights, gate. Section and figure numbers are of arXiv 2309.14322. Shapes in names: B batch, T (= S)
positions, D width, H heads, K head dimension, N = B H.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stability.model.layers import (
  ACTIVATIONS,
  PROBES,
  dot,
  fan_in_init,
  norm,
  rms,
  soft_cap,
  unit_rms,
)

ROPE_BASE = 10_000.0
FUSED = 'cudnn'  # the implementation of jax.nn.dot_product_attention: flash attention on GPUs
LONG, BLOCK = 1024, 256  # from so many positions on, the fused are probed in blocks of queries


class Attention(nn.Module):
  """Of the normalised stream [B, T, D]; logits and weights in float32."""

  c: ml_collections.FrozenConfigDict  # config.model
  fused: bool = False  # on a GPU: by its kernel, where that serves, which keeps no [T, S] matrix

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array, hparams: Mapping[str, jax.Array]) -> jax.Array:
    c = self.c
    B, T, D = x_BxTxD.shape
    K = c.head_dim
    H = D // K
    # Drawn in this order: the gate's comes last, so that the others start the same without it.
    kernels = [self.param(name, fan_in_init, (D, D)) for name in ('query', 'key', 'value')]
    output_DxD = self.param('output', fan_in_init, (D, D))
    gate_DxD = self.param('gate', fan_in_init, (D, D)) if c.attention_gate == 'sigmoid' else None

    x = x_BxTxD.reshape(B * T, D)
    qkv = dot(x, jnp.concatenate(kernels, axis=1).astype(c.dtype))
    if c.qk_norm == 'layernorm_model':
      qkv = _norm_of_all_heads(c, qkv)
    # Heads join the batch: [B T, 3 D] -> three of [N, T, K].
    q, k, v = qkv.reshape(B, T, 3, H, K).transpose(2, 0, 3, 1, 4).reshape(3, B * H, T, K)
    q, k = _norm_of_head(c, q, 'query', hparams), _norm_of_head(c, k, 'key', hparams)
    self.sow(PROBES, 'query_norm', _norms(q).mean())
    self.sow(PROBES, 'key_norm', _norms(k).mean())
    q = (rope(q) * jnp.float32(self._scale(T))).astype(q.dtype)
    k = rope(k).astype(k.dtype)
    if self.fused and _kernel_serves(c):
      out = fused_attention(q, k, v)
      seen = _seen_in_blocks(c, q, k, H, hparams) if self.is_mutable_collection(PROBES) else {}
    else:
      causal_TxS = np.tril(np.ones((T, T), bool))
      logits_NxTxS, att_NxTxS = _logits_and_weights(c, q, k, causal_TxS, hparams)
      out = jnp.einsum('nts,nsk->ntk', att_NxTxS.astype(v.dtype), v)
      seen = {}
      if self.is_mutable_collection(PROBES):
        seen = _seen(c, q, k, logits_NxTxS, att_NxTxS, causal_TxS, H)
    for name, value in seen.items():
      self.sow(PROBES, name, value)
    out = out.reshape(B, H, T, K).transpose(0, 2, 1, 3).reshape(B * T, D)
    if gate_DxD is not None:  # each element of what the heads put out (arXiv 2505.06708)
      out *= nn.sigmoid(dot(x, gate_DxD.astype(c.dtype)))
    out = dot(out, output_DxD.astype(c.dtype)).reshape(B, T, D)
    self.sow(ACTIVATIONS, 'output', rms(out))
    return out

  def _scale(self, T: int) -> jax.Array | float:
    """1/sqrt(head_dim), or muP's 1/head_dim (E.6); after l2 a learned one, which knows no size.

    That starts at log2(T^2 - T) (arXiv 2010.04245): logits are within +- it.
    """
    c = self.c
    if c.qk_norm == 'l2':
      start = np.log2(max(T * T - T, 2))  # of one position there is nothing to choose
      return self.param('logit_scale', nn.initializers.constant(start), ())
    return {'inverse_sqrt': c.head_dim**-0.5, 'inverse': 1 / c.head_dim}[c.attention_scale]


def fused_attention(q_NxTxK: jax.Array, k_NxSxK: jax.Array, v_NxSxK: jax.Array) -> jax.Array:
  """Softmax attention to positions up to one's own, [N, T, K]; queries are scaled already."""
  q, k, v = (x[:, :, None] for x in (q_NxTxK, k_NxSxK, v_NxSxK))  # [N, T, 1, K]: a head each
  out = jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=True, implementation=FUSED)
  return out[:, :, 0]


def _kernel_serves(c: ml_collections.FrozenConfigDict) -> bool:
  """What cuDNN's flash attention is made for; elsewhere our own is as good."""
  fits = c.dtype == 'bfloat16' and c.head_dim % 8 == 0 and c.head_dim <= 128
  return fits and c.attention == 'softmax' and not c.attention_soft_cap


def _logits_and_weights(
    c: ml_collections.FrozenConfigDict,
    q_NxTxK: jax.Array,
    k_NxSxK: jax.Array,
    causal_TxS: jax.Array | np.ndarray,
    hparams: Mapping[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  logits_NxTxS = jnp.einsum('ntk,nsk->nts', q_NxTxK, k_NxSxK, preferred_element_type=jnp.float32)
  return logits_NxTxS, _weights(c, logits_NxTxS, causal_TxS, hparams)


def _seen(
    c: ml_collections.FrozenConfigDict,
    q_NxTxK: jax.Array,
    k_NxSxK: jax.Array,
    logits_NxTxS: jax.Array,
    att_NxTxS: jax.Array,
    causal_TxS: jax.Array | np.ndarray,
    heads: int,
) -> dict[str, jax.Array]:
  """Logits as the paper reads them: every unmasked pair, after the scale, before soft cap.

  Entropy, [H], is that of the weights as shares of their sum; 0 where all are 0, as squared ReLU's
  may be. The cosine tells growth by alignment from growth by norms (Fig E.1): it is that of a query
  and the key of its largest logit, after RoPE, as they meet there; mean over all queries.
  """
  masked_NxTxS = jnp.where(causal_TxS, logits_NxTxS, -jnp.inf)
  pairs = float(logits_NxTxS.shape[0]) * causal_TxS.sum()  # may be past what an int32 holds
  found = {
      'attention_logit_max': masked_NxTxS.max(),
      'attention_logit_mean': jnp.where(causal_TxS, logits_NxTxS, 0).sum() / pairs,
  }
  if c.attention == 'squared_relu':  # softmax gives shares
    sum_NxTx1 = att_NxTxS.sum(-1, keepdims=True)
    att_NxTxS = att_NxTxS / jnp.where(sum_NxTx1 > 0, sum_NxTx1, 1)
  entropy_NxT = jax.scipy.special.entr(att_NxTxS).sum(-1)
  entropy_H = entropy_NxT.reshape(-1, heads, entropy_NxT.shape[-1]).mean((0, 2))

  best_NxTx1 = masked_NxTxS.argmax(-1, keepdims=True)
  best_NxTxK = jnp.take_along_axis(k_NxSxK, best_NxTx1, axis=1).astype(jnp.float32)
  products_NxT = (q_NxTxK.astype(jnp.float32) * best_NxTxK).sum(-1)
  norms_NxT = _norms(q_NxTxK) * _norms(best_NxTxK)
  cosine_NxT = products_NxT / jnp.where(norms_NxT > 0, norms_NxT, 1)
  return found | {'attention_entropy': entropy_H, 'query_key_cosine': cosine_NxT.mean()}


def _seen_in_blocks(
    c: ml_collections.FrozenConfigDict,
    q_NxTxK: jax.Array,
    k_NxSxK: jax.Array,
    heads: int,
    hparams: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
  """The same, of long sequences without a whole [T, S] matrix: one block of queries at a time."""
  N, T, K = q_NxTxK.shape
  rows = T if T < LONG else max(n for n in range(1, BLOCK + 1) if T % n == 0)
  q_NxTxK, k_NxSxK = jax.lax.stop_gradient((q_NxTxK, k_NxSxK))
  positions_GxR = np.arange(T).reshape(-1, rows)

  def block(position_R_and_q_NxRxK):
    position_R, q_NxRxK = position_R_and_q_NxRxK
    causal_RxS = position_R[:, None] >= np.arange(T)
    logits, att = _logits_and_weights(c, q_NxRxK, k_NxSxK, causal_RxS, hparams)
    return _seen(c, q_NxRxK, k_NxSxK, logits, att, causal_RxS, heads)

  q_GxNxRxK = q_NxTxK.reshape(N, -1, rows, K).swapaxes(0, 1)
  blocks = jax.lax.map(block, (positions_GxR, q_GxNxRxK))
  pairs_G = (positions_GxR + 1).sum(1)  # a position meets those up to itself
  return {
      'attention_logit_max': blocks['attention_logit_max'].max(),
      'attention_logit_mean': blocks['attention_logit_mean'] @ (pairs_G / pairs_G.sum()),
      'attention_entropy': blocks['attention_entropy'].mean(0),
      'query_key_cosine': blocks['query_key_cosine'].mean(),
  }


def _norm_of_all_heads(c: ml_collections.FrozenConfigDict, qkv: jax.Array) -> jax.Array:
  """[B T, 3 D] with LayerNorm over the width D of queries and of keys (E.8): scales of D."""
  q, k, v = jnp.split(qkv, 3, axis=1)
  q = norm('layernorm', c.dtype, 'qk_norm_query')(q)
  k = norm('layernorm', c.dtype, 'qk_norm_key')(k)
  return jnp.concatenate([q, k, v], axis=1)


def _norm_of_head(
    c: ml_collections.FrozenConfigDict,
    x_NxTxK: jax.Array,
    name: str,
    hparams: Mapping[str, jax.Array],
) -> jax.Array:
  """Queries or keys, normalised in each head as model.qk_norm says."""
  if c.qk_norm in ('layernorm', 'rmsnorm'):  # one scale of head_dim, shared by the heads (E.8)
    return norm(c.qk_norm, c.dtype, f'qk_norm_{name}')(x_NxTxK)
  if c.qk_norm == 'l2':
    return (unit_rms(x_NxTxK) * c.head_dim**-0.5).astype(x_NxTxK.dtype)
  if c.qk_norm == 'fixed':  # to a mean square of kappa (section 3.3, Fig 10)
    return (unit_rms(x_NxTxK) * jnp.sqrt(hparams['model.logit_scale'])).astype(x_NxTxK.dtype)
  return x_NxTxK  # none, or done over all heads


def _weights(
    c: ml_collections.FrozenConfigDict,
    logits_NxTxS: jax.Array,
    causal_TxS: np.ndarray,
    hparams: Mapping[str, jax.Array],
) -> jax.Array:
  """What a position takes of each up to itself: by softmax, or relu^2 / sqrt(T) (E.11)."""
  if c.attention_soft_cap:
    logits_NxTxS = soft_cap(logits_NxTxS, hparams['model.attention_soft_cap'])
  if c.attention == 'squared_relu':
    T = causal_TxS.shape[0]
    return jnp.where(causal_TxS, jnp.square(nn.relu(logits_NxTxS)), 0) * T**-0.5
  return jax.nn.softmax(jnp.where(causal_TxS, logits_NxTxS, jnp.finfo(jnp.float32).min))


def rope(x_NxTxK: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + K/2) by position / base^(2i/K) (RoFormer, arXiv 2104.09864).

  Whatever the type of x, in float32, of which bfloat16 would keep two digits.
  """
  _, T, K = x_NxTxK.shape
  frequency = ROPE_BASE ** (-np.arange(K // 2) / (K // 2))
  angle_TxK = np.arange(T)[:, None] * np.tile(frequency, 2)
  cos_TxK = jnp.asarray(np.cos(angle_TxK), jnp.float32)
  signed_sin_TxK = np.sin(angle_TxK) * np.repeat([-1.0, 1.0], K // 2)
  rolled_NxTxK = jnp.roll(x_NxTxK, K // 2, axis=-1)
  return x_NxTxK * cos_TxK + rolled_NxTxK * jnp.asarray(signed_sin_TxK, jnp.float32)


def _norms(x_NxTxK: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x_NxTxK.astype(jnp.float32), axis=-1)
