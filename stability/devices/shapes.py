"""Parameters, FLOPs and memory of a run, from the shapes of its traced programs.

Nothing is computed or compiled: jax.eval_shape and jax.make_jaxpr trace the functions of
stability/step/train_step.py, in which every variant takes part. All blocks of a model are alike, so
models of depth 0 and 1 are traced, and amounts are linear in the depth.

This module imports jax when it first traces. A process that must not take an accelerator calls
`trace_on_cpu` before.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections

from stability import config as config_lib
from stability import variants
from stability.config import FIELDS

if TYPE_CHECKING:
  from stability.devices.jaxprs import Amount

AnyConfig = Mapping[str, Any]  # resolved or static: nested mappings
# The fields of a static config, depth apart; and under '' the revision of the tables of variants.
Fields = tuple[tuple[str, Any], ...]

# Sections that do not shape the state of a run, or not the gradient of a batch.
_NOT_STATE = {'schedule', 'parallel', 'log', 'probe', 'checkpoint', 'control'}
_NOT_GRADIENT = _NOT_STATE | {'optimizer', 'evaluation'}


def trace_on_cpu() -> None:
  """Keeps this process, not those that it starts, from using an accelerator."""
  import jax

  jax.config.update('jax_platforms', 'cpu')


def parameters(config: AnyConfig) -> int:
  """Number of weights in the matrices of the blocks.

  Norm scales, biases, the gate of attention, embedding and head do not count.
  """
  block = _state(_fields(config, _NOT_GRADIENT), 1, 256).block
  return config['model']['depth'] * block


def step_flops(config: AnyConfig, vocabulary_size: int) -> float:
  """FLOPs of the matrix products in one step: the gradient of a batch and the optimizer."""
  state, gradient = _fields(config, _NOT_STATE), _fields(config, _NOT_GRADIENT)
  rows = config['data']['batch_size']

  def at_depth(depth: int) -> float:
    flops = _gradient(gradient, depth, vocabulary_size, False).flops.at(rows)
    return flops + _update(state, depth, vocabulary_size).flops

  return _linear(config, at_depth(0), at_depth(1))


def architecture(config: AnyConfig) -> object:
  """A key that is equal for configs whose gradients share their traces."""
  return _fields(config, _NOT_GRADIENT)


@dataclasses.dataclass(frozen=True)
class StateBytes:
  """Bytes of a run's state and of what its update stores."""

  params: float
  optimizer: float  # and whatever else the state holds
  update: float  # what the optimizer stores while it computes the updates, and these


def state_bytes(config: AnyConfig, vocabulary_size: int) -> StateBytes:
  """The state of a run and its update."""
  fields = _fields(config, _NOT_STATE)
  none, one = (_state(fields, depth, vocabulary_size) for depth in (0, 1))
  update = (_update(fields, depth, vocabulary_size).stored for depth in (0, 1))
  return StateBytes(
      params=_linear(config, none.params, one.params),
      optimizer=_linear(config, none.optimizer, one.optimizer),
      update=_linear(config, *update),
  )


@dataclasses.dataclass(frozen=True)
class GradientBytes:
  """Bytes that are stored at the fullest moment of a gradient, the state apart."""

  gradients: float
  activations: float

  @property
  def total(self) -> float:
    """Both."""
    return self.gradients + self.activations


