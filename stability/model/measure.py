"""What modules record in a forward pass, and how to join measurements of parts of a batch.

A module sows a measurement into one of three Flax collections:

  PROBES       measured in probed steps and logged under its own name
  ACTIVATIONS  the RMS of an activation, measured in probed steps and logged under activation_rms/
  QUIET        measured in every training step, since a transformation after the update needs it
               (Term.needs)

Sowing costs nothing in a step whose `apply` does not make the collection mutable.

Into a fourth one, LOSSES, it sows what terms of the objective add to the loss.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

PROBES = 'probes'
ACTIVATIONS = 'activation_rms'
QUIET = 'quiet'
LOSSES = 'losses'


@flax.struct.dataclass
class Measured:
  """A measurement of a batch: a number, or one number per head, [H], or expert, [E], of a layer."""

  value: jax.Array
  # How to join the values of equal parts of the batch: mean, max or rms (quadratic mean).
  join: str = flax.struct.field(pytree_node=False, default='mean')
  by_head: bool = flax.struct.field(pytree_node=False, default=False)
  by_expert: bool = flax.struct.field(pytree_node=False, default=False)
  logged: bool = flax.struct.field(pytree_node=False, default=True)


def sow(module: nn.Module, name: str, value: Any, join: str = 'mean') -> None:
  """Records a probe of a module."""
  module.sow(PROBES, name, Measured(value, join))


def sow_activation(module: nn.Module, name: str, x: jax.Array) -> None:
  """Records the RMS of an activation over all its elements."""
  module.sow(ACTIVATIONS, name, Measured(rms(x), 'rms'))


def sow_loss(module: nn.Module, name: str, value: jax.Array) -> None:
  """Records a mean over the tokens or sequences of the batch, for a term of the objective."""
  module.sow(LOSSES, name, value)


def rms(x: jax.Array) -> jax.Array:
  """Root mean square over all elements, in float32."""
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
