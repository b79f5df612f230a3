"""Traces of a model and its update at small depths, for stability/devices/shapes.py."""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.extend.core import Primitive

from stability import config as config_lib
from stability.config import FIELDS
from stability.devices import jaxprs
from stability.devices.jaxprs import Amount
from stability.model import adapters
from stability.optim import optimizers
from stability.step import run_model, train_step

Fields = tuple[tuple[str, Any], ...]  # see stability/devices/shapes.py
Tree = Any  # of arrays' shapes

_TYPES = {'integer': np.int32, 'number': np.float32}  # of hyperparameters, by kind of option
_BYTES_VOCABULARY = 256  # the usual one, whose trace is shared


class Update(NamedTuple):
  """Memory and FLOPs of an update of a run, given its gradient."""

  params: float  # bytes
  optimizer: float  # bytes of the rest of the state
  stored: float  # bytes of the updates and of the intermediates that are stored to compute them
  flops: float


class Moment(NamedTuple):
  """The bytes that are stored at one moment of a gradient's computation."""

  is_backward: bool  # whether a gradient of a block's parameters is stored
  gradients: float
  rest: Amount  # activations and intermediates


class Gradient(NamedTuple):
  """Memory and FLOPs of the gradient of a microbatch in a quiet step."""

  flops: Amount
  moments: tuple[Moment, ...]
  kept: Amount  # bytes stored at the moment the loss is known, which the backward pass reads
  params: int  # bytes
  block: int  # bytes of the blocks' parameters


@functools.cache
def block_parameters(fields: Fields) -> int:
  """Number of weights in the matrices of a block."""
  params, _ = _model(fields, _BYTES_VOCABULARY, depth=1)
  return sum(math.prod(leaf.shape) for names, leaf in _leaves(params) if _is_counted(names, leaf))


def _is_counted(names: tuple[str, ...], leaf: Any) -> bool:
  """Whether a parameter is a matrix of a block's layers, without routers, gates and adapters."""
  if not _is_of_block(names) or leaf.ndim < 2 or adapters.is_added(names):
    return False
  return names[-2:] not in (('attention', 'gate'), ('mlp', 'router'))


@functools.cache
def gradient(
    fields: Fields, vocabulary_size: int, *, depth: int, remat: bool, platform: str
) -> Gradient:
  """Traces train_step.gradient at a depth as it is compiled for a platform (placement.choose)."""
  static = _static(fields, depth)
  kernel = _fused_attention if platform == 'gpu' else None
  model = run_model.make(static, vocabulary_size, remat=remat, fused=kernel)
  params, carried = _model(fields, vocabulary_size, depth=depth)
  state = {**adapters.parts(params, static), 'carried': carried, 'hparams': _hparams()}
  rows = jax.ShapeDtypeStruct((jaxprs.ROWS, static.data.sequence_length + 1), jnp.int32)
  function = functools.partial(train_step.gradient, model, static, 'quiet')
  jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(state, rows)
  gradients, measured, new_carried = shapes
  of_block, of_others, loss, rest = range(4)
  labels = [of_block if _is_of_block(names) else of_others for names, _ in _leaves(gradients)]
  labels += [loss if names[0] == 'loss' else rest for names, _ in _leaves(measured)]
  labels += [rest for _ in _leaves(new_carried)]
  moments = jaxprs.moments(jaxpr, labels, rest, reduces_early=platform != 'cpu')
  return Gradient(
      flops=jaxprs.flops(jaxpr),
      moments=_candidates(
          Moment(
              is_backward=moment.outputs[of_block].fixed > 0,
              gradients=moment.outputs[of_block].fixed + moment.outputs[of_others].fixed,
              rest=moment.rest,
          )
          for moment in moments
      ),
      kept=next(moment.rest for moment in moments if moment.outputs[loss].fixed),
      params=_bytes(params),
      block=sum(_bytes(leaf) for names, leaf in _leaves(params) if _is_of_block(names)),
  )


@functools.cache
def update(fields: Fields, model: Fields, vocabulary_size: int, *, depth: int) -> Update:
  """Traces the optimizer's update at a depth.

  Args:
    fields: those that shape the update.
    model: those that shape the model.
    vocabulary_size: number of different tokens.
    depth: number of blocks.
  """
  static, hparams = _static(fields, depth), _hparams()
  params, carried = _model(model, vocabulary_size, depth=depth)
  state = jax.eval_shape(functools.partial(train_step.init_state, static), hparams, params, carried)

  def function(gradients, optimizer_state, params, hparams):
    rate, loss = hparams['optimizer.learning_rate'], jnp.float32(0)
    return optimizers.make_optimizer(hparams, static).update(
        gradients, optimizer_state, params, learning_rate=rate, loss=loss
    )

  params = state['params']  # those that are trained
  arguments = params, state['optimizer'], params, hparams
  jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
  updates, new_state = (len(jax.tree.leaves(tree)) for tree in shapes)
  # The new state takes the place of the old one.
  moments = jaxprs.moments(jaxpr, [1] * updates + [0] * new_state, 1)
  held = {name: value for name, value in state.items() if name not in ('params', 'hparams')}
  return Update(
      params=_bytes(params),
      optimizer=_bytes(held),
      stored=max((moment.rest.fixed for moment in moments), default=0),
      flops=jaxprs.flops(jaxpr).fixed,
  )


