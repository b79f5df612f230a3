"""What is measured inside a run, by the probed step only; names are part of the file contract."""

from typing import Any

import flax.traverse_util
import jax

from stability import layers
from stability.layers import rms

Measurements = dict[str, jax.Array]


def measure(
    sown: dict[str, Any],
    params: dict[str, Any],
    gradients: dict[str, Any],
    updates: dict[str, Any],
    eps: jax.Array,
) -> Measurements:
  """All probes of a step, scalars in float32.

  Args:
    sown: what the model measured in itself.
    params: before the update.
    gradients: before clipping.
    updates: the optimizer's direction, without learning rate, schedule and weight decay.
    eps: AdamW's.
  """
  found = {}
  for path, (value,) in _paths(sown[layers.PROBES]):
    found[path.replace('/attention/', '/')] = value  # block_0/attention_logit_max
  for path, (value,) in _paths(sown[layers.ACTIVATIONS]):
    found[f'activation_rms/{path}'] = value
  for path, gradient in _paths(gradients):
    found[f'gradient_rms/{path}'] = rms(gradient)
    found[f'gradient_over_eps/{path}'] = rms(gradient) / eps
  found |= {f'parameter_rms/{path}': rms(value) for path, value in _paths(params)}
  found |= {f'update_rms/{path}': rms(value) for path, value in _paths(updates)}
  return found


def _paths(tree: dict[str, Any]) -> list[tuple[str, Any]]:
  return list(flax.traverse_util.flatten_dict(tree, sep='/').items())
