"""Training as pure functions of one run: init, step (quiet or probed), evaluate.

stability/devices/layout.py maps them over runs and devices; stability/trainer/trainer.py drives
them. A run's state is a dict of arrays: params, optimizer, step (updates made), skipped (steps of
data that were left out: actions.py), diverged, and hyper, its hyperparameters under their dotted
config names. Whatever changes a run's course is in it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from stability.data import batches
from stability.devices.layout import Programs
from stability.model import layers, parameterization
from stability.model import transformer as transformer_lib
from stability.optim import optimizers
from stability.step import gradients as gradients_lib
from stability.step import objective as objective_lib
from stability.step import probes, sharpness

State = dict[str, Any]
Data = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def programs(
    static: ml_collections.FrozenConfigDict,
    vocabulary_size: int,
    *,
    microbatches: int = 1,
    remat: bool = False,
    fused: bool = False,
) -> Programs:
  """The functions that a layout compiles.

  Args:
    static: what config.split gives.
    vocabulary_size: of the text.
    microbatches: parts of a batch whose gradients are taken one after another.
    remat: recompute the inside of each block going backward, and so keep less in memory.
    fused: attention by a GPU's kernel, where that serves; it has no second derivative.
  """
  model = transformer_lib.Transformer(
      parameterization.model_config(static), vocabulary_size, remat, fused
  )
  bind = functools.partial
  steps = {'quiet': bind(step, model, static, microbatches, 'quiet')}
  if static.probe.every_steps:
    steps['probed'] = bind(step, model, static, microbatches, 'probed')
  if static.probe.sharpness_every_steps:
    steps['sharp'] = bind(step, model.clone(fused=False), static, microbatches, 'sharp')
  return Programs(
      init=bind(init, model, static), steps=steps, evaluate=bind(evaluate, model, static)
  )


def arrays(hparams: Mapping[str, float | int]) -> dict[str, np.generic]:
  """Hyperparameters as config.split gives them, in the types in which they are traced."""
  return {
      field: np.float32(value) if isinstance(value, float) else np.int32(value)
      for field, value in hparams.items()
  }


def init(
    model: transformer_lib.Transformer,
    static: ml_collections.FrozenConfigDict,
    hparams: optimizers.Hyperparameters,
) -> State:
  """The state of a run before its first update."""
  inputs = jnp.zeros((1, static.data.sequence_length), jnp.int32)
  params = model.init(jax.random.key(hparams['seed']), inputs, hparams)['params']
  params = parameterization.initial(params, hparams, static)
  return {
      'params': params,
      'optimizer': optimizers.make_optimizer(hparams, static).init(params),
      'step': jnp.int32(0),
      'skipped': jnp.int32(0),
      'diverged': jnp.bool(False),
      'hparams': hparams,
  }


def step(
    model: transformer_lib.Transformer,
    static: ml_collections.FrozenConfigDict,
    microbatches: int,
    kind: str,
    data: Data,
    state: State,
    axis: str | None = None,
) -> tuple[State, Metrics]:
  """One update and its metrics; `kind`: quiet, probed (with the probes) or sharp (sharpness too).

  `data` holds the whole text, {'text': [tokens]}, or the batch that the host drew from it,
  {'batch': [B, T + 1]}. In a mapped axis over devices each device takes some rows of the batch, and
  all make the update of the whole batch.
  A run that is over, or whose loss is not finite, keeps its state.
  """
  hparams, params = state['hparams'], state['params']
  if 'batch' in data:
    batch_BxT1 = data['batch']
  else:
    starts_B = batches.window_starts(
        jnp,
        hparams['data.seed'],
        state['step'] + state['skipped'],
        batch_size=static.data.batch_size,
        sequence_length=static.data.sequence_length,
        tokens=data['text'].shape[0],
    )
    batch_BxT1 = batches.gather(data['text'], starts_B, static.data.sequence_length)

  def loss_function(params, rows_BxT1, probed=False):
    inputs_BxT, targets_BxT = rows_BxT1[:, :-1], rows_BxT1[:, 1:]
    collections = [layers.PROBES, layers.ACTIVATIONS] if probed else []
    weights = parameterization.effective(params, hparams, static)
    logits_BxTxV, sown = model.apply({'params': weights}, inputs_BxT, hparams, mutable=collections)
    total, terms = objective_lib.objective(
        static.objective, hparams, logits_BxTxV, targets_BxT, weights['head']
    )
    return total, terms | (probes.forward(sown) if probed else {})

  def part(rows_BxT1):
    return jax.grad(loss_function, has_aux=True)(params, rows_BxT1, kind != 'quiet')

  gradients, measured = gradients_lib.over_parts(part, batch_BxT1, params, microbatches, axis)
  updates, optimizer_state = optimizers.make_optimizer(hparams, static).update(
      gradients, state['optimizer'], params
  )
  this_step = state['step'] + 1
  new_params = optimizers.apply_updates(params, updates, hparams, this_step, static)
  if static.model.output_centering == 'mean':
    new_params['head'] = objective_lib.centered(new_params['head'])
  new_state = {
      'params': new_params,
      'optimizer': optimizer_state,
      'step': this_step,
      'skipped': state['skipped'],
      'diverged': state['diverged'],
      'hparams': hparams,
  }
  finite = jnp.isfinite(measured['loss'])
  goes_on = (state['step'] < hparams['schedule.steps']) & finite & ~state['diverged']
  kept_state = state | {'diverged': state['diverged'] | ~finite}
  next_state = jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), new_state, kept_state)

  metrics = {
      'step': this_step,
      'diverged': next_state['diverged'],
      'learning_rate': optimizers.learning_rate(hparams, this_step, static),
      'gradient_norm': optax.tree.norm(gradients),
  }
  if kind != 'quiet':
    measured = probes.measure(measured, params, gradients, updates, hparams['optimizer.eps'])
  if kind == 'sharp':
    over_parts = functools.partial(
        _over_parts, loss_function, batch_BxT1, microbatches=microbatches, axis=axis
    )
    measured |= _sharpness(
        over_parts, static, params, gradients, updates, optimizer_state, hparams, this_step
    )
  return next_state, metrics | measured


def _over_parts(loss_function, batch_BxT1, params, *, differentiate, microbatches, axis):
  """The objective of the whole batch, or its gradient, at any parameters."""

  def part(rows_BxT1):
    if differentiate:
      return jax.grad(loss_function, has_aux=True)(params, rows_BxT1)[0], {}
    return (), {'total': loss_function(params, rows_BxT1)[0]}

  of = params if differentiate else ()
  gradients, measured = gradients_lib.over_parts(part, batch_BxT1, of, microbatches, axis)
  return gradients if differentiate else measured['total']


def _sharpness(over_parts, static, params, gradients, updates, optimizer_state, hparams, step):
  """What stability/step/sharpness.py measures of the step that these make."""
  rate = optimizers.learning_rate(hparams, step, static)
  moves = optimizers.scaled(params, updates, hparams, step, static)
  found = sharpness.critical(
      functools.partial(over_parts, differentiate=False), params, gradients, moves, rate
  )
  if static.optimizer.name == 'adamw':
    found |= sharpness.preconditioned(
        functools.partial(over_parts, differentiate=True),
        params,
        gradients,
        optimizers.preconditioner(params, optimizer_state, hparams, step, static),
        rate,
        hparams['optimizer.beta1'],
    )
  return found


def evaluate(
    model: transformer_lib.Transformer,
    static: ml_collections.FrozenConfigDict,
    data: Data,
    state: State,
    batch: jax.Array,
) -> jax.Array:
  """Mean cross-entropy in nats on one of the fixed validation batches."""
  batch_BxT1 = data['validation'][batch].astype(jnp.int32)
  weights = parameterization.effective(state['params'], state['hparams'], static)
  logits_BxTxV = model.apply({'params': weights}, batch_BxT1[:, :-1], state['hparams'])
  return objective_lib.cross_entropy(logits_BxTxV, batch_BxT1[:, 1:])
