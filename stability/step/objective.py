"""The training objective: next-token cross-entropy plus terms such as z-loss (section 3.1.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from stability.variants import Term, Terms

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Forward:
  """The forward pass of a batch, as terms of the objective read it."""

  logits_BxTxV: jax.Array
  targets_BxT: jax.Array
  log_z_BxT: jax.Array  # log of the softmax normaliser Z
  weights: Mapping[str, Any]  # the weights that the model computed with
  hparams: Mapping[str, jax.Array]


def _z_loss(forward: Forward) -> jax.Array:
  """Coefficient times the mean of log^2 Z; keeps output logits from drifting."""
  return forward.hparams['objective.z_loss'] * jnp.mean(jnp.square(forward.log_z_BxT))


def _mu_loss(forward: Forward) -> jax.Array:
  """Coefficient times the squared norm of the head's mean output embedding."""
  mean_D = jnp.mean(forward.weights['head'], axis=1)
  return forward.hparams['objective.mu_loss'] * jnp.sum(jnp.square(mean_D))


# Forward -> a term of the objective, including its coefficient. Each is logged under its name.
OBJECTIVE = Terms(
    'objective',
    [
        Term('z_loss', _z_loss, 'section 3.1.2; arXiv 2204.02311', reads=('objective.z_loss',)),
        Term('mu_loss', _mu_loss, 'arXiv 2601.02031', when='objective.mu_loss'),
    ],
)


def objective(
    static: ml_collections.FrozenConfigDict,
    hparams: Mapping[str, jax.Array],
    logits_BxTxV: jax.Array,
    targets_BxT: jax.Array,
    weights: Mapping[str, Any],
) -> tuple[jax.Array, Metrics]:
  """The training objective, and its summands by name.

  The summands are the active terms of OBJECTIVE and `loss`, the mean cross-entropy in nats.
  """
  log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
  loss = _mean_cross_entropy(logits_BxTxV, targets_BxT, log_z_BxT)
  forward = Forward(logits_BxTxV, targets_BxT, log_z_BxT, weights, hparams)
  terms = {term.name: term.make(forward) for term in OBJECTIVE.active(static)}
  return loss + sum(terms.values()), {'loss': loss, **terms}


def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
  """Mean next-token cross-entropy, in nats per token."""
  return _mean_cross_entropy(logits_BxTxV, targets_BxT, jax.nn.logsumexp(logits_BxTxV, axis=-1))


def _mean_cross_entropy(logits_BxTxV, targets_BxT, log_z_BxT):
  # A sum of zeros and one logit rather than a gather: its gradient is fused with that of log Z,
  # where a gather's is a scatter into another array of the size of the logits.
  is_target = jnp.arange(logits_BxTxV.shape[-1]) == targets_BxT[..., None]
  target_logits = jnp.sum(jnp.where(is_target, logits_BxTxV, 0), axis=-1)
  return jnp.mean(log_z_BxT - target_logits)
