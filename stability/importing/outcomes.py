"""The outcomes of imported runs: statuses and losses, from a table or from a curve."""

import dataclasses
import json
import math
import re

import numpy as np

from stability.errors import BadInput
from stability.importing import columns as columns_lib
from stability.importing import divergence
from stability.importing.cleaning import Curve
from stability.importing.options import Options
from stability.importing.runs import Run
from stability.storage.run_files import Result, final_status

_NEAR = 0.05  # relative: a validation loss before training differs less from the training loss
LATE = 0.05  # the fraction of steps whose training losses are averaged as the final loss
# States of W&B, MLflow, TensorBoard, SLURM and others -> statuses; None: the run has no result.
STATES: dict[str, str | None] = {
    **dict.fromkeys(('finished', 'done', 'completed', 'complete', 'success', 'succeeded'), 'done'),
    **dict.fromkeys(('diverged', 'nan'), 'diverged'),
    **dict.fromkeys(('crashed', 'failed', 'error', 'errored', 'failure'), 'failed'),
    **dict.fromkeys(('out_of_memory', 'node_fail', 'boot_fail'), 'failed'),
    **dict.fromkeys(('killed', 'stopped', 'cancelled', 'canceled', 'aborted'), 'stopped'),
    **dict.fromkeys(('interrupted', 'terminated', 'timeout', 'deadline'), 'stopped'),
    **dict.fromkeys(('running', 'preempted', 'preempting', 'pending', 'queued'), None),
    **dict.fromkeys(('scheduled', 'waiting', 'starting', 'missing', 'started'), None),
}


@dataclasses.dataclass(frozen=True)
class FinalLoss:
  """The final loss of a curve."""

  value: float  # not finite if the run diverged
  metric: str | None  # the validation loss that it is; None: the mean training loss at the end
  step: int  # the last one that it is of


class NoInitialLoss(BadInput):
  """A run has ended, and its initial loss is unknown."""


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of metrics.jsonl."""

  curve: Curve
  step_unit: str  # steps or tokens

  def to_text(self) -> str:
    """The content of metrics.jsonl, column by column, since curves have millions of rows."""
    order = ('loss', 'learning_rate', 'gradient_norm')
    names = sorted(self.curve.values, key=lambda n: order.index(n) if n in order else len(order))
    steps = self.curve.steps.tolist()
    unit = ', "tokens": {0}' if self.step_unit == 'tokens' else ''
    columns = [list(map(('{{"step": {0}' + unit).format, steps))]
    for name in names:
      values, start = self.curve.values[name], f', {json.dumps(name)}: '
      is_null = np.isinf(values)
      if name == 'loss':
        is_null |= divergence.seems_not_finite(self.curve)
      cells = [start + repr(value) for value in values.tolist()]
      for row in np.flatnonzero(~np.isfinite(values)):
        cells[row] = f'{start}null' if is_null[row] else ''
      columns.append(cells)
    return ''.join(f'{"".join(cells)}}}\n' for cells in zip(*columns, strict=True))


def status_of(run: Run) -> str | None:
  """The status that a run's state stands for, done without one; None if it has not ended."""
  # TensorBoard's STATUS_SUCCESS, and SLURM's CANCELLED by 1000, which is a user's number.
  state = re.sub('^status_| by [0-9]+$', '', run.state.lower())
  if state and state not in STATES:
    allowed = ', '.join(STATES)
    raise BadInput(f'{run.where}: status={run.state!r}: must be one of {allowed}, or empty')
  return STATES[state] if state else 'done'


def result(
    run: Run, curve: Curve | None, options: Options, *, has_final_losses: bool
) -> Result | None:
  """The outcome of a run; None if it has not ended, or if nothing says how.

  Raises NoInitialLoss for one that has ended without an initial loss.

  Args:
    run: the run in its table.
    curve: its curve, if there is one.
    options: the user's.
    has_final_losses: whether the table has final losses: an empty one then means divergence.
  """
  status = status_of(run)
  if status is None:
    return None
  initial, final = own_initial_loss(run, curve, options), own_final_loss(run, curve, options)
  if initial is None and options.initial_loss is not None:
    initial = options.initial_loss * options.nats
  if status == 'done' and final is None and not has_final_losses:
    return None
  is_not_finite = final is not None and not math.isfinite(final)
  if status in ('failed', 'stopped') and is_not_finite:
    status = 'diverged'  # trainers often raise an error once the loss is not finite
  if status in ('done', 'diverged') and initial is None:
    raise NoInitialLoss(
        f'{run.where}: has no initial loss{run.name and f" of {run.name}"}, which LR sensitivity'
        ' needs; give a column, a curve from step 0 or 1, or --initial_loss'
    )
  if status == 'done':
    status = final_status(initial, math.nan if final is None else final)
  elif status == 'diverged' and final is not None and final_status(initial, final) == 'done':
    final = None  # one from before it diverged
  return Result(
      status,
      initial_loss=initial,
      final_loss=final if final is not None and math.isfinite(final) else None,
      parameters=run.parameters,
      steps=run.steps if run.steps is not None or curve is None else _last_step(curve, options),
      tokens=run.tokens if run.tokens is not None or curve is None else _tokens(curve, options),
      seconds=run.seconds,
      error=f'{run.state} in {run.where}' if status == 'failed' else None,
  )


