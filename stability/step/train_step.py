"""Training of one run as pure functions: init, step (quiet, probed or sharp), evaluate.

stability/devices maps them over runs and devices, and stability/trainer calls them. The state of a
run is a dict of arrays that holds everything on which the rest of the run depends:

  params, optimizer
  frozen     only if an adapter trains some of the parameters: the others
  start      only if weights decay towards them: the parameters at the start
  carried    variables that modules carry from step to step (Flax collection `carried`)
  average    only if evaluation.parameters needs it
  step       number of updates made
  skipped    number of batches that actions skipped
  diverged   whether the loss has become non-finite
  hparams    hyperparameters by dotted config name
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stability.data import batches
from stability.model import adapters, attention
from stability.model import transformer as transformer_lib
from stability.model.kernels import CARRIED
from stability.model.measure import ACTIVATIONS, LOSSES, PROBES, QUIET, Measured
from stability.optim import apply, optimizers, schedules
from stability.optim.after_update import AFTER_UPDATE, Update
from stability.optim.evaluation import EVALUATED
from stability.optim.norms import global_norm
from stability.step import gradients as gradients_lib
from stability.step import objective as objective_lib
from stability.step import probes, run_model, sharpness, token_chunks
from stability.types import Carried, Data, HParams, Metrics, Params, State, Static


@dataclasses.dataclass(frozen=True)
class Programs:
  """The pure functions of one run. A layout compiles them and maps them over runs and devices."""

  init: Callable[..., State]  # hparams, and what the run starts from, if anything
  # By kind: quiet, and probed and sharp if the run has such steps. A step is a function of data,
  # state and the name of the mapped axis over devices, if there is one.
  steps: Mapping[str, Callable[..., tuple[State, Metrics]]]
  evaluate: Callable[[Data, State, jax.Array], jax.Array]  # data, state, batch number -> loss


def programs(
    static: Static,
    vocabulary_size: int,
    *,
    microbatches: int = 1,
    remat: bool = False,
    fused: bool = False,
) -> Programs:
  """The programs of the runs of a static config.

  Args:
    static: the static config, from config.split.
    vocabulary_size: number of different tokens.
    microbatches: parts of a batch that are processed one after another.
    remat: recompute each block in the backward pass, to save memory.
    fused: use the fused attention of a GPU where it applies. It has no second derivative, so sharp
      steps do without it.
  """
  kernel = attention.fused_attention if fused else None
  model = run_model.make(static, vocabulary_size, remat=remat, fused=kernel)
  bind = functools.partial(run_model.with_precision, static.model.matmul_precision)
  steps = {'quiet': bind(step, model, static, microbatches, 'quiet')}
  if static.probe.every_steps:
    steps['probed'] = bind(step, model, static, microbatches, 'probed')
  if static.probe.sharpness_every_steps:
    steps['sharp'] = bind(step, model.clone(fused=None), static, microbatches, 'sharp')
  return Programs(
      init=bind(init, model, static), steps=steps, evaluate=bind(evaluate, model, static)
  )


def arrays(hparams: Mapping[str, float | int]) -> dict[str, np.generic]:
  """The hyperparameters from config.split as scalars of the types in which they are traced."""
  return {
      field: np.float32(value) if isinstance(value, float) else np.int32(value)
      for field, value in hparams.items()
  }


def init(
    model: transformer_lib.Transformer,
    static: Static,
    hparams: HParams,
    parent: Mapping[str, Any] | None = None,
) -> State:
  """The state of a run before its first update.

  Args:
    model: the model of the static config.
    static: the static config.
    hparams: of the run.
    parent: what the run starts from, if anything: `params` and `carried` replace those that are
      drawn, `adapter` the parameters of the adapter. Entries and leaves may be missing.
  """
  return init_state(static, hparams, *run_model.init(model, static, hparams, parent or {}))


def init_state(static: Static, hparams: HParams, params: Params, carried: Carried) -> State:
  """The state of a run that starts from the given parameters and carried state."""
  evaluated = EVALUATED[static.evaluation.parameters].make
  entries = adapters.parts(params, static)
  params = entries['params']
  return {
      **entries,
      'optimizer': optimizers.make_optimizer(hparams, static).init(params),
      'carried': carried,
      **({'average': evaluated.init(params)} if evaluated.init else {}),
      **({'start': params} if static.optimizer.decay_target == 'start' else {}),
      'step': jnp.int32(0),
      'skipped': jnp.int32(0),
      'diverged': jnp.bool(False),
      'hparams': hparams,
  }


def step(
    model: transformer_lib.Transformer,
    static: Static,
    microbatches: int,
    kind: str,
    data: Data,
    state: State,
    axis: str | None = None,
) -> tuple[State, Metrics]:
  """Makes one update of a run; returns the new state and the metrics.

  A run that has finished, or whose loss is not finite, keeps its state.

  Args:
    model: the model of the static config.
    static: the static config.
    microbatches: parts of the batch that are processed one after another.
    kind: quiet, probed (measures the probes) or sharp (measures the probes and sharpness).
    data: the whole text, [tokens], as `text`, or the batch drawn by the host, [B, T + 1], as
      `batch`.
    state: of the run.
    axis: name of a mapped axis over devices; each device gets some rows of the batch, and all make
      the update of the whole batch. None: there is no such axis.
  """
  batch_BxT1 = data['batch'] if 'batch' in data else _draw_batch(data['text'], state, static)
  part = functools.partial(gradient, model, static, kind, state)
  gradients, measured, carried = gradients_lib.over_parts(
      part, batch_BxT1, state['params'], microbatches, axis
  )
  values = {name: m.value for name, m in measured.items()}
  watch = None if kind == 'quiet' else probes.Acted()
  new_state, update, updates = _update(static, state, gradients, values, watch)
  new_state['carried'] = carried

  finite = jnp.isfinite(values['loss'])
  continues = (state['step'] < state['hparams']['schedule.steps']) & finite & ~state['diverged']
  kept_state = state | {'diverged': state['diverged'] | ~finite}
  next_state = jax.tree.map(lambda new, old: jnp.where(continues, new, old), new_state, kept_state)

  metrics = {
      'step': update.step,
      'diverged': next_state['diverged'],
      'learning_rate': update.learning_rate,
      'gradient_norm': global_norm(gradients),
  }
  metrics = probes.merged(metrics, probes.scalars(measured))
  if kind != 'quiet':
    inside = probes.Inside(
        update.old, gradients, updates, update.moves, update.hparams, static
    )
    for term in probes.INSIDE.active(static):
      metrics = probes.merged(metrics, probes.checked(term.name, term.make(inside)))
    metrics |= watch.found
  if kind == 'sharp':
    objective = functools.partial(
        _objective_over_parts,
        functools.partial(_loss, model, static, state),
        batch_BxT1,
        microbatches=microbatches,
        axis=axis,
    )
    metrics |= _sharpness(objective, gradients, update)
  return next_state, metrics


def _update(
    static: Static,
    state: State,
    gradients: Params,
    measured: Mapping[str, jax.Array],
    watch: optimizers.Watch | None,
) -> tuple[State, Update, Params]:
  """Applies the gradients of a step's batch.

  Args:
    static: the static config.
    state: of the run.
    gradients: of the whole batch.
    measured: on the batch, among them `loss`.
    watch: records what interventions change, if it is a probed step.

  Returns:
    The new state, the update, and the optimizer's direction before learning rate and decay.
  """
  hparams, params, this_step = state['hparams'], state['params'], state['step'] + 1
  rate = schedules.learning_rate(hparams, this_step, static)
  updates, optimizer_state = optimizers.make_optimizer(hparams, static, watch).update(
      gradients, state['optimizer'], params, learning_rate=rate, loss=measured['loss']
  )
  moves = apply.scale_updates(params, updates, hparams, this_step, static)
  new_params = apply.apply_updates(
      params, moves, hparams, this_step, static, state.get('start')
  )
  update = Update(params, moves, optimizer_state, measured, this_step, rate, hparams, static)
  for term in AFTER_UPDATE.active(static):
    before, new_params = new_params, term.make(new_params, update)
    if watch:
      watch(term.name, before, new_params)
  new_state = state | {'params': new_params, 'optimizer': optimizer_state, 'step': this_step}
  evaluated = EVALUATED[static.evaluation.parameters].make
  if evaluated.update:
    averages = evaluated.update(state['average'], new_params, update)
    new_state['average'], new_state['params'] = averages
  return new_state, update, updates


def gradient(
    model: transformer_lib.Transformer,
    static: Static,
    kind: str,
    state: State,
    rows_BxT1: jax.Array,
) -> tuple[Params, probes.Measurements, Carried]:
  """The gradient of some rows of a step's batch, their measurements and the carried state."""
  collections = [QUIET] if kind == 'quiet' else [QUIET, PROBES, ACTIVATIONS]
  loss = functools.partial(
      _loss, model, static, state, rows_BxT1=rows_BxT1, collections=[*collections, CARRIED]
  )
  gradients, aux = jax.grad(loss, has_aux=True)(state['params'])
  return gradients, *aux


