"""Measurements that a model takes of itself, and how those of parts of a batch are joined.

A module sows them in one of three collections:

  PROBES       of a probed step, under their own names
  ACTIVATIONS  of a probed step, the RMS of an activation, under activation_rms/
  QUIET        of every training step: what an update after the optimizer's needs (Term.needs)

In a step whose apply does not make a collection mutable, sowing costs nothing.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

PROBES = 'probes'
ACTIVATIONS = 'activation_rms'
QUIET = 'quiet'


@flax.struct.dataclass
class Measured:
  """A number of a batch, or one for each head of a layer, [H]."""

  value: jax.Array
  # How it follows from those of equal parts of the batch: by mean, max or rms (quadratic mean).
  join: str = flax.struct.field(pytree_node=False, default='mean')
  by_head: bool = flax.struct.field(pytree_node=False, default=False)
  logged: bool = flax.struct.field(pytree_node=False, default=True)


def sow(module: nn.Module, name: str, value: Any, join: str = 'mean') -> None:
  """Records a probe of a module."""
  module.sow(PROBES, name, Measured(value, join))


def sow_activation(module: nn.Module, name: str, x: jax.Array) -> None:
  """Records the RMS of an activation over all its elements."""
  module.sow(ACTIVATIONS, name, Measured(rms(x), 'rms'))


def rms(x: jax.Array) -> jax.Array:
  """Root of the mean square over all elements, in float32."""
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