# In place of attention.fused_attention, which can be traced only where there is cuDNN: what it
# stores is the output and the log-normaliser of each row, which its backward pass reads.


@jax.custom_vjp
def _fused_attention(q_NxTxK: jax.Array, k_NxTxK: jax.Array, v_NxTxK: jax.Array) -> jax.Array:
  out_NxTxK, _ = _KERNEL.bind(q_NxTxK, k_NxTxK, v_NxTxK)
  return out_NxTxK


def _forward(*qkv: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  out_NxTxK, log_z_NxT = _KERNEL.bind(*qkv)
  return out_NxTxK, (*qkv, out_NxTxK, log_z_NxT)


def _backward(residuals: tuple[jax.Array, ...], gradient_NxTxK: jax.Array) -> list[jax.Array]:
  return _KERNEL_GRADIENT.bind(*residuals, gradient_NxTxK)


_fused_attention.defvjp(_forward, _backward)
_KERNEL = Primitive('fused_attention')
_KERNEL_GRADIENT = Primitive('fused_attention_gradient')
_KERNEL.multiple_results = _KERNEL_GRADIENT.multiple_results = True


@_KERNEL.def_abstract_eval
def _(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
  return q, q.update(shape=q.shape[:2], dtype=np.dtype(np.float32))


@_KERNEL_GRADIENT.def_abstract_eval
def _(q: Any, k: Any, v: Any, *others: Any) -> tuple[Any, Any, Any]:
  return q, k, v


def _model(fields: Fields, vocabulary_size: int, *, depth: int) -> tuple[Tree, Tree]:
  """The shapes of the parameters and of the carried state at a depth."""
  return tuple(_at_depth(tree, depth) for tree in _one_block(fields, vocabulary_size))


@functools.cache
def _one_block(fields: Fields, vocabulary_size: int) -> tuple[Tree, Tree]:
  """The shapes of the parameters and of the carried state of a model of depth 1."""
  static = _static(fields, depth=1)
  model = run_model.make(static, vocabulary_size)
  return jax.eval_shape(functools.partial(run_model.init, model, static), _hparams())


def _at_depth(tree: Tree, depth: int) -> Tree:
  """Parameters or carried state at any depth, from those at depth 1."""
  others = {name: value for name, value in tree.items() if name != 'block_0'}
  blocks = {f'block_{n}': tree['block_0'] for n in range(depth)} if 'block_0' in tree else {}
  return others | blocks


def _candidates(moments: Iterable[Moment]) -> tuple[Moment, ...]:
  """The moments that may be the peak for some numbers of rows and shards."""
  found: list[Moment] = []

  def dominates(a: Moment, b: Moment) -> bool:
    return (
        a.is_backward >= b.is_backward
        and a.gradients >= b.gradients
        and a.rest.fixed >= b.rest.fixed
        and a.rest.per_row >= b.rest.per_row
    )

  for moment in moments:
    if not any(dominates(other, moment) for other in found):
      found = [other for other in found if not dominates(moment, other)] + [moment]
  return tuple(found)


def _static(fields: Fields, depth: int) -> ml_collections.FrozenConfigDict:
  flat = {name: value for name, value in fields if name} | {'model.depth': depth}
  return ml_collections.FrozenConfigDict(config_lib.unflatten(flat))


def _hparams() -> dict[str, jax.ShapeDtypeStruct]:
  traced = {name: field for name, field in FIELDS.items() if field.traced}
  return {name: jax.ShapeDtypeStruct((), _TYPES[field.kind]) for name, field in traced.items()}


def _leaves(tree: Tree) -> list[tuple[tuple[str, ...], Any]]:
  """The leaves of a tree, each with the names on the path to it."""
  return [
      (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)
      for path, leaf in jax.tree.leaves_with_path(tree)
  ]


def _is_of_block(names: tuple[str, ...]) -> bool:
  return names[0].startswith('block_')


def _bytes(tree: Tree) -> int:
  return sum(map(jaxprs.nbytes, jax.tree.leaves(tree)))
