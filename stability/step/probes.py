"""What is measured inside a run, by the probed step only; names are part of the file contract.

Where a batch is taken in parts (microbatches, devices), `forward` measures each and `joined` makes
of them what the whole batch would have given.
"""

from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from stability.model import layers
from stability.model.layers import rms

Measurements = dict[str, jax.Array]


def forward(sown: dict[str, Any]) -> Measurements:
  """What the model measured in itself, by name: scalars, but attention_entropy is [heads]."""
  found = {}
  for path, (value,) in _paths(sown[layers.PROBES]):
    found[path.replace('/attention/', '/')] = value  # block_0/attention_logit_max
  for path, (value,) in _paths(sown[layers.ACTIVATIONS]):
    found[f'activation_rms/{path}'] = value
  return found


def joined(
    parts: Measurements,
    mean: Callable[[jax.Array], jax.Array],
    highest: Callable[[jax.Array], jax.Array],
) -> Measurements:
  """A batch's measurements from those of its parts, which are of one size.

  Args:
    parts: of all parts, in a form that the two functions reduce.
    mean: over the parts.
    highest: over the parts.
  """

  def join(name: str, value: jax.Array) -> jax.Array:
    if name.endswith('_max'):
      return highest(value)
    if '_rms' in name:
      return jnp.sqrt(mean(jnp.square(value)))
    return mean(value)

  return {name: join(name, value) for name, value in parts.items()}


def measure(
    measured: Measurements,
    params: dict[str, Any],
    gradients: dict[str, Any],
    updates: dict[str, Any],
    eps: jax.Array,
) -> Measurements:
  """All probes of a step, scalars in float32.

  Args:
    measured: of the whole batch, what `forward` found and what else joins it.
    params: before the update.
    gradients: before clipping.
    updates: the optimizer's direction, without learning rate, schedule and weight decay.
    eps: AdamW's.
  """
  found = {}
  for name, value in measured.items():
    if name.endswith('/attention_entropy'):
      found |= {name: value.mean(), f'{name}_min': value.min()}  # over heads
    else:
      found[name] = value
  for path, gradient in _paths(gradients):
    found[f'gradient_rms/{path}'] = rms(gradient)
    found[f'gradient_over_eps/{path}'] = rms(gradient) / eps
  found |= {f'parameter_rms/{path}': rms(value) for path, value in _paths(params)}
  found |= {f'update_rms/{path}': rms(value) for path, value in _paths(updates)}
  return found


def _paths(tree: dict[str, Any]) -> list[tuple[str, Any]]:
  return list(flax.traverse_util.flatten_dict(tree, sep='/').items())
