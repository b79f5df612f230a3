"""The one writer of a run's metrics: metrics.jsonl and TensorBoard, from the same dict."""

import json
import math
import os
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# tensorboardX imports torch where it is installed, which takes a second; nothing here needs it.
_unwanted = sys.modules.setdefault('torch', None)
from tensorboardX.event_file_writer import EventsWriter  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary  # noqa: E402
from tensorboardX.summary import hparams, text  # noqa: E402

if _unwanted is None:
  del sys.modules['torch']

from stability.errors import writing  # noqa: E402
from stability.storage import run_files  # noqa: E402

RESULT_METRICS = ('initial_loss', 'final_loss')  # the columns of the HParams dashboard
# Between flushes of the event file, each of which waits for the disk: at each line they took 2 to 4
# % of the time of the smallest runs. TensorBoard looks every 30 s by default.
BOARD_SECONDS = 5


class MetricsWriter:
  """Appends to the files of one run, from `step` on: what was logged after it is dropped."""

  def __init__(self, run: Path, step: int, hyperparameters: Mapping[str, Any]):
    """hyperparameters: the fields that the HParams dashboard shows for this run."""
    self._run = run
    begun_before = (run / 'metrics.jsonl').exists()
    run_files.truncate_metrics(run, step)
    with writing(run / 'metrics.jsonl'):
      # Without a buffer: it would keep what a full disk refuses, and write it who knows when.
      self._lines = (run / 'metrics.jsonl').open('ab', buffering=0)
    with writing(run):
      self._board = _board(run)
    self._flushed = time.monotonic()
    if begun_before:  # TensorBoard then hides what earlier event files hold from this step on
      self._add(step + 1, session_log=SessionLog(status=SessionLog.START))
    _, start, self._end = _hparams(hyperparameters)
    self._add(step, summary=start)

  def write(self, metrics: Mapping[str, float]) -> None:
    """Logs one step: metrics holds step and, under their names, scalars; NaN becomes null."""
    line = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
    with writing(self._run / 'metrics.jsonl'):
      rest = json.dumps(line, allow_nan=False).encode() + b'\n'
      while rest:
        rest = rest[self._lines.write(rest) :]
    self._scalars({key: value for key, value in metrics.items() if key != 'step'}, metrics['step'])
    if time.monotonic() - self._flushed > BOARD_SECONDS:
      self._flush_board()

  def mark(self, step: int, name: str, told: str) -> None:
    """Shows in TensorBoard that something happened: a point under `name`, and what is told."""
    self._scalars({name: 1.0}, step)
    self._add(step, summary=text(name, told))
    self._flush_board()

  def flush(self) -> None:
    """Returns once all lines are on the disk, where a checkpoint may rely on them."""
    with writing(self._run / 'metrics.jsonl'):
      os.fsync(self._lines.fileno())
    self._flush_board()

  def close(self, result: run_files.Result | None = None) -> None:
    """Ends the files; with the run's result, the HParams dashboard shows it."""
    if result is not None:
      losses = {key: getattr(result, key) for key in RESULT_METRICS}
      self._scalars({k: v for k, v in losses.items() if v is not None}, result.steps)
      self._add(result.steps, summary=self._end)
    with writing(self._run):
      self._board.close()
      self._lines.close()

  def _flush_board(self) -> None:
    with writing(self._run):
      self._board.flush()
    self._flushed = time.monotonic()

  def _scalars(self, values: Mapping[str, float], step: int) -> None:
    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    self._add(step, summary=Summary(value=scalars))

  def _add(self, step: int, **content: Any) -> None:
    with writing(self._run):
      self._board.write_event(Event(step=step, wall_time=time.time(), **content))


class NoWriter:
  """Takes a writer's place where another process writes."""

  def write(self, metrics: Mapping[str, float]) -> None:
    pass

  def mark(self, step: int, name: str, told: str) -> None:
    pass

  def flush(self) -> None:
    pass

  def close(self, result: run_files.Result | None = None) -> None:
    pass


def write_experiment(workdir: Path, fields: Mapping[str, Any]) -> None:
  """Tells TensorBoard all HParams columns of a sweep, once, at its root.

  Without it the dashboard shows only the columns of the first run found.
  """
  if any(workdir.glob('events.out.tfevents.*')):
    return
  experiment, _, _ = _hparams(fields)
  with writing(workdir):
    board = _board(workdir)
    board.write_event(Event(wall_time=time.time(), summary=experiment))
    board.close()


def _board(folder: Path) -> EventsWriter:
  # Two writers that start in one second would overwrite each other's file but for the suffix;
  # TensorBoard reads files in the order of their names, so the suffix is the time, finer.
  suffix = f'.{time.time_ns():020}.{uuid.uuid4().hex[:8]}'
  return EventsWriter(str(folder / 'events'), suffix)


def _hparams(fields: Mapping[str, Any]) -> tuple[Summary, Summary, Summary]:
  return hparams(dict(fields), dict.fromkeys(RESULT_METRICS))
