"""The writer of a run's metrics: metrics.jsonl and TensorBoard's event file, from the same rows."""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stability.errors import writing
from stability.storage import events, run_files
from stability.storage.run_files import Result

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
    self._events = events.EventFile(run)
    self._flushed = time.monotonic()
    if is_resumed:
      self._events.hide_later(step)
    self._events.add(step, events.session_start(hparams))

  def write(self, row: Mapping[str, float]) -> None:
    """Writes a row, which has `step` and scalars by name; NaN and infinity become null."""
    line = {key: value if math.isfinite(value) else None for key, value in row.items()}
    with writing(self._run / 'metrics.jsonl'):
      rest = json.dumps(line, allow_nan=False).encode() + b'\n'
      while rest:
        rest = rest[self._rows.write(rest) :]
    scalars = {key: row[key] for key in row if key != 'step'}
    self._events.add_scalars(row['step'], scalars | events.overview(row))
    if time.monotonic() - self._flushed > FLUSH_SECONDS:
      self._flush_events()

  def mark(self, step: int, name: str, message: str) -> None:
    """Shows an event of the run in TensorBoard, as a point and a text under `name`."""
    self._events.add_scalars(step, {name: 1.0})
    self._events.add_text(step, name, message)
    self._flush_events()

  def flush(self) -> None:
    """Writes all rows to disk before it returns, as a checkpoint requires."""
    with writing(self._run / 'metrics.jsonl'):
      os.fsync(self._rows.fileno())
    self._flush_events()

  def close(self, result: Result | None = None) -> None:
    """Closes the files; a result, if given, is shown in the HParams dashboard."""
    if result is not None:
      rows = run_files.iterate_metrics(self._run)
      self._events.add_scalars(result.steps, events.metrics(result, rows))
      self._events.add(result.steps, events.session_end(result))
    self._events.close()
    with writing(self._run):
      self._rows.close()

  def _flush_events(self) -> None:
    self._events.flush()
    self._flushed = time.monotonic()


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


def write_experiment(workdir: Path, runs: Iterable[Mapping[str, Any]]) -> None:
  """Writes the HParams columns of a sweep, once, to an event file in the workdir.

  Without it the dashboard shows only the columns of the first run that it finds.

  Args:
    workdir: the folder of the sweep.
    runs: the swept fields of each run with its values.
  """
  if any(workdir.glob('events.out.tfevents.*')):
    return
  file = events.EventFile(workdir)
  file.add(0, events.experiment(runs))
  file.close()
