"""The parameters that validation losses are measured with: as trained, or averaged.

Schedule-free training is such an average. It also chooses the point at which gradients are taken,
after the whole update, so it works with any optimizer, weight decay and per-layer learning rates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stability.optim.after_update import Update
from stability.types import HParams, Params, State
from stability.variants import Choices, Variant


class Evaluated(NamedTuple):
  """How to compute the evaluated parameters from a run's state."""

  read: Callable[[State], Params]
  # The initial value of the state entry `average`; its value after an update and the parameters to
  # train on, from (average, new parameters, Update). None: there is no such entry.
  init: Callable[[Params], Any] | None = None
  update: Callable[[Any, Params, Update], tuple[Any, Params]] | None = None


def _trained(state: State) -> Params:
  return state['params']


def _zeros(params: Params) -> Params:
  return jax.tree.map(jnp.zeros_like, params)


def _ema(average: Params, new: Params, update: Update) -> tuple[Params, Params]:
  decay = update.hparams['evaluation.decay']
  return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, new), new


def _corrected(state: State) -> Params:
  """The bias-corrected average; before the first update, the parameters themselves."""
  step = state['step']
  weight = 1 - state['hparams']['evaluation.decay'] ** step.astype(jnp.float32)
  has_updates = step > 0

  def correct(average, p):
    return jnp.where(has_updates, average / jnp.where(has_updates, weight, 1), p)

  return jax.tree.map(correct, state['average'], state['params'])


def _number(hparams: HParams, step: jax.Array) -> jax.Array:
  """How many of the last evaluation.average_steps updates are over after update `step`."""
  start = jnp.maximum(hparams['schedule.steps'] - hparams['evaluation.average_steps'], 0)
  return jnp.maximum(step - start, 0)


def _uniform(average: Params, new: Params, update: Update) -> tuple[Params, Params]:
  number = _number(update.hparams, update.step)
  weight = jnp.where(number > 0, 1 / jnp.maximum(number, 1), 0)
  return jax.tree.map(lambda a, p: a + weight * (p - a), average, new), new


def _mean_of_last(state: State) -> Params:
  """The average over the last updates; before the first of these, the parameters themselves."""
  has_begun = _number(state['hparams'], state['step']) > 0
  return jax.tree.map(
      lambda a, p: jnp.where(has_begun, a, p), state['average'], state['params']
  )


class ScheduleFree(NamedTuple):
  """The state of schedule-free training, besides the parameters y at which gradients are taken.

  With beta = evaluation.decay, y = beta x + (1 - beta) z, where z moves by the optimizer's updates,
  weight decay included, and x is the average of z that is evaluated. The published AdamW multiplies
  the weight of a z by 1 - beta2^t, which matters little at a beta2 of 0.95.
  """

  z: Params
  highest_rate: jax.Array  # highest learning rate so far, whose square is the weight of a new z
  weights: jax.Array  # their sum


def _start_at(params: Params) -> ScheduleFree:
  return ScheduleFree(params, jnp.float32(0), jnp.float32(0))


def _averaged(y: Params, z: Params, hparams: HParams) -> Params:
  """The average x, from y and z."""
  beta = hparams['evaluation.decay']
  return jax.tree.map(lambda y, z: (y - (1 - beta) * z) / beta, y, z)


def _schedule_free(
    average: ScheduleFree, new: Params, update: Update
) -> tuple[ScheduleFree, Params]:
  beta = update.hparams['evaluation.decay']
  highest_rate = jnp.maximum(average.highest_rate, update.learning_rate)
  weights = average.weights + jnp.square(highest_rate)
  share = jnp.where(weights > 0, jnp.square(highest_rate) / jnp.where(weights > 0, weights, 1), 0)
  x = _averaged(update.old, average.z, update.hparams)
  z = jax.tree.map(lambda z, new, old: z + (new - old), average.z, new, update.old)
  x = jax.tree.map(lambda x, z: (1 - share) * x + share * z, x, z)
  y = jax.tree.map(lambda x, z: beta * x + (1 - beta) * z, x, z)
  return ScheduleFree(z, highest_rate, weights), y


def _read_schedule_free(state: State) -> Params:
  return _averaged(state['params'], state['average'].z, state['hparams'])


EVALUATED = Choices(
    'evaluation.parameters',
    {
        'trained': Variant(Evaluated(_trained), 'the parameters as they are trained'),
        # Exponential moving average over the updates, bias-corrected.
        'ema': Variant(
            Evaluated(_corrected, _zeros, _ema), 'arXiv 2411.18704', reads=('evaluation.decay',)
        ),
        # Stochastic weight averaging, of every update.
        'uniform': Variant(
            Evaluated(_mean_of_last, _zeros, _uniform),
            'arXiv 1803.05407',
            reads=('evaluation.average_steps', 'schedule.steps'),
        ),
        # With optimizer.name=adamw and optimizer.beta1=0: schedule-free AdamW.
        'schedule_free': Variant(
            Evaluated(_read_schedule_free, _start_at, _schedule_free),
            'arXiv 2405.15682',
            reads=('evaluation.decay',),
        ),
    },
)
