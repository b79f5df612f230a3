"""A run in training: its position, its schedule of stops, its log and its checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from stability.config import Config
from stability.control.run_control import NoControl, RunControl
from stability.control.stops import is_stop, next_stop
from stability.devices import shapes
from stability.storage import checkpoints, run_files
from stability.storage.files import Json
from stability.storage.metrics import MetricsWriter, NoWriter
from stability.storage.run_files import Result
from stability.trainer.state_arrays import to_arrays


@dataclasses.dataclass(frozen=True)
class RunProgress:
  """The contents of a checkpoint beside the arrays of the state."""

  initial_loss: float | None = None  # nats; None until it is measured
  seconds: float = 0.0  # of training so far
  actions: int = 0  # actions that the state reflects

  def to_json(self) -> Json:
    """The fields as JSON."""
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
  clock: Callable[[], float]  # seconds
  # Updates made, as the host counts them. The host counts ahead of the device until metrics arrive:
  # of a diverged run it is the step whose update was not applied.
  step: int = 0
  initial_loss: float | None = None  # nats; None until it is measured
  seconds: float = 0.0  # of training before `started`
  started: float = 0.0  # clock time at which training started or resumed here
  last_logged: tuple[int, float] = (0, 0.0)  # step and clock time of the last logged row
  diverged: bool = False
  stopped: bool = False  # by an action

  def start_clock(self) -> None:
    """Counts time as training time from now on."""
    self.started = self.clock()
    self.last_logged = self.step, self.started

  @property
  def steps(self) -> int:
    """Updates in the whole run."""
    return self.config['schedule']['steps']

  def tokens(self, step: int) -> int:
    """Tokens trained on in `step` updates."""
    return step * self.config['data']['batch_size'] * self.config['data']['sequence_length']

  def elapsed(self) -> float:
    """Seconds of training, including those before a resume."""
    return self.seconds + self.clock() - self.started

  def next_stop(self) -> int:
    """The next step after which the host has something to do for this run."""
    return next_stop(self.config, self.step)

  def is_over(self) -> bool:
    """Whether the run makes no more steps."""
    return self.diverged or self.stopped or self.step == self.steps

  def is_at_stop(self) -> bool:
    """Whether actions may be applied at the present step."""
    return self.is_over() or is_stop(self.config, self.step)

  def has_action_due(self) -> bool:
    """Whether an action may have to be applied at the present step."""
    return self.is_at_stop() and self.control.has_work(self.step, self.is_over())

  def is_due(self, section: str) -> bool:
    """Whether the interval of a config section (log, probe, checkpoint) ends at this step."""
    every = self.config[section]['every_steps']
    return every > 0 and self.step % every == 0

  def is_due_for_sharpness(self) -> bool:
    """Whether sharpness is measured at this step; such a step is always a probed one."""
    every = self.config['probe']['sharpness_every_steps']
    return every > 0 and self.step % every == 0

  def log(self, metrics: dict[str, float], step: int, now: float) -> None:
    """Writes the row of a step and marks the run as diverged if the device says so.

    Args:
      metrics: of the step, from the device.
      step: at which the host expects the run to be.
      now: clock time at which the metrics arrived.
    """
    row = dict(metrics)
    self.diverged = bool(row.pop('diverged'))
    row['step'] = int(row['step'])
    assert self.diverged or row['step'] == step, (self.folder, row['step'], step)
    if self.diverged:
      row['loss'], self.step = math.nan, row['step']
    last_step, last_time = self.last_logged
    row['tokens'] = self.tokens(row['step'])
    row['seconds'] = self.elapsed()
    row['tokens_per_second'] = self.tokens(row['step'] - last_step) / (now - last_time)
    self.last_logged = row['step'], now
    self.writer.write(row)
    for alarm in self.control.observe(row):
      self.writer.mark(alarm.step, f'alarm/{alarm.rule}', alarm.message)

  def progress(self) -> RunProgress:
    """What a checkpoint made now holds beside the state."""
    return RunProgress(self.initial_loss, self.elapsed(), len(self.control.taken))

  def save(self, state: Any) -> None:
    """Writes a checkpoint, after flushing the rows up to it."""
    self.writer.flush()
    keep = self.config['checkpoint']['keep']
    progress = self.progress().to_json()
    checkpoints.save(self.folder, self.step, to_arrays(state), progress, keep)

  def finish(self, final_loss: float, seconds: float) -> Result:
    """Closes the files of a run that is over and returns its result.

    Args:
      final_loss: on the validation batches.
      seconds: of training, without the evaluation.
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
        steps=self.step,
        tokens=self.tokens(self.step),
        seconds=seconds,
    )
    self.writer.close(result)
    return result
