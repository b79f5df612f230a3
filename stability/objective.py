"""What training minimises: next-token cross-entropy, and z-loss (paper section 3.1.2)."""

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def objective(
    logits_BxTxV: jax.Array, targets_BxT: jax.Array, z_loss: jax.Array
) -> tuple[jax.Array, Metrics]:
  """The loss plus z_loss * mean log^2 Z; the metrics hold each term under its own name.

  loss is the mean cross-entropy in nats, alone; Z is the softmax's normaliser.
  """
  log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
  loss = _mean_cross_entropy(logits_BxTxV, targets_BxT, log_z_BxT)
  z_term = z_loss * jnp.mean(jnp.square(log_z_BxT))
  return loss + z_term, {'loss': loss, 'z_loss': z_term}


def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
  """Mean next-token cross-entropy in nats."""
  return _mean_cross_entropy(logits_BxTxV, targets_BxT, jax.nn.logsumexp(logits_BxTxV, axis=-1))


def _mean_cross_entropy(logits_BxTxV, targets_BxT, log_z_BxT):
  target_logits = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
  return jnp.mean(log_z_BxT - target_logits)
