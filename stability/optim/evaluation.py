"""The parameters that are evaluated, where they are not those that are trained."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stability.variants import Choices, Variant

Params = dict[str, Any]
State = Mapping[str, Any]  # of a run
HParams = Mapping[str, jax.Array]


class Evaluated(NamedTuple):
  """How the evaluated parameters follow from a run's state."""

  read: Callable[[State], Params]
  # What a run's state holds for it under `average`, and how an update changes that; None: nothing.
  init: Callable[[Params], Any] | None = None
  update: Callable[[Any, Params, HParams], Any] | None = None  # of average, new parameters


def _trained(state: State) -> Params:
  return state['params']


def _zeros(params: Params) -> Params:
  return jax.tree.map(jnp.zeros_like, params)


def _ema(average: Params, new: Params, hparams: HParams) -> Params:
  decay = hparams['evaluation.decay']
  return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, new)


def _corrected(state: State) -> Params:
  """The average over the weight that all updates so far have in it; before any, the parameters."""
  step = state['step']
  weight = 1 - state['hparams']['evaluation.decay'] ** step.astype(jnp.float32)
  begun = step > 0

  def correct(average, p):
    return jnp.where(begun, average / jnp.where(begun, weight, 1), p)

  return jax.tree.map(correct, state['average'], state['params'])


EVALUATED = Choices(
    'evaluation.parameters',
    {
        'trained': Variant(Evaluated(_trained), 'the parameters as they are trained'),
        # Exponential moving average over the updates, corrected for its start.
        'ema': Variant(
            Evaluated(_corrected, _zeros, _ema), 'arXiv 2411.18704', reads=('evaluation.decay',)
        ),
    },
)
