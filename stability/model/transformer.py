"""The paper's decoder-only Transformer (arXiv 2309.14322, section 2.1), in Flax linen.

Pre-LayerNorm, rotary positions, GELU, no biases, untied head; qk-layernorm is on by default.
Modules are called with the run's traced hyperparameters, by dotted config name, and read those of
the options that are on. Shape suffixes: B batch, T positions, D width, V vocabulary.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from stability.model import ngpt
from stability.model.attention import Attention, soft_cap
from stability.model.kernels import dot, fan_in_init
from stability.model.measure import PROBES, rms, sow, sow_activation
from stability.model.mlp import MLPS
from stability.model.norms import norm
from stability.model.residuals import RESIDUALS, SKIPS
from stability.variants import Choices, Variant

HParams = Mapping[str, jax.Array]


class Transformer(nn.Module):
  """Tokens [B, T] -> logits [B, T, V] in float32."""

  c: ml_collections.FrozenConfigDict  # config.model
  vocabulary_size: int
  remat: bool = False  # recompute each block in the backward pass, to save memory
  fused: bool = False  # use the fused attention of a GPU where it applies
  needs: tuple[str, ...] = ()  # measurements to take in quiet steps as well

  @nn.compact
  def __call__(self, tokens_BxT: jax.Array, hparams: HParams) -> jax.Array:
    c = self.c
    x_BxTxD = EMBEDDINGS[c.embedding].make(self, tokens_BxT, hparams)
    sow_activation(self, 'embedding', x_BxTxD)
    block = nn.remat(Block) if self.remat else Block
    start_BxTxD = x_BxTxD
    for i in range(c.depth):
      apply = block(c, i, self.fused, self.needs, name=f'block_{i}')
      x_BxTxD = apply(x_BxTxD, start_BxTxD, hparams)
    if RESIDUALS[c.norm_position].make.final_norm:
      x_BxTxD = norm(c.norm, c.dtype, 'final_norm')(x_BxTxD)
    head_logits = HEADS[c.head].make(self, x_BxTxD, hparams)
    logits_BxTxV = head_logits
    if c.output_soft_cap:
      logits_BxTxV = soft_cap(head_logits, hparams['model.output_soft_cap'])
    sow_activation(self, 'logits', head_logits)
    if self.is_mutable_collection(PROBES):
      # Logits are measured before the soft cap, which would hide their drift; Z is the softmax's.
      sow(self, 'output_logit_mean', jnp.mean(head_logits))
      sow(self, 'output_logit_max', jnp.max(head_logits), 'max')
      sow(self, 'log_z', jnp.mean(jax.nn.logsumexp(logits_BxTxV, axis=-1)))
    return logits_BxTxV


class Block(nn.Module):
  """Attention, then MLP, each added to the residual stream [B, T, D]."""

  c: ml_collections.FrozenConfigDict
  index: int  # position among the blocks, from 0
  fused: bool = False
  needs: tuple[str, ...] = ()

  @nn.compact
  def __call__(
      self, x_BxTxD: jax.Array, start_BxTxD: jax.Array, hparams: HParams
  ) -> jax.Array:
    c = self.c
    skip = SKIPS[c.embedding_skip].make
    if skip is not None:
      x_BxTxD = skip(self, x_BxTxD, start_BxTxD)
    residual = RESIDUALS[c.norm_position].make.make(self)
    attention = Attention(c, self.fused, self.needs, name='attention')
    x_BxTxD = residual('attention', x_BxTxD, lambda x: attention(x, hparams))
    mlp = MLPS[c.mlp].make(c, name='mlp')
    x_BxTxD = residual('mlp', x_BxTxD, lambda x: mlp(x, hparams))
    sow(self, 'output_rms', rms(x_BxTxD), 'rms')
    return x_BxTxD


def _learned_embedding(module: Transformer, tokens_BxT: jax.Array, hparams: HParams) -> jax.Array:
  del hparams
  c = module.c
  embedding_VxD = module.param(
      'embedding', nn.initializers.normal(c.width**-0.5), (module.vocabulary_size, c.width)
  )
  # Cast after the lookup, so that the gradients of a frequent token are summed in float32.
  return embedding_VxD[tokens_BxT].astype(c.dtype)


# (module, tokens [B, T], hparams) -> the residual stream [B, T, D].
EMBEDDINGS = Choices(
    'model.embedding', {'learned': Variant(_learned_embedding, 'std 1 / sqrt(width); section 2.1')}
)


def _linear_head(module: Transformer, x_BxTxD: jax.Array, hparams: HParams) -> jax.Array:
  del hparams
  B, T, D = x_BxTxD.shape
  head_DxV = module.param('head', fan_in_init, (D, module.vocabulary_size))
  logits = dot(x_BxTxD.reshape(B * T, D), head_DxV.astype(module.c.dtype), jnp.float32)
  return logits.reshape(B, T, module.vocabulary_size)


def _ngpt_head(module: Transformer, x_BxTxD: jax.Array, hparams: HParams) -> jax.Array:
  """The linear head, whose logits are multiplied by a scale that is learned for each token."""
  logits_BxTxV = _linear_head(module, x_BxTxD, hparams)
  return logits_BxTxV * ngpt.scale(module, 'logit_scale', module.vocabulary_size)


# (module, x [B, T, D], hparams) -> logits [B, T, V] in float32, before model.output_soft_cap.
HEADS = Choices(
    'model.head',
    {
        'linear': Variant(_linear_head, 'untied; section 2.1'),
        'ngpt': Variant(_ngpt_head, 'arXiv 2410.01131'),
    },
)
