"""The paper's decoder-only Transformer (arXiv 2309.14322, section 2.1), in Flax linen.

Pre-LayerNorm, rotary positions, GELU, no biases, untied head; qk-layernorm is on by default.
Shapes in names: B batch, T (= S) positions, D width, H heads, K head dimension, F MLP width,
V vocabulary. Products are taken of two-dimensional arrays, in which XLA's CPU kernels are fastest.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

# Collections that a probed apply makes mutable; elsewhere sow does nothing and costs nothing.
PROBES = 'probes'
ACTIVATIONS = 'activation_rms'
LAYER_NORM_EPS = 1e-6
ROPE_BASE = 10_000.0

fan_in_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


class Transformer(nn.Module):
  """Tokens [B, T] -> logits [B, T, V] in float32."""

  c: ml_collections.FrozenConfigDict  # config.model
  vocabulary_size: int

  @nn.compact
  def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
    c = self.c
    B, T = tokens_BxT.shape
    embedding_VxD = self.param(
        'embedding', nn.initializers.normal(c.width**-0.5), (self.vocabulary_size, c.width)
    )
    x_BxTxD = embedding_VxD.astype(c.dtype)[tokens_BxT]
    self.sow(ACTIVATIONS, 'embedding', rms(x_BxTxD))
    for i in range(c.depth):
      x_BxTxD = Block(c, name=f'block_{i}')(x_BxTxD)
    x_BxTxD = layer_norm(c, 'final_norm')(x_BxTxD)
    head_DxV = self.param('head', fan_in_init, (c.width, self.vocabulary_size))
    logits = _dot(x_BxTxD.reshape(B * T, c.width), head_DxV.astype(c.dtype), jnp.float32)
    return logits.reshape(B, T, self.vocabulary_size)


class Block(nn.Module):
  """Attention, then MLP, each on the normalised stream and added to it."""

  c: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    c = self.c
    x_BxTxD += Attention(c, name='attention')(layer_norm(c, 'attention_norm')(x_BxTxD))
    x_BxTxD += MLP(c, name='mlp')(layer_norm(c, 'mlp_norm')(x_BxTxD))
    self.sow(PROBES, 'output_rms', rms(x_BxTxD))
    return x_BxTxD


class Attention(nn.Module):
  """Causal multi-head attention; logits and softmax in float32."""

  c: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    c = self.c
    B, T, D = x_BxTxD.shape
    K = c.head_dim
    H = D // K
    kernels = [self.param(name, fan_in_init, (D, D)) for name in ('query', 'key', 'value')]
    qkv = _dot(x_BxTxD.reshape(B * T, D), jnp.concatenate(kernels, axis=1).astype(c.dtype))
    # Heads join the batch: [B T, 3 D] -> three of [B H, T, K].
    q, k, v = qkv.reshape(B, T, 3, H, K).transpose(2, 0, 3, 1, 4).reshape(3, B * H, T, K)
    if c.qk_norm == 'layernorm':  # per head; one scale of head_dim, shared by the heads
      q = layer_norm(c, 'qk_norm_query')(q)
      k = layer_norm(c, 'qk_norm_key')(k)
    self.sow(PROBES, 'query_norm', _mean_norm(q))
    self.sow(PROBES, 'key_norm', _mean_norm(k))
    q = rope(q) * jnp.asarray(K**-0.5, q.dtype)
    k = rope(k)
    logits_NxTxS = jnp.einsum('ntk,nsk->nts', q, k, preferred_element_type=jnp.float32)
    causal_TxS = np.tril(np.ones((T, T), bool))
    masked_NxTxS = jnp.where(causal_TxS, logits_NxTxS, jnp.finfo(jnp.float32).min)
    att_NxTxS = jax.nn.softmax(masked_NxTxS)
    self._probe(logits_NxTxS, att_NxTxS, causal_TxS, H)
    out = jnp.einsum('nts,nsk->ntk', att_NxTxS.astype(v.dtype), v)
    out = out.reshape(B, H, T, K).transpose(0, 2, 1, 3).reshape(B * T, D)
    output_DxD = self.param('output', fan_in_init, (D, D))
    out = _dot(out, output_DxD.astype(c.dtype)).reshape(B, T, D)
    self.sow(ACTIVATIONS, 'output', rms(out))
    return out

  def _probe(self, logits_NxTxS, att_NxTxS, causal_TxS, heads: int) -> None:
    """Logits as the paper reads them: every unmasked pair, after 1/sqrt(head_dim)."""
    if not self.is_mutable_collection(PROBES):
      return
    pairs = logits_NxTxS.shape[0] * causal_TxS.sum()
    self.sow(PROBES, 'attention_logit_max', jnp.where(causal_TxS, logits_NxTxS, -jnp.inf).max())
    self.sow(PROBES, 'attention_logit_mean', jnp.where(causal_TxS, logits_NxTxS, 0).sum() / pairs)
    entropy_NxT = jax.scipy.special.entr(att_NxTxS).sum(-1)
    entropy_H = entropy_NxT.reshape(-1, heads, entropy_NxT.shape[-1]).mean((0, 2))
    self.sow(PROBES, 'attention_entropy', entropy_H.mean())
    self.sow(PROBES, 'attention_entropy_min', entropy_H.min())


class MLP(nn.Module):
  """Linear to 4 D, GELU (its tanh form), linear back."""

  c: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    c = self.c
    B, T, D = x_BxTxD.shape
    up_DxF = self.param('up', fan_in_init, (D, 4 * D))
    down_FxD = self.param('down', fan_in_init, (4 * D, D))
    hidden = nn.gelu(_dot(x_BxTxD.reshape(B * T, D), up_DxF.astype(c.dtype)))
    out = _dot(hidden, down_FxD.astype(c.dtype)).reshape(B, T, D)
    self.sow(ACTIVATIONS, 'hidden', rms(hidden))
    self.sow(ACTIVATIONS, 'output', rms(out))
    return out


def layer_norm(c: ml_collections.FrozenConfigDict, name: str) -> nn.LayerNorm:
  """LayerNorm over the last axis: a scale, no bias; statistics in float32."""
  return nn.LayerNorm(
      epsilon=LAYER_NORM_EPS, use_bias=False, use_fast_variance=False, dtype=c.dtype, name=name
  )


def rope(x_NxTxK: jax.Array) -> jax.Array:
  """Rotates the pairs (i, i + K/2) by position / base^(2i/K) (RoFormer, arXiv 2104.09864)."""
  _, T, K = x_NxTxK.shape
  frequency = ROPE_BASE ** (-np.arange(K // 2) / (K // 2))
  angle_TxK = np.arange(T)[:, None] * np.tile(frequency, 2)
  cos_TxK = jnp.asarray(np.cos(angle_TxK), x_NxTxK.dtype)
  signed_sin_TxK = np.sin(angle_TxK) * np.repeat([-1.0, 1.0], K // 2)
  rolled_NxTxK = jnp.roll(x_NxTxK, K // 2, axis=-1)
  return x_NxTxK * cos_TxK + rolled_NxTxK * jnp.asarray(signed_sin_TxK, x_NxTxK.dtype)


def rms(x: jax.Array) -> jax.Array:
  """Root of the mean square over all elements, in float32."""
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


def _mean_norm(x_NxTxK: jax.Array) -> jax.Array:
  return jnp.linalg.norm(x_NxTxK.astype(jnp.float32), axis=-1).mean()


def _dot(x: jax.Array, kernel: jax.Array, dtype=None) -> jax.Array:
  return jnp.dot(x, kernel, preferred_element_type=dtype)