def own_initial_loss(run: Run, curve: Curve | None, options: Options) -> float | None:
  """The initial loss in the table, else that of the curve; None if neither has one."""
  if run.initial_loss is not None or curve is None:
    return run.initial_loss
  return _first_loss(curve, options)


def own_final_loss(run: Run, curve: Curve | None, options: Options) -> float | None:
  """The final loss in the table, else that of the curve; None if neither has one.

  NaN if the curve is that of a run that diverged: the table may have the last or best finite loss.
  """
  if curve is None:
    return run.final_loss
  if divergence.has_diverged(curve):
    return math.nan
  if run.final_loss is None and (found := final_loss(curve, options)):
    return found.value
  return run.final_loss


def validation(curve: Curve) -> str | None:
  """The metric of a curve that is its validation loss; None if there is none."""
  by_key = {columns_lib.key(name): name for name in curve.values}
  return next((by_key[alias] for alias in columns_lib.VALIDATION if alias in by_key), None)


def first_update(curve: Curve, options: Options) -> int:
  """The last step that counts as the start of training: 1, or the tokens of the first update.

  The first count of tokens is that of the first update if it is at most the step to the next one.
  """
  if options.step_unit != 'tokens':
    return 1
  if len(curve.steps) < 2:
    return 0
  first, second = curve.steps[:2].tolist()
  if first == 0:
    return second
  return first if first <= second - first else 0


def final_loss(curve: Curve, options: Options) -> FinalLoss | None:
  """The last validation loss, or the mean training loss of the last steps; None without a loss.

  A validation loss from before training, of a curve that goes on, is no final loss.
  """
  end = int(curve.steps[-1])
  name = validation(curve)
  if divergence.has_diverged(curve):
    return FinalLoss(math.nan, name, end)
  if name is not None:
    row = np.flatnonzero(~np.isnan(curve.values[name]))[-1]
    step = int(curve.steps[row])
    if step == end or step > first_update(curve, options):
      return FinalLoss(float(curve.values[name][row]), name, step)
  loss = curve.values.get('loss', np.full(len(curve.steps), math.nan))
  steps, loss = curve.steps[np.isfinite(loss)], loss[np.isfinite(loss)]
  if not len(steps):
    return None
  late = steps > (1 - LATE) * steps[-1]
  late[-1] = True
  return FinalLoss(float(loss[late].mean()), None, int(steps[-1]))


def is_of_trained_model(metric: str) -> bool:
  """Whether the only value of a validation loss is of the trained model, by its name."""
  return re.match('final|test', columns_lib.key(metric)) is not None


def loss_without_step(curve: Curve, options: Options) -> str | None:
  """A validation loss that seems to be a final one logged without its step; None if there is none.

  MLflow and TensorBoard put such a one at step 0, where it differs from the training loss.
  """
  name, loss = validation(curve), curve.values.get('loss')
  if name is None or loss is None or not np.isfinite(loss).any():
    return None
  last, is_logged = first_update(curve, options), ~np.isnan(curve.values[name])
  if is_logged.sum() > 1 or not is_logged[0] or curve.steps[0] != 0 or curve.steps[-1] <= last:
    return None
  first = int(np.flatnonzero(np.isfinite(loss))[0])
  difference, near = curve.values[name][0] - loss[first], _NEAR * abs(loss[first])
  # A later training loss is below the one at step 0.
  is_other = difference < -near or (difference > near and curve.steps[first] <= last)
  return name if is_other else None


def _first_loss(curve: Curve, options: Options) -> float | None:
  """The loss before training: at step 0 or 1."""
  last, name = first_update(curve, options), validation(curve)
  if name is not None:
    is_only_value = (~np.isnan(curve.values[name])).sum() == 1
    if (is_only_value and is_of_trained_model(name)) or loss_without_step(curve, options):
      name = None
  for metric in filter(None, (name, 'loss')):
    values = curve.values.get(metric)
    if values is not None:
      for step, value in zip(curve.steps[:2], values[:2], strict=True):
        if step <= last and math.isfinite(value):
          return float(value)
  return None


def _last_step(curve: Curve, options: Options) -> int | None:
  return None if options.step_unit == 'tokens' else int(curve.steps[-1])


def _tokens(curve: Curve, options: Options) -> int | None:
  if options.step_unit == 'tokens':
    return int(curve.steps[-1])
  tokens = curve.values.get('tokens')
  return None if tokens is None else int(tokens[np.isfinite(tokens)].max(initial=0)) or None
