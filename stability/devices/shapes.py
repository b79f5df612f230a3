"""Parameters, FLOPs and memory of a run, from the shapes of traced programs.

Nothing is computed or compiled: stability/devices/traces.py traces the functions of
stability/step/train_step.py, which contain every variant. All blocks of a model are alike, so every
amount is linear in the depth and follows from traces at two depths.

This module imports jax only when it first traces. A process that must not use an accelerator calls
`trace_on_cpu` first.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from stability import config as config_lib
from stability import variants
from stability.config import FIELDS

AnyConfig = Mapping[str, Any]  # resolved or static: nested mappings
# The fields of a static config without the depth, and as '' the revision of the variants' tables.
Fields = tuple[tuple[str, Any], ...]

# Sections on which the update of a run does not depend, and those on which its gradient does not.
_NOT_UPDATE = {'init', 'schedule', 'parallel', 'log', 'probe', 'checkpoint', 'control'}
_NOT_GRADIENT = _NOT_UPDATE | {'optimizer', 'evaluation'}


def trace_on_cpu() -> None:
  """Keeps this process, but not its child processes, from using an accelerator."""
  import jax

  jax.config.update('jax_platforms', 'cpu')


def architecture(config: AnyConfig) -> Fields:
  """A key that is equal for configs whose gradients share their traces."""
  return _fields(config, _NOT_GRADIENT)


def parameters(config: AnyConfig) -> int:
  """Number of weights in the matrices of the blocks.

  Norm scales, biases, the gate of attention, routers, the embedding and the head are not counted.
  """
  from stability.devices import traces

  return config['model']['depth'] * traces.block_parameters(architecture(config))


def step_flops(config: AnyConfig, vocabulary_size: int) -> float:
  """FLOPs of the matrix products in one step, those of the gradient and of the optimizer."""
  gradient = gradient_flops(config, vocabulary_size)
  # Most optimizers have no products: a second trace would be wasted.
  has_products = _update_at(config, vocabulary_size, depth=1).flops > 0
  return gradient + (_update(config, vocabulary_size).flops if has_products else 0)


def gradient_flops(config: AnyConfig, vocabulary_size: int) -> float:
  """FLOPs of the matrix products in the gradient of one step; a third is the forward pass."""
  from stability.devices import traces

  depth, rows = config['model']['depth'], config['data']['batch_size']
  key = architecture(config), vocabulary_size
  trace = functools.partial(traces.gradient, *key, remat=False, platform='cpu')
  at_0, at_1 = (trace(depth=d).flops.at(rows) for d in (0, 1))
  return at_0 + depth * (at_1 - at_0)


@dataclasses.dataclass(frozen=True)
class StateBytes:
  """Bytes of a run's state and of its update."""

  params: float
  optimizer: float  # and everything else in the state
  update: float  # the updates and the intermediates that the optimizer stores


def state_bytes(config: AnyConfig, vocabulary_size: int) -> StateBytes:
  """Bytes of the state of a run and of its update, on one device."""
  found = _update(config, vocabulary_size)
  return StateBytes(params=found.params, optimizer=found.optimizer, update=found.stored)


def _update(config: AnyConfig, vocabulary_size: int) -> Any:
  """The update at the depth of the config."""
  from stability.devices import traces

  # Depth 0 is avoided, since an optimizer may fail if there are no matrices.
  one, two = (_update_at(config, vocabulary_size, depth) for depth in (1, 2))
  others = config['model']['depth'] - 1
  return traces.Update(*(a + others * (b - a) for a, b in zip(one, two)))


def _update_at(config: AnyConfig, vocabulary_size: int, depth: int) -> Any:
  from stability.devices import traces

  key = _fields(config, _NOT_UPDATE), architecture(config), vocabulary_size
  return traces.update(*key, depth=depth)


@dataclasses.dataclass(frozen=True)
class GradientBytes:
  """Memory at the peak of a gradient's computation, besides the state, in bytes."""

  gradients: float
  activations: float

  @property
  def total(self) -> float:
    """The sum of both."""
    return self.gradients + self.activations


def gradient_bytes(
    config: AnyConfig,
    vocabulary_size: int,
    *,
    rows: int,
    shards: int,
    remat: bool,
    platform: str,
) -> GradientBytes:
  """The peak memory of the gradient of some rows on a device.

  In the forward pass, each block stores what its backward pass reads; in the backward pass, this is
  replaced by the gradients of its parameters.

  Args:
    config: a resolved or static config.
    vocabulary_size: number of different tokens.
    rows: number of sequences of a microbatch on the device.
    shards: number of devices over which the parameters are split.
    remat: whether the backward pass recomputes the blocks.
    platform: of the devices; see placement.choose.
  """
  from stability.devices import traces

  if platform == 'gpu' and config['probe']['sharpness_every_steps']:
    platform = 'other_gpu'  # sharp steps do without fused attention
  depth, key = config['model']['depth'], (architecture(config), vocabulary_size)
  trace = functools.partial(traces.gradient, *key, remat=remat, platform=platform)
  none = trace(depth=0)
  one = none if depth == 0 else trace(depth=1)
  others = max(depth - 1, 0)  # blocks that are not in the trace
  of_block = one.kept - none.kept
  if shards > 1 and platform == 'tpu_v5e':
    # Its compiler multiplies by pieces of the weights as they arrive, and keeps no cast copies.
    of_block = of_block._replace(fixed=0)
  kept = others * of_block.at(rows)
  other_gradients = others * one.block / shards
  found = []
  for moment in one.moments:
    gradients, activations = moment.gradients / shards, moment.rest.at(rows)
    found.append(GradientBytes(gradients, activations + kept))
    if moment.is_backward:  # the traced block may be the last one, as above, or the first one
      found.append(GradientBytes(gradients + other_gradients, activations))
  peak = max(found, key=lambda stored: stored.total)
  gathered = 0.0
  if shards > 1 and config['model']['dtype'] == 'float32':
    # Weights that are gathered from the other devices are stored in addition. With another dtype,
    # the trace already contains the cast copies.
    gathered = none.params + (min(depth, 1) if remat else depth) * one.block
  return dataclasses.replace(peak, activations=peak.activations + gathered)


def _fields(config: AnyConfig, without: set[str]) -> Fields:
  """The static fields as a key for traces; those that do not matter are set to their defaults."""
  nested = config.to_dict() if hasattr(config, 'to_dict') else config
  found: list[tuple[str, Any]] = [('', variants.revision())]
  for field, value in config_lib.static_fields(nested):
    section, _, name = field.partition('.')
    if section in without or (section == 'data' and name != 'sequence_length'):
      default = FIELDS[field].default_at('cpu')
      found.append((field, default > 0 if FIELDS[field].switch else default))
    elif field != 'model.depth':
      found.append((field, value))
  return tuple(found)
