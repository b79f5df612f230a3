"""The training objective: next-token cross-entropy plus terms such as z-loss (section 3.1.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from stability.model import kernels
from stability.step import probes
from stability.types import HParams, Metrics, Static
from stability.variants import Term, Terms


@dataclasses.dataclass(frozen=True)
class Forward:
  """The forward pass of a batch, as terms of the objective read it."""

  logits_BxTxV: jax.Array
  targets_BxT: jax.Array
  log_z_BxT: jax.Array  # log of the softmax normaliser Z
  weights: Mapping[str, Any]  # the weights that the model computed with
  hparams: HParams
  losses: Mapping[str, Any]  # what modules sowed (sow_loss in stability/model/measure.py)

  def sown(self, name: str) -> jax.Array:
    """The mean over all modules that sowed a loss of this name; 0 if none did."""
    by_path = flax.traverse_util.flatten_dict(dict(self.losses))
    values = [value for path, (value,) in by_path.items() if path[-1] == name]
    return sum(values, start=jnp.float32(0)) / max(len(values), 1)


def _z_loss(forward: Forward) -> jax.Array:
  """Coefficient times the mean of log^2 Z; keeps output logits from drifting."""
  return forward.hparams['objective.z_loss'] * jnp.mean(jnp.square(forward.log_z_BxT))


def _mu_loss(forward: Forward) -> jax.Array:
  """Coefficient times the squared norm of the head's mean output embedding."""
  mean_D = jnp.mean(kernels.head_of(forward.weights), axis=1)
  return forward.hparams['objective.mu_loss'] * jnp.sum(jnp.square(mean_D))


def _balance_loss(forward: Forward) -> jax.Array:
  """Coefficient times E sum_e f_e P_e: f is the load of experts, P their mean probability."""
  return forward.hparams['objective.balance_loss'] * forward.sown('balance_loss')


def _router_z_loss(forward: Forward) -> jax.Array:
  """Coefficient times the mean of log^2 Z of the routers."""
  return forward.hparams['objective.router_z_loss'] * forward.sown('router_z_loss')


# Forward -> a term of the objective, including its coefficient. Each is logged under its name.
OBJECTIVE = Terms(
    'objective',
    [
        Term('z_loss', _z_loss, 'section 3.1.2; arXiv 2204.02311', reads=('objective.z_loss',)),
        Term(
            'mu_loss',
            _mu_loss,
            'arXiv 2601.02031',
            when='objective.mu_loss',
            reads=('objective.mu_loss',),
        ),
        Term(
            'balance_loss',
            _balance_loss,
            'arXiv 2101.03961; of each sequence: arXiv 2412.19437',
            when='objective.balance_loss',
            reads=('objective.balance_loss',),
        ),
        Term(
            'router_z_loss',
            _router_z_loss,
            'arXiv 2202.08906',
            when='objective.router_z_loss',
            reads=('objective.router_z_loss',),
        ),
    ],
)


def objective(
    static: Static,
    hparams: HParams,
    logits_BxTxV: jax.Array,
    targets_BxT: jax.Array,
    weights: Mapping[str, Any],
    losses: Mapping[str, Any],
) -> tuple[jax.Array, Metrics]:
  """The training objective, and its summands by name.

  The summands are the active terms of OBJECTIVE and `loss`, the mean cross-entropy in nats.
  """
  log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
  loss = _mean_cross_entropy(logits_BxTxV, targets_BxT, log_z_BxT)
  forward = Forward(logits_BxTxV, targets_BxT, log_z_BxT, weights, hparams, losses)
  terms = {term.name: term.make(forward) for term in OBJECTIVE.active(static)}
  return loss + sum(terms.values()), probes.merged({'loss': loss}, terms)


def cross_entropy(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
  """Mean next-token cross-entropy, in nats per token."""
  return _mean_cross_entropy(logits_BxTxV, targets_BxT, jax.nn.logsumexp(logits_BxTxV, axis=-1))


def _mean_cross_entropy(logits_BxTxV, targets_BxT, log_z_BxT):
  # A sum of zeros and one logit rather than a gather: its gradient is fused with that of log Z,
  # where a gather's is a scatter into another array of the size of the logits.
  is_target = jnp.arange(logits_BxTxV.shape[-1]) == targets_BxT[..., None]
  target_logits = jnp.sum(jnp.where(is_target, logits_BxTxV, 0), axis=-1)
  return jnp.mean(log_z_BxT - target_logits)
