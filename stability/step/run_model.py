"""The model of a run: made from its static config, its initial parameters and its weights."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from stability.model import adapters, attention, initialisation, parameterization, rounding
from stability.model import transformer as transformer_lib
from stability.model.kernels import CARRIED
from stability.optim.after_update import AFTER_UPDATE
from stability.types import Carried, HParams, Params, Static


def make(
    static: Static,
    vocabulary_size: int,
    *,
    remat: bool = False,
    fused: attention.Fused | None = None,
) -> transformer_lib.Transformer:
  """The model of a static config; the arguments are those of `programs` and of the model."""
  needs = tuple(name for term in AFTER_UPDATE.active(static) for name in term.needs)
  c = adapters.model_config(parameterization.model_config(static), static)
  return transformer_lib.Transformer(c, vocabulary_size, remat, fused, needs)


def with_precision(
    precision: str, function: Callable[..., Any], *arguments: Any
) -> Callable[..., Any]:
  """`function` with its first arguments given, traced with the precision of matrix products."""
  partial = functools.partial(function, *arguments)

  @functools.wraps(partial)
  def bound(*others, **named):
    # Stated in either case, so that a setting of the process has no effect.
    with jax.default_matmul_precision('highest' if precision == 'highest' else 'default'):
      return partial(*others, **named)

  return bound


def init(
    model: transformer_lib.Transformer,
    static: Static,
    hparams: HParams,
    parent: Mapping[str, Any] = types.MappingProxyType({}),
) -> tuple[Params, Carried]:
  """The initial parameters, trained or frozen, and the initial carried state of a model."""
  inputs = jnp.zeros((1, static.data.sequence_length), jnp.int32)
  variables = model.init(jax.random.key(hparams['seed']), inputs, hparams)
  params = variables['params']
  for term in initialisation.INITIALISATION.active(static):
    params = term.make(params, hparams, static)
  params = adapters.added(_replaced(params, parent.get('params', {})), hparams, static)
  params = _replaced(params, parent.get('adapter', {}))
  if static.optimizer.parameter_rounding != 'none':  # as after each update
    params = rounding.to_bfloat16(params)
  return params, _replaced(variables.get(CARRIED, {}), parent.get('carried', {}))


def _replaced(tree: Params, leaves: Mapping[str, Any]) -> Params:
  """The tree with some of its leaves replaced, as float32."""
  return tree | {
      name: _replaced(tree[name], new) if isinstance(new, Mapping) else new.astype(jnp.float32)
      for name, new in leaves.items()
  }


def weights(
    params: Params, frozen: Params | None, hparams: HParams, static: Static
) -> Params:
  """The weights that the model computes with."""
  joined = adapters.joined(params, frozen)
  return parameterization.effective(adapters.weights(joined, hparams, static), hparams, static)