def gradient_bytes(
    config: AnyConfig, vocabulary_size: int, *, rows: int, shards: int, remat: bool
) -> GradientBytes:
  """The fullest moment of the gradient of some rows on a device.

  In the forward pass every block adds what it keeps for the backward pass; there, the gradients of
  its parameters take the place of this.

  Args:
    config: resolved or static.
    vocabulary_size: of the tokens.
    rows: sequences on the device, of one microbatch.
    shards: devices over which the parameters are split.
    remat: whether blocks are computed again in the backward pass.
  """
  fields, depth = _fields(config, _NOT_GRADIENT), config['model']['depth']
  none = _gradient(fields, 0, vocabulary_size, remat)
  one = none if depth == 0 else _gradient(fields, 1, vocabulary_size, remat)
  blocks = max(depth - 1, 0)
  kept = blocks * (one.kept.at(rows) - none.kept.at(rows))
  made = blocks * one.block / shards
  found = []
  for moment in one.moments:
    gradients, activations = moment.gradients / shards, moment.rest.at(rows)
    found.append(GradientBytes(gradients, activations + kept))
    if moment.is_backward:  # the traced block may be the last one, as above, or the first one
      found.append(GradientBytes(gradients + made, activations))
  fullest = max(found, key=lambda stored: stored.total)
  gathered = 0.0
  if shards > 1 and config['model']['dtype'] == 'float32':
    # Gathered from the other devices, weights are stored once more; with another type, the traced
    # program stores what it casts them to.
    blocks = min(depth, 1) if remat else depth
    gathered = none.params + blocks * one.block
  return dataclasses.replace(fullest, activations=fullest.activations + gathered)


def _linear(config: AnyConfig, none: float, one: float) -> float:
  """An amount at the depth of a config, given that at depths 0 and 1."""
  return none + config['model']['depth'] * (one - none)


def _fields(config: AnyConfig, without: set[str]) -> Fields:
  """The static fields without those that do not matter, which get their defaults."""
  nested = config.to_dict() if hasattr(config, 'to_dict') else config
  found = [('', variants.revision())]
  for field, value in config_lib.static_fields(nested):
    section, _, name = field.partition('.')
    if section in without or (section == 'data' and name != 'sequence_length'):
      default = FIELDS[field].default_at('cpu')
      found.append((field, default > 0 if FIELDS[field].switch else default))
    elif field != 'model.depth':
      found.append((field, value))
  return tuple(found)


# Traces.


@dataclasses.dataclass(frozen=True)
class _State:
  params: int  # bytes
  optimizer: int  # bytes
  block: int  # number of weights in matrices of blocks


class _Moment(NamedTuple):
  """Bytes that are stored at a moment of a gradient."""

  is_backward: bool  # some gradients of a block are there
  gradients: float
  rest: 'Amount'


@dataclasses.dataclass(frozen=True)
class _Gradient:
  flops: 'Amount'
  moments: tuple[_Moment, ...]
  kept: 'Amount'  # bytes that are stored when the loss is there: what the backward pass reads
  params: int  # bytes
  block: int  # bytes of the parameters of blocks


@dataclasses.dataclass(frozen=True)
class _Update:
  flops: float
  stored: float  # bytes, updates included; the new state takes the place of the old one


@functools.cache
def _state(fields: Fields, depth: int, vocabulary_size: int) -> _State:
  state = _abstract_state(fields, depth, vocabulary_size)
  params = _bytes(state['params'])
  return _State(
      params,
      sum(_bytes(value) for key, value in state.items() if key not in ('params', 'hparams')),
      sum(math.prod(leaf.shape) for path, leaf in _leaves(state['params']) if _counts(path, leaf)),
  )


@functools.cache
def _abstract_state(fields: Fields, depth: int, vocabulary_size: int) -> dict[str, Any]:
  """The shapes of a run's state."""
  import jax

  from stability.step import train_step

  static = _static(fields, depth)
  model = train_step.make_model(static, vocabulary_size)
  return jax.eval_shape(functools.partial(train_step.init, model, static), _hparams())


@functools.cache
def _update(fields: Fields, depth: int, vocabulary_size: int) -> _Update:
  """What the optimizer makes of a gradient."""
  import jax

  from stability.devices import jaxprs
  from stability.optim import optimizers

  static = _static(fields, depth)
  state = _abstract_state(fields, depth, vocabulary_size)

  def update(params, optimizer_state, hparams):
    return optimizers.make_optimizer(hparams, static).update(
        params, optimizer_state, params, learning_rate=hparams['optimizer.learning_rate']
    )

  arguments = state['params'], state['optimizer'], state['hparams']
  jaxpr, shapes = jax.make_jaxpr(update, return_shape=True)(*arguments)
  updates, new_state = (len(jax.tree.leaves(tree)) for tree in shapes)
  moments = jaxprs.moments(jaxpr, [1] * updates + [0] * new_state, 1)
  return _Update(
      flops=jaxprs.flops(jaxpr).fixed,
      stored=max((moment.rest.fixed for moment in moments), default=0),
  )