def _loss(
    model: transformer_lib.Transformer,
    static: Static,
    state: State,
    params: Params,
    rows_BxT1: jax.Array,
    collections: Sequence[str] = (),
) -> tuple[jax.Array, tuple[probes.Measurements, Carried]]:
  """The objective at `params`, and as auxiliary output the measurements and carried state."""
  hparams = state['hparams']
  inputs_BxT, targets_BxT = rows_BxT1[:, :-1], rows_BxT1[:, 1:]
  weights = run_model.weights(params, state.get('frozen'), state['hparams'], static)
  variables = {'params': weights, CARRIED: state['carried']}
  trunk, head = model.clone(part='trunk'), model.clone(part='head')
  x_BxTxD, new = trunk.apply(variables, inputs_BxT, hparams, mutable=[LOSSES, *collections])

  def of_chunk(x_BxTxD, targets_BxT):
    logits_BxTxV, sown = head.apply(variables, x_BxTxD, hparams, mutable=list(collections))
    total, terms = objective_lib.objective(
        static, hparams, logits_BxTxV, targets_BxT, weights, new.get(LOSSES, {})
    )
    of_terms = {name: Measured(value) for name, value in terms.items()}
    return total, probes.merged(of_terms, probes.forward(sown))

  length = token_chunks.length(inputs_BxT.shape[1], model.vocabulary_size)
  total, measured = token_chunks.mean(of_chunk, x_BxTxD, targets_BxT, length)
  return total, (probes.merged(measured, probes.forward(new)), new.get(CARRIED, {}))


