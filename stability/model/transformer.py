"""The paper's decoder-only Transformer (arXiv 2309.14322, section 2.1), in Flax linen.

Pre-LayerNorm, rotary positions, GELU, no biases, untied head; qk-layernorm is on by default.
Modules are called with the run's traced hyperparameters, by dotted config name, and read those of
the options that are on. Shape suffixes: B batch, T positions, D width, V vocabulary.
"""


import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import PartitionSpec

from stability.model import adapters, ngpt
from stability.model.attention import Attention, Fused, soft_cap
from stability.model.kernels import dot, embedding, embedding_of, kernel_of_head
from stability.model.measure import PROBES, rms, sow, sow_activation
from stability.model.mlp import MLPS
from stability.model.norms import norm, unit_rms
from stability.model.residuals import RESIDUALS, SKIPS, Apply, Layer
from stability.types import HParams
from stability.variants import Choices, Variant


class Transformer(nn.Module):
  """Tokens [B, T] -> logits [B, T, V] in float32.

  The residual stream [B, T, D] after the final norm is the output of the part `trunk` and the input
  of the part `head`.
  """

  c: ml_collections.FrozenConfigDict  # config.model
  vocabulary_size: int
  remat: bool = False  # recompute each block in the backward pass, to save memory
  fused: Fused | None = None  # used in attention where it suits the config
  needs: tuple[str, ...] = ()  # measurements to take in quiet steps as well
  part: str = 'whole'  # or trunk, or head

  @nn.compact
  def __call__(self, inputs: jax.Array, hparams: HParams) -> jax.Array:
    x_BxTxD = inputs if self.part == 'head' else self._stream(inputs, hparams)
    return x_BxTxD if self.part == 'trunk' else self._logits(x_BxTxD, hparams)

  def _stream(self, tokens_BxT: jax.Array, hparams: HParams) -> jax.Array:
    c = self.c
    x_BxTxD = EMBEDDINGS[c.embedding].make(self, tokens_BxT, hparams)
    sow_activation(self, 'embedding', x_BxTxD)
    x_BxTxD = adapters.adapt(self, 'embedding', x_BxTxD)
    block = nn.remat(Block) if self.remat else Block
    x_BxTxD = _split_by_rows(x_BxTxD)
    start_BxTxD, values = x_BxTxD, None  # values: of the first block
    for i in range(c.depth):
      apply = block(c, i, self.fused, self.needs, name=f'block_{i}')
      x_BxTxD, values = apply(x_BxTxD, start_BxTxD, hparams, values)
      x_BxTxD = _split_by_rows(x_BxTxD)
    x_BxTxD = adapters.adapt(self, 'stream', x_BxTxD)
    if RESIDUALS[c.norm_position].make.final_norm:
      x_BxTxD = norm(c.norm, c.dtype, 'final_norm')(x_BxTxD)
    return x_BxTxD

  def _logits(self, x_BxTxD: jax.Array, hparams: HParams) -> jax.Array:
    c = self.c
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
  """Attention and MLP, added to the residual stream [B, T, D].

  Returns the stream, and the values of the first block's attention if later blocks read them.
  """

  c: ml_collections.FrozenConfigDict
  index: int  # position among the blocks, from 0
  fused: Fused | None = None
  needs: tuple[str, ...] = ()

  @nn.compact
  def __call__(
      self,
      x_BxTxD: jax.Array,
      start_BxTxD: jax.Array,
      hparams: HParams,
      first_values: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array | None]:
    c = self.c
    skip = SKIPS[c.embedding_skip].make
    if skip is not None:
      x_BxTxD = skip(self, x_BxTxD, start_BxTxD)
    attention = Attention(c, self.fused, self.needs, name='attention')
    mlp = MLPS[c.mlp].make(c, name='mlp')

    def attend(x):
      nonlocal first_values
      out, first_values = attention(x, hparams, first_values)
      return adapters.adapt(self, 'attention', out)

    def transform(x):
      return adapters.adapt(self, 'mlp', mlp(x, hparams))

    residual = RESIDUALS[c.norm_position].make.make(self)
    x_BxTxD = BLOCKS[c.block].make(residual, x_BxTxD, attend, transform)
    sow(self, 'output_rms', rms(x_BxTxD), 'rms')
    return x_BxTxD, first_values