@functools.cache
def _gradient(fields: Fields, depth: int, vocabulary_size: int, remat: bool) -> _Gradient:
  """The gradient of a microbatch of a quiet step."""
  import jax
  import jax.numpy as jnp

  from stability.devices import jaxprs
  from stability.step import train_step

  static = _static(fields, depth)
  model = train_step.make_model(static, vocabulary_size, remat=remat)
  state = _abstract_state(fields, depth, vocabulary_size)
  rows = jax.ShapeDtypeStruct((jaxprs.ROWS, static.data.sequence_length + 1), jnp.int32)
  jaxpr, shapes = jax.make_jaxpr(
      functools.partial(train_step.gradient, model, static, 'quiet'), return_shape=True
  )(state, rows)
  gradients, measured, carried = shapes
  block, other, loss, rest = range(4)
  labels = [block if _is_of_block(path) else other for path, _ in _leaves(gradients)]
  labels += [loss if path[0] == 'loss' else rest for path, _ in _leaves(measured)]
  labels += [rest for _ in _leaves(carried)]
  moments = jaxprs.moments(jaxpr, labels, rest)
  return _Gradient(
      flops=jaxprs.flops(jaxpr),
      moments=_fullest(
          _Moment(
              is_backward=moment.outputs[block].fixed > 0,
              gradients=moment.outputs[block].fixed + moment.outputs[other].fixed,
              rest=moment.rest,
          )
          for moment in moments
      ),
      kept=next(moment.rest for moment in moments if moment.outputs[loss].fixed),
      params=_bytes(state['params']),
      block=sum(_bytes(leaf) for path, leaf in _leaves(gradients) if _is_of_block(path)),
  )


def _fullest(moments: Iterable[_Moment]) -> tuple[_Moment, ...]:
  """The moments that may be the fullest one, for some number of rows and of shards."""
  found: list[_Moment] = []

  def exceeds(a: _Moment, b: _Moment) -> bool:
    return (
        a.is_backward >= b.is_backward
        and a.gradients >= b.gradients
        and a.rest.fixed >= b.rest.fixed
        and a.rest.per_row >= b.rest.per_row
    )

  for moment in moments:
    if not any(exceeds(other, moment) for other in found):
      found = [other for other in found if not exceeds(moment, other)] + [moment]
  return tuple(found)


def _static(fields: Fields, depth: int) -> ml_collections.FrozenConfigDict:
  flat = dict(fields[1:]) | {'model.depth': depth}
  return ml_collections.FrozenConfigDict(config_lib.unflatten(flat))


def _hparams() -> dict[str, Any]:
  """The types of the hyperparameters."""
  import jax
  import numpy as np

  types = {'integer': np.int32, 'number': np.float32}
  return {
      name: jax.ShapeDtypeStruct((), types[field.kind])
      for name, field in FIELDS.items()
      if field.traced
  }


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
  """The leaves of a tree with the names on the way to each."""
  import jax

  return [
      (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)
      for path, leaf in jax.tree.leaves_with_path(tree)
  ]


def _is_of_block(names: tuple[str, ...]) -> bool:
  return names[0].startswith('block_')


def _counts(names: tuple[str, ...], leaf: Any) -> bool:
  """Whether a parameter is one of the weights that `parameters` counts."""
  return _is_of_block(names) and leaf.ndim >= 2 and names[-2:] != ('attention', 'gate')


def _bytes(tree: Any) -> int:
  import jax

  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