def _draw_batch(text: jax.Array, state: State, static: Static) -> jax.Array:
  """The batch of a run's next step, [B, T + 1], drawn from the text on the device."""
  starts_B = batches.window_starts(
      jnp,
      state['hparams']['data.seed'],
      state['step'] + state['skipped'],
      batch_size=static.data.batch_size,
      sequence_length=static.data.sequence_length,
      tokens=text.shape[0],
  )
  return batches.gather(text, starts_B, static.data.sequence_length)


def _objective_over_parts(loss_function, batch_BxT1, params, *, differentiate, microbatches, axis):
  """The objective of the whole batch at `params`, or its gradient."""

  def part(rows_BxT1):
    if differentiate:
      return jax.grad(loss_function, has_aux=True)(params, rows_BxT1)[0], {}, {}
    return (), {'total': Measured(loss_function(params, rows_BxT1)[0])}, {}

  differentiated = params if differentiate else ()
  gradients, measured, _ = gradients_lib.over_parts(
      part, batch_BxT1, differentiated, microbatches, axis
  )
  return gradients if differentiate else measured['total'].value


def _sharpness(
    objective: Callable[..., Any], gradients: Params, update: Update
) -> dict[str, jax.Array]:
  """The sharpness measurements of an update (stability/step/sharpness.py)."""
  value = functools.partial(objective, differentiate=False)
  found = sharpness.critical(value, update.old, gradients, update.moves, update.learning_rate)
  if update.static.optimizer.name == 'adamw':
    preconditioner = apply.preconditioner(
        update.old, update.optimizer, update.hparams, update.step, update.static
    )
    found |= sharpness.preconditioned(
        functools.partial(objective, differentiate=True),
        update.old,
        gradients,
        preconditioner,
        update.learning_rate,
        update.hparams['optimizer.beta1'],
    )
  return found


def kept_variables(state: State, static: Static) -> dict[str, Any]:
  """What is kept of a run that is over: the evaluated parameters and the carried state."""
  params = EVALUATED[static.evaluation.parameters].make.read(state)
  return {'params': adapters.joined(params, state.get('frozen')), 'carried': state['carried']}


def evaluate(
    model: transformer_lib.Transformer, static: Static, data: Data, state: State, batch: jax.Array
) -> jax.Array:
  """Mean cross-entropy, in nats per token, on one of the fixed validation batches."""
  batch_BxT1 = data['validation'][batch].astype(jnp.int32)
  params = EVALUATED[static.evaluation.parameters].make.read(state)
  weights = run_model.weights(params, state.get('frozen'), state['hparams'], static)
  variables = {'params': weights, CARRIED: state['carried']}
  inputs_BxT, targets_BxT = batch_BxT1[:, :-1], batch_BxT1[:, 1:]
  x_BxTxD = model.clone(part='trunk').apply(variables, inputs_BxT, state['hparams'])

  def of_chunk(x_BxTxD, targets_BxT):
    logits_BxTxV = model.clone(part='head').apply(variables, x_BxTxD, state['hparams'])
    return objective_lib.cross_entropy(logits_BxTxV, targets_BxT), {}

  length = token_chunks.length(inputs_BxT.shape[1], model.vocabulary_size)
  return token_chunks.mean(of_chunk, x_BxTxD, targets_BxT, length)[0]