def _split_by_rows(x_BxTxD: jax.Array) -> jax.Array:
  """x, split over the devices by its rows if a mesh splits the batch.

  Otherwise the compiler may split features, and move activations rather than weights.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.auto_axes:
    return x_BxTxD
  return jax.lax.with_sharding_constraint(x_BxTxD, PartitionSpec(mesh.auto_axes))


def _sequential(residual: Apply, x_BxTxD: jax.Array, attention: Layer, mlp: Layer) -> jax.Array:
  """Attention, then the MLP, each with a residual connection and norms of its own."""
  return residual('mlp', residual('attention', x_BxTxD, attention), mlp)


def _parallel(residual: Apply, x_BxTxD: jax.Array, attention: Layer, mlp: Layer) -> jax.Array:
  """The sum of attention and MLP, which read the same norm, as one layer."""
  return residual('block', x_BxTxD, lambda x: attention(x) + mlp(x))


# (residual connection, x [B, T, D], attention, mlp) -> x plus what both layers contribute.
BLOCKS = Choices(
    'model.block',
    {
        'sequential': Variant(_sequential, 'arXiv 1706.03762; section 2.1'),
        'parallel': Variant(_parallel, 'arXiv 2204.02311'),
    },
)


def _look_up(module: Transformer, tokens_BxT: jax.Array) -> jax.Array:
  """The embeddings of tokens in float32, [B, T, D]."""
  embedding_VxD = embedding(module, (module.vocabulary_size, module.c.width))
  # Cast after the lookup, so that the gradients of a frequent token are summed in float32.
  return embedding_VxD[tokens_BxT]


def _learned_embedding(module: Transformer, tokens_BxT: jax.Array, hparams: HParams) -> jax.Array:
  del hparams
  return _look_up(module, tokens_BxT).astype(module.c.dtype)


def _scaled_embedding(module: Transformer, tokens_BxT: jax.Array, hparams: HParams) -> jax.Array:
  """Embeddings times sqrt(width), which have an RMS of 1 at the start."""
  del hparams
  return (_look_up(module, tokens_BxT) * module.c.width**0.5).astype(module.c.dtype)


def _normed_embedding(module: Transformer, tokens_BxT: jax.Array, hparams: HParams) -> jax.Array:
  """RMSNorm without a learned scale."""
  del hparams
  return unit_rms(_look_up(module, tokens_BxT)).astype(module.c.dtype)


# (module, tokens [B, T], hparams) -> the residual stream [B, T, D].
EMBEDDINGS = Choices(
    'model.embedding',
    {
        'learned': Variant(_learned_embedding, 'std 1 / sqrt(width); section 2.1'),
        'scaled': Variant(_scaled_embedding, 'arXiv 2312.16903'),
        'rmsnorm': Variant(_normed_embedding, 'github.com/karpathy/nanochat'),
    },
)


def _linear_head(module: Transformer, x_BxTxD: jax.Array, hparams: HParams) -> jax.Array:
  del hparams
  shape = (module.c.width, module.vocabulary_size)
  return _head_logits(module, x_BxTxD, kernel_of_head(module, shape))


def _tied_head(module: Transformer, x_BxTxD: jax.Array, hparams: HParams) -> jax.Array:
  """The products with the embeddings."""
  del hparams
  return _head_logits(module, x_BxTxD, embedding_of(module.variables['params']).T)


def _head_logits(module: Transformer, x_BxTxD: jax.Array, head_DxV: jax.Array) -> jax.Array:
  B, T, D = x_BxTxD.shape
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
        'tied': Variant(_tied_head, 'arXiv 1608.05859'),
        'ngpt': Variant(_ngpt_head, 'arXiv 2410.01131'),
    },
)
