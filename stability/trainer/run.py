"""A run while it is trained: where it stands, and its state on the disk."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stability.config import Config
from stability.control import run_control
from stability.storage import checkpoints, files, sweeps, versions
from stability.storage.metrics import MetricsWriter, NoWriter


@dataclasses.dataclass
class Run:
  """A run while it is trained."""

  folder: Path
  config: Config
  writer: MetricsWriter | NoWriter
  control: run_control.Control | run_control.NoControl
  step: int  # updates made, as the host counts them; once diverged, the one that was not made
  initial_loss: float | None  # None until it is measured
  seconds: float  # spent before `since`
  since: float = 0.0  # time of its first step here
  last_line: tuple[int, float] = (0, 0.0)  # step and time of the last logged line
  diverged: bool = False
  stopped: bool = False  # by an action

  def start_clock(self) -> None:
    """From now on it trains."""
    self.since = time.perf_counter()
    self.last_line = self.step, self.since

  @property
  def steps(self) -> int:
    """Updates the run is to make."""
    return self.config['schedule']['steps']

  def tokens(self, step: int) -> int:
    """Tokens trained on in `step` updates."""
    return step * self.config['data']['batch_size'] * self.config['data']['sequence_length']

  def elapsed(self) -> float:
    """Seconds of training, those before a resume included."""
    return self.seconds + time.perf_counter() - self.since

  def next_stop(self) -> int:
    """The next step after which the host has something to do for this run."""
    return run_control.next_stop(self.config, self.step)

  def is_over(self) -> bool:
    """Whether no more steps are to be made."""
    return self.diverged or self.stopped or self.step == self.steps

  def has_work(self) -> bool:
    """Whether somebody may want something of it here and now."""
    stop = self.is_over() or run_control.is_stop(self.config, self.step)
    return stop and self.control.has_work(self.step, self.is_over())

  def is_due(self, section: str) -> bool:
    """Whether log, probe or checkpoint falls on the present step."""
    every = self.config[section]['every_steps']
    return every > 0 and self.step % every == 0

  def is_due_for_sharpness(self) -> bool:
    """Whether sharpness falls on the present step; a probe does as well then."""
    every = self.config['probe']['sharpness_every_steps']
    return every > 0 and self.step % every == 0

  def about(self) -> files.Json:
    """What a checkpoint holds beside the state."""
    return {
        'initial_loss': self.initial_loss,
        'seconds': self.elapsed(),
        'actions': len(self.control.taken),
    }

  def save(self, state: Any) -> None:
    """Writes a checkpoint, its lines before it."""
    self.writer.flush()
    keep = self.config['checkpoint']['keep']
    checkpoints.save(self.folder, self.step, named(state), self.about(), keep)


def open_writer(
    folder: Path, config: Config, step: int, fields: Iterable[str]
) -> MetricsWriter | NoWriter:
  """The writer of a run from `step` on; fields: those of its sweep."""
  if not is_primary():
    return NoWriter()
  versions.note(folder, step)
  return MetricsWriter(folder, step, sweeps.swept_values(config, fields))


def named(state: Any) -> checkpoints.Arrays:
  """A run's state as arrays by path."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {_path(path): np.asarray(leaf) for path, leaf in leaves}


def unnamed(like: Any, arrays: checkpoints.Arrays) -> Any:
  """The inverse of named, in the structure of `like`; KeyError if they do not agree."""
  return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_path(path)], like)


def _path(path: Any) -> str:
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  # Checkpoints have always had the hyperparameters under `hyper`.
  return 'hyper' + name.removeprefix('hparams') if name.startswith('hparams/') else name


def is_multiprocess() -> bool:
  """Whether several processes train one run."""
  return jax.process_count() > 1


def is_primary() -> bool:
  """Whether this process writes the files of runs: the first of those that share one."""
  return jax.process_index() == 0
