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

from stability.layers import ACTIVATIONS, PROBES, dot, fan_in_init, norm, rms, soft_cap, unit_rms

ROPE_BASE = 10_000.0


class Attention(nn.Module):
  """Of the normalised stream [B, T, D]; logits and weights in float32."""

  c: ml_collections.FrozenConfigDict  # config.model

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array, hyper: Mapping[str, jax.Array]) -> jax.Array:
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
    q, k = _norm_of_head(c, q, 'query', hyper), _norm_of_head(c, k, 'key', hyper)
    self.sow(PROBES, 'query_norm', _norms(q).mean())
    self.sow(PROBES, 'key_norm', _norms(k).mean())
    q = rope(q) * jnp.asarray(self._scale(T), q.dtype)
    k = rope(k)
    logits_NxTxS = jnp.einsum('ntk,nsk->nts', q, k, preferred_element_type=jnp.float32)
    causal_TxS = np.tril(np.ones((T, T), bool))
    att_NxTxS = _weights(c, logits_NxTxS, causal_TxS, hyper)
    self._probe(q, k, logits_NxTxS, att_NxTxS, causal_TxS, H)
    out = jnp.einsum('nts,nsk->ntk', att_NxTxS.astype(v.dtype), v)
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

  def _probe(self, q_NxTxK, k_NxSxK, logits_NxTxS, att_NxTxS, causal_TxS, heads: int) -> None:
    """Logits as the paper reads them: every unmasked pair, after the scale, before soft cap.

    Entropy is that of the weights as shares of their sum; 0 where all are 0, as squared ReLU's may
    be. The cosine tells growth by alignment from growth by norms (Fig E.1): it is that of a query
    and the key of its largest logit, after RoPE, as they meet there; mean over all queries.
    """
    if not self.is_mutable_collection(PROBES):
      return
    pairs = logits_NxTxS.shape[0] * causal_TxS.sum()
    masked_NxTxS = jnp.where(causal_TxS, logits_NxTxS, -jnp.inf)
    self.sow(PROBES, 'attention_logit_max', masked_NxTxS.max())
    self.sow(PROBES, 'attention_logit_mean', jnp.where(causal_TxS, logits_NxTxS, 0).sum() / pairs)

    if self.c.attention == 'squared_relu':  # softmax gives shares
      sum_NxTx1 = att_NxTxS.sum(-1, keepdims=True)
      att_NxTxS = att_NxTxS / jnp.where(sum_NxTx1 > 0, sum_NxTx1, 1)
    entropy_NxT = jax.scipy.special.entr(att_NxTxS).sum(-1)
    entropy_H = entropy_NxT.reshape(-1, heads, entropy_NxT.shape[-1]).mean((0, 2))
    self.sow(PROBES, 'attention_entropy', entropy_H)

    best_NxTx1 = masked_NxTxS.argmax(-1, keepdims=True)
    best_NxTxK = jnp.take_along_axis(k_NxSxK, best_NxTx1, axis=1).astype(jnp.float32)
    products_NxT = (q_NxTxK.astype(jnp.float32) * best_NxTxK).sum(-1)
    norms_NxT = _norms(q_NxTxK) * _norms(best_NxTxK)
    cosine_NxT = products_NxT / jnp.where(norms_NxT > 0, norms_NxT, 1)
    self.sow(PROBES, 'query_key_cosine', cosine_NxT.mean())


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
    hyper: Mapping[str, jax.Array],
) -> jax.Array:
  """Queries or keys, normalised in each head as model.qk_norm says."""
  if c.qk_norm in ('layernorm', 'rmsnorm'):  # one scale of head_dim, shared by the heads (E.8)
    return norm(c.qk_norm, c.dtype, f'qk_norm_{name}')(x_NxTxK)
  if c.qk_norm == 'l2':
    return (unit_rms(x_NxTxK) * c.head_dim**-0.5).astype(x_NxTxK.dtype)
  if c.qk_norm == 'fixed':  # to a mean square of kappa (section 3.3, Fig 10)
    return (unit_rms(x_NxTxK) * jnp.sqrt(hyper['model.logit_scale'])).astype(x_NxTxK.dtype)
  return x_NxTxK  # none, or done over all heads


def _weights(
    c: ml_collections.FrozenConfigDict,
    logits_NxTxS: jax.Array,
    causal_TxS: np.ndarray,
    hyper: Mapping[str, jax.Array],
) -> jax.Array:
  """What a position takes of each up to itself: by softmax, or relu^2 / sqrt(T) (E.11)."""
  if c.attention_soft_cap:
    logits_NxTxS = soft_cap(logits_NxTxS, hyper['model.attention_soft_cap'])
  if c.attention == 'squared_relu':
    T = causal_TxS.shape[0]
    return jnp.where(causal_TxS, jnp.square(nn.relu(logits_NxTxS)), 0) * T**-0.5
  return jax.nn.softmax(jnp.where(causal_TxS, logits_NxTxS, jnp.finfo(jnp.float32).min))


def rope(x_NxTxK: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + K/2) by position / base^(2i/K) (RoFormer, arXiv 2104.09864)."""
  _, T, K = x_NxTxK.shape
  frequency = ROPE_BASE ** (-np.arange(K // 2) / (K // 2))
  angle_TxK = np.arange(T)[:, None] * np.tile(frequency, 2)
  cos_TxK = jnp.asarray(np.cos(angle_TxK), x_NxTxK.dtype)
  signed_sin_TxK = np.sin(angle_TxK) * np.repeat([-1.0, 1.0], K // 2)
  rolled_NxTxK = jnp.roll(x_NxTxK, K // 2, axis=-1)
  return x_NxTxK * cos_TxK + rolled_NxTxK * jnp.asarray(signed_sin_TxK, x_NxTxK.dtype)


def _norms(x_NxTxK: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x_NxTxK.astype(jnp.float32), axis=-1)
