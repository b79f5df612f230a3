"""Attention statistics: logits, entropy and alignment, over all queries or in blocks of queries.

Shape suffixes: N batch times heads, T (= S) positions, G blocks, R positions of a block, K head
dimension, H heads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from stability.model import blocks
from stability.model.measure import Measured

BLOCK = 128  # queries at a time, at most, where fused attention is measured
MAX_BY_HEAD = 'attention_logit_max_by_head'

Mask = jax.Array | np.ndarray
Logits = Callable[[jax.Array, jax.Array], jax.Array]  # (queries, keys) -> logits
Weights = Callable[[jax.Array, Mask], jax.Array]  # (logits, mask) -> weights


def stats(
    q_NxTxK: jax.Array,
    k_NxSxK: jax.Array,
    logits_NxTxS: jax.Array,
    att_NxTxS: jax.Array,
    causal_TxS: Mask,
    heads: int,
) -> dict[str, Measured]:
  """The attention probes, by name.

  Logit statistics cover all unmasked pairs, after the scale and before the soft cap, as in the
  paper. The entropy of a head, in nats, is that of its weights divided by their sum; it is 0 where
  all weights are 0, as those of squared ReLU may be. query_key_cosine is the cosine of the angle
  between a query and the key of its largest logit, after RoPE, averaged over all queries; it
  distinguishes growth by alignment from growth by norms (figure E.1).
  """
  masked_NxTxS = jnp.where(causal_TxS, logits_NxTxS, -jnp.inf)
  pairs = float(logits_NxTxS.shape[0]) * causal_TxS.sum()  # a float, since an int32 may overflow
  mean = jnp.where(causal_TxS, logits_NxTxS, 0).sum() / pairs
  entropy_NxT = jax.scipy.special.entr(_normalised(att_NxTxS)).sum(-1)
  entropy_H = entropy_NxT.reshape(-1, heads, entropy_NxT.shape[-1]).mean((0, 2))

  best_NxTx1 = masked_NxTxS.argmax(-1, keepdims=True)
  best_NxTxK = jnp.take_along_axis(k_NxSxK, best_NxTx1, axis=1).astype(jnp.float32)
  products_NxT = (q_NxTxK.astype(jnp.float32) * best_NxTxK).sum(-1)
  norms_NxT = norms(q_NxTxK) * norms(best_NxTxK)
  cosine_NxT = products_NxT / jnp.where(norms_NxT > 0, norms_NxT, 1)
  return {
      'attention_logit_max': Measured(masked_NxTxS.max(), 'max'),
      'attention_logit_mean': Measured(mean),
      'attention_entropy': Measured(entropy_H, by_head=True),
      'query_key_cosine': Measured(cosine_NxT.mean()),
  }


def _normalised(att_NxTxS: jax.Array) -> jax.Array:
  """The weights divided by their sum; 0 where the sum is 0."""
  sum_NxTx1 = att_NxTxS.sum(-1, keepdims=True)
  return att_NxTxS / jnp.where(sum_NxTx1 > 0, sum_NxTx1, 1)


def stats_in_blocks(
    q_NxTxK: jax.Array, k_NxSxK: jax.Array, logits: Logits, weights: Weights, heads: int
) -> dict[str, Measured]:
  """The same as `stats`, one block of queries at a time, so that no [T, S] matrix is stored."""

  def block(q_NxRxK, causal_RxS):
    logits_NxRxS = logits(q_NxRxK, k_NxSxK)
    att_NxRxS = weights(logits_NxRxS, causal_RxS)
    return stats(q_NxRxK, k_NxSxK, logits_NxRxS, att_NxRxS, causal_RxS, heads)

  found_G, queries_G, pairs_G = _over_blocks(block, q_NxTxK)

  def join(name: str, measured: Measured) -> Measured:
    if name == 'attention_logit_mean':  # weight each block by its number of pairs
      return measured.replace(value=measured.value @ (pairs_G / pairs_G.sum()))
    if measured.join == 'max':
      return measured.replace(value=measured.value.max(0))
    if queries_G[-1] == queries_G[0]:
      return measured.replace(value=measured.value.mean(0))
    return measured.replace(value=jnp.average(measured.value, axis=0, weights=queries_G))

  return {name: join(name, measured) for name, measured in found_G.items()}


def max_by_head(logits_NxTxS: jax.Array, causal_TxS: Mask, heads: int) -> jax.Array:
  """The largest unmasked logit of each head over the batch, [H], without a gradient."""
  logits_NxTxS = jax.lax.stop_gradient(logits_NxTxS)
  masked_NxTxS = jnp.where(causal_TxS, logits_NxTxS, -jnp.inf)
  return masked_NxTxS.max((1, 2)).reshape(-1, heads).max(0)


def max_by_head_in_blocks(
    q_NxTxK: jax.Array, k_NxSxK: jax.Array, logits: Logits, heads: int
) -> jax.Array:
  """The same as `max_by_head`, one block of queries at a time."""

  def block(q_NxRxK, causal_RxS):
    return max_by_head(logits(q_NxRxK, k_NxSxK), causal_RxS, heads)

  found_GxH, *_ = _over_blocks(block, q_NxTxK)
  return found_GxH.max(0)


def _over_blocks(
    block: Callable, q_NxTxK: jax.Array
) -> tuple[object, np.ndarray, np.ndarray]:
  """Maps a function of queries and mask over blocks of queries.

  Returns its results, [G, ...], and the numbers of queries and of unmasked pairs in each block,
  [G].
  """
  N, T, K = q_NxTxK.shape
  rows = blocks.length(T, BLOCK)
  rest = T % rows
  positions_GxR = np.arange(T - rest).reshape(-1, rows)

  def apply(position_R_and_q_NxRxK):
    position_R, q_NxRxK = position_R_and_q_NxRxK
    return block(q_NxRxK, position_R[:, None] >= np.arange(T))

  q_GxNxRxK = q_NxTxK[:, : T - rest].reshape(N, -1, rows, K).swapaxes(0, 1)
  found_G = jax.lax.map(apply, (positions_GxR, q_GxNxRxK))
  starts_G = np.arange(0, T, rows)
  if rest:
    last = apply((np.arange(T - rest, T), q_NxTxK[:, T - rest :]))
    found_G = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), found_G, last)
  return found_G, np.diff(starts_G, append=T), np.add.reduceat(np.arange(T) + 1, starts_G)


def norms(x_NxTxK: jax.Array) -> jax.Array:
  """L2 norms over the last axis, [N, T], in float32."""
  return jnp.linalg.norm(x_NxTxK.astype(jnp.float32), axis=-1)
