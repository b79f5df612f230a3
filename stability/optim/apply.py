"""Applies an update: learning rates and weight decay, from its direction to the new parameters.

Update number `step` counts from 1. A parameter's learning rate is that of its layer
(stability/model/parameterization.py), times factors of the fine-tuning method.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stability.model import adapters, parameterization
from stability.optim import schedules
from stability.types import HParams, Params, Static
from stability.variants import Choices, Variant

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


class Decayed(NamedTuple):
  """A parameter that decays, and what the factor of its weight decay may depend on."""

  kind: str  # embedding, readout, hidden or scale (stability/model/parameterization.py)
  old: jax.Array  # before the update, relative to what it decays towards
  move: jax.Array  # what the update subtracts from it, weight decay apart
  factor: jax.Array  # of the schedule, in [0, 1]
  rate: jax.Array  # the parameter's learning rate


def _cautious(p: Decayed) -> jax.Array:
  """The factor of the schedule for elements that the update moves towards 0; 0 for the others."""
  return jnp.where(jnp.sign(p.move) * jnp.sign(p.old) >= 0, p.factor, 0)


def _corrected(p: Decayed) -> jax.Array:
  """AdamC: the square of the schedule's factor for the blocks' matrices, else the factor itself.

  The paper corrects the decay of layers that norms follow. Here these are all matrices of blocks.
  """
  return p.factor**2 if p.kind == 'hidden' else p.factor


# Decayed -> the factor of weight_decay.
DECAY_KINDS = Choices(
    'optimizer.weight_decay_kind',
    {
        # The learning rate enters only through the final value of the schedule factor.
        'independent': Variant(lambda p: p.factor, 'section 3.2.2; arXiv 1711.05101'),
        # As in PyTorch and Optax.
        'coupled': Variant(lambda p: p.rate, 'section 3.2.2'),
        # Both are published for coupled decay, and here multiply the independent one.
        'cautious': Variant(_cautious, 'arXiv 2510.12402, algorithm 1'),
        'adamc': Variant(_corrected, 'arXiv 2506.02285'),
    },
)


def scale_updates(
    params: Params,
    updates: Params,
    hparams: HParams,
    step: jax.Array,
    static: Static,
) -> Params:
  """The updates times the learning rates: what is subtracted from the parameters, decay apart."""
  scale_of = RATE_SCALES[static.optimizer.learning_rate_scale].make

  def move(p, u, rate):
    if scale_of is not None:
      u *= scale_of(p)
    return rate * u

  rates = learning_rates(params, hparams, step, static)
  return jax.tree.map(move, params, updates, rates)


def learning_rates(params: Params, hparams: HParams, step: jax.Array, static: Static) -> Params:
  """The learning rate of every parameter, in a tree with the structure of `params`."""
  rate = schedules.learning_rate(hparams, step, static)
  rates = parameterization.learning_rates(params, rate, hparams, static)
  factors = []
  if of_adapter := adapters.of(static).rate:
    factors.append(lambda path: of_adapter(path, hparams))
  if static.optimizer.layer_rate_decay:
    factors.append(lambda path: _rate_of_layer(path, hparams, static))
  for factor in factors:
    rates = jax.tree_util.tree_map_with_path(
        lambda path, rate, factor=factor: rate * factor(tuple(key.key for key in path)), rates
    )
  return rates


def _rate_of_layer(path: tuple[str, ...], hparams: HParams, static: Static) -> jax.Array | float:
  """decay^(L - i) in block i of L, counted from 1; decay^L for what is before them, 1 behind them.

  Before the blocks are the embedding and a prompt. A tied head is the embedding.
  """
  name = path[0]
  if name in ('head', 'head_reparam', 'final_norm', 'logit_scale'):
    return 1.0
  block = int(name.removeprefix('block_')) + 1 if name.startswith('block_') else 0
  return hparams['optimizer.layer_rate_decay'] ** (static.model.depth - block)


def apply_updates(
    params: Params,
    moves: Params,
    hparams: HParams,
    step: jax.Array,
    static: Static,
    start: Params | None = None,
) -> Params:
  """The parameters after the update, with weight decay on all of them.

  Args:
    params: before the update.
    moves: what it subtracts from them, weight decay apart.
    hparams: of the run.
    step: the number of the update.
    static: the static config.
    start: the parameters that they decay towards (L2-SP, arXiv 1802.01483); None: 0.
  """
  weight_decay = hparams['optimizer.weight_decay']
  factor = schedules.schedule_factor(hparams, step, static)
  decay_of = DECAY_KINDS[static.optimizer.weight_decay_kind].make

  def apply(kind, p, move, rate, away):
    decay = decay_of(Decayed(kind, away, move, factor, rate)) * weight_decay
    return p - (move + decay * away)

  kinds = parameterization.kinds(params)
  rates = learning_rates(params, hparams, step, static)
  away = params if start is None else jax.tree.map(jnp.subtract, params, start)
  return jax.tree.map(apply, kinds, params, moves, rates, away)


def preconditioner(
    params: Params,
    state: optax.OptState,
    hparams: HParams,
    step: jax.Array,
    static: Static,
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
