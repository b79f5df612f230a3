"""A run in training: its current step, its stops, its metrics and its checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from stability.config import Config
from stability.control.run_control import NoControl, RunControl
from stability.control.stops import is_stop, next_stop
from stability.devices import shapes
from stability.storage import checkpoints, parameters, run_files
from stability.storage.files import Json
from stability.storage.metrics import MetricsWriter, NoWriter
from stability.storage.run_files import Result
from stability.trainer.state_arrays import to_arrays


@dataclasses.dataclass(frozen=True)
class RunProgress:
  """The values that a checkpoint stores besides the arrays of the state."""

  initial_loss: float | None = None  # nats; None until it is measured
  seconds: float = 0.0  # training time so far
  actions: int = 0  # number of actions already applied to the state

  def to_json(self) -> Json:
    """The JSON object stored in a checkpoint."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: Json) -> Self:
    """The inverse of to_json."""
    return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


@dataclasses.dataclass
class Run:
  """A run in training."""

  folder: Path
  config: Config
  writer: MetricsWriter | NoWriter
  control: RunControl | NoControl
  clock: Callable[[], float]  # in seconds, monotonic
  # The current step, as counted by the host, which is ahead of the device until metrics arrive. It
  # is the number of updates made, except in a diverged run: there it is the step whose update was
  # not made because the loss was not finite.
  step: int = 0
  initial_loss: float | None = None  # nats; None until it is measured
  seconds: float = 0.0  # training time before `started`
  started: float = 0.0  # clock time at which start_clock was last called
  last_logged: tuple[int, float] = (0, 0.0)  # updates and clock time of the last logged row
  diverged: bool = False
  stopped: bool = False  # whether an action has stopped the run

  def start_clock(self) -> None:
    """Starts counting training time from now."""
    self.started = self.clock()
    self.last_logged = self._updates(self.step), self.started

  @property
  def steps(self) -> int:
    """Total number of updates of the run."""
    return self.config['schedule']['steps']

  def tokens(self, step: int) -> int:
    """Tokens trained on in `step` updates."""
    return step * self.config['data']['batch_size'] * self.config['data']['sequence_length']

  def _updates(self, step: int) -> int:
    """The number of updates made by a step, the current one or that of the last row."""
    return step - 1 if self.diverged else step

  def elapsed(self) -> float:
    """Training time in seconds, including the time before a resume."""
    return self.seconds + self.clock() - self.started

  def next_stop(self) -> int:
    """The next step after which the host has something to do for this run."""
    planned = {self.control.planned_step or 0, *self.control.planned_targets}
    later = (step for step in planned if step > self.step)
    return min([next_stop(self.config, self.step), *later])

  def is_over(self) -> bool:
    """Whether the run has ended: it has diverged, was stopped or is at its last step."""
    return self.diverged or self.stopped or self.step == self.steps

  def is_at_stop(self) -> bool:
    """Whether actions may be applied at the current step."""
    # The step at which a run was paused may be no stop of the config now.
    is_stop_here = self.control.planned_step == self.step or self.control.is_paused
    return self.is_over() or is_stop_here or is_stop(self.config, self.step)

  def has_action_due(self) -> bool:
    """Whether there may be an action to apply at the current step."""
    return self.is_at_stop() and self.control.has_work(self.step, self.is_over())

  def is_checkpoint_due(self) -> bool:
    """Whether the config or a planned rewind needs a checkpoint at the current step."""
    is_due = self.is_due('checkpoint') and self.step < self.steps
    return is_due or self.step in self.control.planned_targets

  def is_due(self, section: str, interval: str = 'every_steps') -> bool:
    """Whether the current step is a multiple of an interval, an option of log, probe or checkpoint.

    A step at which sharpness is due is also a probed step.
    """
    every = self.config[section][interval]
    return every > 0 and self.step % every == 0

  def log(self, metrics: dict[str, float], step: int, now: float) -> None:
    """Writes the row of a step, raises alarms, and marks the run as diverged if it has.

    The row of a diverged run has the step whose update was not made, and the tokens trained on.

    Args:
      metrics: metrics of the step from the device, with its `step` and `diverged`.
      step: the step that the host expects the metrics to have.
      now: clock time at which the metrics arrived.
    """
    row = dict(metrics)
    self.diverged = bool(row.pop('diverged'))
    row['step'] = int(row['step'])
    assert self.diverged or row['step'] == step, (self.folder, row['step'], step)
    if self.diverged:
      row['loss'], self.step = math.nan, row['step']
    last_updates, last_time = self.last_logged
    updates = self._updates(row['step'])
    row['tokens'] = self.tokens(updates)
    row['seconds'] = self.elapsed()
    row['tokens_per_second'] = self.tokens(updates - last_updates) / (now - last_time)
    self.last_logged = updates, now
    self.writer.write(row)
    for alarm in self.control.observe(row):
      self.writer.mark(alarm.step, f'alarm/{alarm.rule}', alarm.message)

  def progress(self) -> RunProgress:
    """The values that a checkpoint written now stores besides the state."""
    return RunProgress(self.initial_loss, self.elapsed(), len(self.control.taken))

  def save(self, state: Any) -> None:
    """Flushes the metrics, then writes a checkpoint."""
    self.writer.flush()
    keep, saved = self.config['checkpoint']['keep'], run_files.checkpoint_steps(self.folder)
    earlier = [step for step in saved if step < self.step]
    also = {*self.control.lasting([*earlier, self.step])[-keep:], *self.control.planned_targets}
    progress = self.progress().to_json()
    checkpoints.save(self.folder, self.step, to_arrays(state), progress, keep, also)

  @property
  def keeps_parameters(self) -> bool:
    """Whether the run keeps its parameters when it has ended."""
    return self.config['checkpoint']['parameters'] != 'none'

  def save_parameters(self, variables: dict[str, Any], data: Json) -> None:
    """Writes the parameters of a run that is over.

    Args:
      variables: what train_step.kept_variables returns.
      data: the entries of meta.json of the text.
    """
    arrays = to_arrays(variables['params'])
    for name, array in to_arrays(variables['carried']).items():
      arrays[f'{parameters.CARRIED}{name}'] = array
    about = parameters.about(
        self.folder.name, self._updates(self.step), self.control.config, data
    )
    parameters.write(self.folder, arrays, about, self.config['checkpoint']['parameters'])

  def finish(self, final_loss: float, seconds: float) -> Result:
    """Closes the files of a run that is over and returns its result.

    Args:
      final_loss: mean loss on the validation batches, in nats.
      seconds: training time, without the final evaluation.
    """
    status = run_files.final_status(self.initial_loss, final_loss)
    if self.diverged or self.stopped:
      status = 'diverged' if self.diverged else 'stopped'
    self.control.refuse_all(self.step, f'the run has ended: {status}')
    result = Result(
        status=status,
        initial_loss=self.initial_loss,
        final_loss=final_loss,
        parameters=shapes.parameters(self.config),
        steps=self._updates(self.step),
        tokens=self.tokens(self._updates(self.step)),
        seconds=seconds,
    )
    self.writer.close(result)
    return result
