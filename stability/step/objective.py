"""What training minimises: next-token cross-entropy, z-loss (paper section 3.1.2) and mu-loss."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

Metrics = dict[str, jax.Array]


def objective(
    c: ml_collections.FrozenConfigDict,
    hparams: Mapping[str, jax.Array],
    logits_BxTxV: jax.Array,
    targets_BxT: jax.Array,
    head_DxV: jax.Array,
) -> tuple[jax.Array, Metrics]:
  """The loss plus its terms; the metrics hold each under its own name, times its coefficient.

  loss is the mean cross-entropy in nats, alone; z_loss is of mean log^2 Z, Z the softmax's
  normaliser; mu_loss, if `c` (config.objective) has it on, is of the squared norm of the mean
  output embedding (arXiv 2601.02031).
  """
  log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
  loss = _mean_cross_entropy(logits_BxTxV, targets_BxT, log_z_BxT)
  terms = {'z_loss': hparams['objective.z_loss'] * jnp.mean(jnp.square(log_z_BxT))}
  if c.mu_loss:
    mean_square_norm = jnp.sum(jnp.square(jnp.mean(head_DxV, axis=1)))
    terms['mu_loss'] = hparams['objective.mu_loss'] * mean_square_norm
  return loss + sum(terms.values()), {'loss': loss, **terms}


def centered(head_DxV: jax.Array) -> jax.Array:
  """The head less its mean output embedding: mu-centering (arXiv 2601.02031)."""
  return head_DxV - jnp.mean(head_DxV, axis=1, keepdims=True)


def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
  """Mean next-token cross-entropy in nats."""
  return _mean_cross_entropy(logits_BxTxV, targets_BxT, jax.nn.logsumexp(logits_BxTxV, axis=-1))


def _mean_cross_entropy(logits_BxTxV, targets_BxT, log_z_BxT):
  target_logits = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
  return jnp.mean(log_z_BxT - target_logits)
