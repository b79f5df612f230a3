"""Applies an update: learning rates and weight decay, from its direction to the new parameters.

Update number `step` counts from 1. A parameter's learning rate is that of its layer
(stability/model/parameterization.py).
"""

import jax
import jax.numpy as jnp
import ml_collections
import optax

from stability.model import parameterization
from stability.optim import schedules
from stability.variants import Choices, Variant

HParams = dict[str, jax.Array]
Params = dict[str, object]

SMALLEST_RMS = 1e-3  # lower bound of a parameter's RMS where it multiplies the learning rate

# Parameter -> a factor of its learning rate, in addition to that of its layer; None: 1.
RATE_SCALES = Choices(
    'optimizer.learning_rate_scale',
    {
        'none': Variant(None, 'one learning rate'),
        'parameter_rms': Variant(
            lambda p: jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(p))), SMALLEST_RMS),
            'figure E.14; arXiv 1804.04235',
        ),
    },
)

# (schedule factor, learning rate) -> the factor of weight_decay.
DECAY_KINDS = Choices(
    'optimizer.weight_decay_kind',
    {
        # The learning rate enters only through the final value of the schedule factor.
        'independent': Variant(lambda factor, rate: factor, 'section 3.2.2; arXiv 1711.05101'),
        # As in PyTorch and Optax.
        'coupled': Variant(lambda factor, rate: rate, 'section 3.2.2'),
    },
)


def scale_updates(
    params: Params,
    updates: Params,
    hparams: HParams,
    step: jax.Array,
    static: ml_collections.FrozenConfigDict,
) -> Params:
  """The updates times the learning rates: what is subtracted from the parameters, decay apart."""
  scale_of = RATE_SCALES[static.optimizer.learning_rate_scale].make

  def move(p, u, rate):
    if scale_of is not None:
      u *= scale_of(p)
    return rate * u

  rate = schedules.learning_rate(hparams, step, static)
  rates = parameterization.learning_rates(params, rate, hparams, static)
  return jax.tree.map(move, params, updates, rates)


def apply_updates(
    params: Params,
    moves: Params,
    hparams: HParams,
    step: jax.Array,
    static: ml_collections.FrozenConfigDict,
) -> Params:
  """The parameters after the update, with weight decay on all of them."""
  rate = schedules.learning_rate(hparams, step, static)
  weight_decay = hparams['optimizer.weight_decay']
  factor = schedules.schedule_factor(hparams, step, static)
  decay_of = DECAY_KINDS[static.optimizer.weight_decay_kind].make

  def apply(p, move, rate):
    decay = decay_of(factor, rate) * weight_decay
    return p - (move + decay * p)

  rates = parameterization.learning_rates(params, rate, hparams, static)
  return jax.tree.map(apply, params, moves, rates)


def preconditioner(
    params: Params,
    state: optax.OptState,
    hparams: HParams,
    step: jax.Array,
    static: ml_collections.FrozenConfigDict,
) -> Params:
  """AdamW's preconditioner P at update number `step`, which moves by learning rate * momentum / P.

  P is sqrt(v) + eps, with v bias-corrected, divided by the ratio of the parameter's learning rate
  to the scheduled one.
  """
  second = optax.tree.bias_correction(
      optax.tree.cast(optax.tree.get(state, 'nu'), jnp.float32),
      hparams['optimizer.beta2'],
      optax.tree.get(state, 'count'),
  )
  ones = jax.tree.map(jnp.ones_like, params)
  rate = schedules.learning_rate(hparams, step, static)
  ratios = jax.tree.map(lambda r: r / rate, scale_updates(params, ones, hparams, step, static))
  eps = hparams['optimizer.eps']
  return jax.tree.map(lambda v, ratio: (jnp.sqrt(v) + eps) / ratio, second, ratios)
