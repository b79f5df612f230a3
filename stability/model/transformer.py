"""The paper's decoder-only Transformer (arXiv 2309.14322, section 2.1), in Flax linen.

Pre-LayerNorm, rotary positions, GELU, no biases, untied head; qk-layernorm is on by default.
stability/model/attention.py holds attention and its variants. Modules are called with the run's
traced hyperparameters, under their dotted config names, for what is switched on to read its number
there. Shapes in names: B batch, T positions, D width, F MLP width, V vocabulary.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from stability.model.attention import Attention
from stability.model.layers import ACTIVATIONS, PROBES, dot, fan_in_init, norm, rms, soft_cap


class Transformer(nn.Module):
  """Tokens [B, T] -> logits [B, T, V] in float32."""

  c: ml_collections.FrozenConfigDict  # config.model
  vocabulary_size: int
  remat: bool = False  # going backward, compute the inside of a block again: keeps less of it
  fused: bool = False  # attention by a GPU's kernel, where that serves

  @nn.compact
  def __call__(self, tokens_BxT: jax.Array, hparams: Mapping[str, jax.Array]) -> jax.Array:
    c = self.c
    B, T = tokens_BxT.shape
    embedding_VxD = self.param(
        'embedding', nn.initializers.normal(c.width**-0.5), (self.vocabulary_size, c.width)
    )
    # Taken before the cast: going backward, a frequent token's gradients add up in float32.
    x_BxTxD = embedding_VxD[tokens_BxT].astype(c.dtype)
    self.sow(ACTIVATIONS, 'embedding', rms(x_BxTxD))
    block = nn.remat(Block) if self.remat else Block
    for i in range(c.depth):
      x_BxTxD = block(c, self.fused, name=f'block_{i}')(x_BxTxD, hparams)
    x_BxTxD = norm(c.norm, c.dtype, 'final_norm')(x_BxTxD)
    head_DxV = self.param('head', fan_in_init, (c.width, self.vocabulary_size))
    logits = dot(x_BxTxD.reshape(B * T, c.width), head_DxV.astype(c.dtype), jnp.float32)
    head_logits = capped_logits = logits.reshape(B, T, self.vocabulary_size)
    if c.output_soft_cap:
      capped_logits = soft_cap(head_logits, hparams['model.output_soft_cap'])
    self.sow(ACTIVATIONS, 'logits', rms(head_logits))
    if self.is_mutable_collection(PROBES):
      # The head's own, since a cap would hide their drift; Z is the softmax's, so of the capped.
      self.sow(PROBES, 'output_logit_mean', jnp.mean(head_logits))
      self.sow(PROBES, 'output_logit_max', jnp.max(head_logits))
      self.sow(PROBES, 'log_z', jnp.mean(jax.nn.logsumexp(capped_logits, axis=-1)))
    return capped_logits


class Block(nn.Module):
  """Attention, then MLP, each on the normalised stream and added to it.

  Peri-LN (arXiv 2502.02732) normalises what they put out as well, before it is added.
  """

  c: ml_collections.FrozenConfigDict
  fused: bool = False

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array, hparams: Mapping[str, jax.Array]) -> jax.Array:
    c = self.c
    attention = Attention(c, self.fused, name='attention')
    out = attention(norm(c.norm, c.dtype, 'attention_norm')(x_BxTxD), hparams)
    if c.norm_position == 'peri':
      out = norm(c.norm, c.dtype, 'attention_output_norm')(out)
    x_BxTxD += out
    out = MLP(c, name='mlp')(norm(c.norm, c.dtype, 'mlp_norm')(x_BxTxD))
    if c.norm_position == 'peri':
      out = norm(c.norm, c.dtype, 'mlp_output_norm')(out)
    x_BxTxD += out
    self.sow(PROBES, 'output_rms', rms(x_BxTxD))
    return x_BxTxD


class MLP(nn.Module):
  """Linear to 4 D, GELU (its tanh form), linear back."""

  c: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    c = self.c
    B, T, D = x_BxTxD.shape
    up_DxF = self.param('up', fan_in_init, (D, 4 * D))
    down_FxD = self.param('down', fan_in_init, (4 * D, D))
    hidden = nn.gelu(dot(x_BxTxD.reshape(B * T, D), up_DxF.astype(c.dtype)))
    out = dot(hidden, down_FxD.astype(c.dtype)).reshape(B, T, D)
    self.sow(ACTIVATIONS, 'hidden', rms(hidden))
    self.sow(ACTIVATIONS, 'output', rms(out))
    return out
