"""The parameters that validation losses are measured with: as trained, or averaged."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stability.variants import Choices, Variant

Params = dict[str, Any]
State = Mapping[str, Any]  # of a run
HParams = Mapping[str, jax.Array]


class Evaluated(NamedTuple):
  """How to compute the evaluated parameters from a run's state."""

  read: Callable[[State], Params]
  # The initial value of the state entry `average`, and its value after an update, from (average,
  # new parameters, hparams). None: there is no such entry.
  init: Callable[[Params], Any] | None = None
  update: Callable[[Any, Params, HParams], Any] | None = None


def _trained(state: State) -> Params:
  return state['params']


def _zeros(params: Params) -> Params:
  return jax.tree.map(jnp.zeros_like, params)


def _ema(average: Params, new: Params, hparams: HParams) -> Params:
  decay = hparams['evaluation.decay']
  return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, new)


def _corrected(state: State) -> Params:
  """The bias-corrected average; before the first update, the parameters themselves."""
  step = state['step']
  weight = 1 - state['hparams']['evaluation.decay'] ** step.astype(jnp.float32)
  has_updates = step > 0

  def correct(average, p):
    return jnp.where(has_updates, average / jnp.where(has_updates, weight, 1), p)

  return jax.tree.map(correct, state['average'], state['params'])


EVALUATED = Choices(
    'evaluation.parameters',
    {
        'trained': Variant(Evaluated(_trained), 'the parameters as they are trained'),
        # Exponential moving average over the updates, bias-corrected.
        'ema': Variant(
            Evaluated(_corrected, _zeros, _ema), 'arXiv 2411.18704', reads=('evaluation.decay',)
        ),
    },
)
