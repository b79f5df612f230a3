"""The writer of a run's metrics: metrics.jsonl and TensorBoard's event file, from the same rows."""

import contextlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

# tensorboardX imports torch if it is installed, which takes a second and is not needed here.
_unwanted = sys.modules.setdefault('torch', None)
from tensorboardX.event_file_writer import EventsWriter  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary  # noqa: E402
from tensorboardX.summary import hparams, text  # noqa: E402

if _unwanted is None:
  del sys.modules['torch']

from stability.errors import writing  # noqa: E402
from stability.storage import run_files  # noqa: E402
from stability.storage.run_files import Result  # noqa: E402

RESULT_METRICS = ('initial_loss', 'final_loss')  # columns of the HParams dashboard
# Seconds between flushes of the event file. A flush waits for the disk: flushing after every row
# took 2 to 4 % of the time of the smallest runs. TensorBoard polls every 30 s by default.
FLUSH_SECONDS = 5


class MetricsWriter:
  """Appends rows to the files of one run."""

  def __init__(self, run: Path, step: int, hparams: Mapping[str, Any]):
    """
    Args:
      run: the run's folder.
      step: the run's current step; rows of later steps are dropped.
      hparams: fields of the run to show in the HParams dashboard.
    """
    self._run = run
    is_resumed = (run / 'metrics.jsonl').exists()
    run_files.truncate_metrics(run, step)
    with writing(run / 'metrics.jsonl'):
      # Unbuffered: if the disk is full, a buffer would keep rows and write them at an unknown time.
      self._rows = (run / 'metrics.jsonl').open('ab', buffering=0)
    self._events = _EventFile(run)
    self._flushed = time.monotonic()
    if is_resumed:  # makes TensorBoard hide the events of earlier files after `step`
      self._add(step + 1, session_log=SessionLog(status=SessionLog.START))
    _, start, self._end = _hparams_summaries(hparams)
    self._add(step, summary=start)

  def write(self, row: Mapping[str, float]) -> None:
    """Writes a row, which has `step` and scalars by name; NaN and infinity become null."""
    line = {key: value if math.isfinite(value) else None for key, value in row.items()}
    with writing(self._run / 'metrics.jsonl'):
      rest = json.dumps(line, allow_nan=False).encode() + b'\n'
      while rest:
        rest = rest[self._rows.write(rest) :]
    self._add_scalars({key: row[key] for key in row if key != 'step'}, row['step'])
    if time.monotonic() - self._flushed > FLUSH_SECONDS:
      self._flush_events()

  def mark(self, step: int, name: str, message: str) -> None:
    """Shows an event of the run in TensorBoard, as a point and a text under `name`."""
    self._add_scalars({name: 1.0}, step)
    self._add(step, summary=text(name, message))
    self._flush_events()

  def flush(self) -> None:
    """Writes all rows to disk before it returns, as a checkpoint requires."""
    with writing(self._run / 'metrics.jsonl'):
      os.fsync(self._rows.fileno())
    self._flush_events()

  def close(self, result: Result | None = None) -> None:
    """Closes the files; a result, if given, is shown in the HParams dashboard."""
    if result is not None:
      losses = {key: getattr(result, key) for key in RESULT_METRICS}
      self._add_scalars({k: v for k, v in losses.items() if v is not None}, result.steps)
      self._add(result.steps, summary=self._end)
    self._events.close()
    with writing(self._run):
      self._rows.close()

  def _flush_events(self) -> None:
    self._events.flush()
    self._flushed = time.monotonic()

  def _add_scalars(self, values: Mapping[str, float], step: int) -> None:
    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    self._add(step, summary=Summary(value=scalars))

  def _add(self, step: int, **content: Any) -> None:
    self._events.write(Event(step=step, wall_time=time.time(), **content))


class NoWriter:
  """Replaces MetricsWriter in a process that does not write the run's files."""

  def write(self, row: Mapping[str, float]) -> None:
    pass

  def mark(self, step: int, name: str, message: str) -> None:
    pass

  def flush(self) -> None:
    pass

  def close(self, result: Result | None = None) -> None:
    pass


def write_experiment(workdir: Path, hparams: Mapping[str, Any]) -> None:
  """Writes the HParams columns of a sweep, once, to an event file in the workdir.

  Without it the dashboard shows only the columns of the first run that it finds.
  """
  if any(workdir.glob('events.out.tfevents.*')):
    return
  experiment, _, _ = _hparams_summaries(hparams)
  events = _EventFile(workdir)
  events.write(Event(wall_time=time.time(), summary=experiment))
  events.close()


class _EventFile:
  """TensorBoard's event file of a folder, a convenience: if it fails, the rest of it is dropped.

  On a full disk metrics.jsonl, which is written first, stops the training.
  """

  def __init__(self, folder: Path):
    self._folder = folder
    self._writer: EventsWriter | None = None
    # The suffix keeps writers that start in the same second from overwriting each other's file. It
    # begins with the time in nanoseconds, as TensorBoard reads files in the order of their names.
    suffix = f'.{time.time_ns():020}.{uuid.uuid4().hex[:8]}'
    with self._dropped():
      self._writer = EventsWriter(str(folder / 'events'), suffix)

  def write(self, event: Event) -> None:
    with self._dropped():
      if self._writer is not None:
        self._writer.write_event(event)

  def flush(self) -> None:
    with self._dropped():
      if self._writer is not None:
        self._writer.flush()

  def close(self) -> None:
    with self._dropped():
      if self._writer is not None:
        self._writer.close()

  @contextlib.contextmanager
  def _dropped(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # of tensorboardX
      logging.warning('%s: TensorBoard will lack later events: %s', self._folder, error)
      self._writer = None


def _hparams_summaries(fields: Mapping[str, Any]) -> tuple[Summary, Summary, Summary]:
  """The HParams summaries of an experiment, and of the start and the end of a run."""
  return hparams(dict(fields), dict.fromkeys(RESULT_METRICS))
