"""TensorBoard's event files, and what they show besides the rows: an overview and HParams columns.

TensorBoard sorts charts by the group of their tag, which is the part before the first slash. So the
curves that matter most are also written under a group that comes first.
"""

import contextlib
import math
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

# tensorboardX imports torch if it is installed, which takes a second and is not needed here.
_unwanted = sys.modules.setdefault('torch', None)
from tensorboardX import summary as tensorboardx  # noqa: E402
from tensorboardX.event_file_writer import EventsWriter  # noqa: E402
from tensorboardX.proto import api_pb2, plugin_hparams_pb2  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata  # noqa: E402

if _unwanted is None:
  del sys.modules['torch']

from stability.storage import run_files  # noqa: E402
from stability.storage.run_files import Result  # noqa: E402

LOGIT_MAX = 'attention_logit_max'
OVERVIEW = '0_overview'  # digits come before letters
STATUSES = ('done', 'diverged', 'stopped')  # a failed run has no result to show
# The metrics of the HParams dashboard by tag, with their titles. Metrics are numbers.
METRICS = {
    'result/status': 'status: ' + ', '.join(f'{n} {s}' for n, s in enumerate(STATUSES)),
    'result/parameters': 'parameters',
    'initial_loss': 'initial_loss',
    'final_loss': 'final_loss',
    f'result/{LOGIT_MAX}': 'highest attention logit',
}


class EventFile:
  """A new event file in a folder, a convenience: if it fails, the rest of it is dropped.

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

  def hide_later(self, step: int) -> None:
    """Makes TensorBoard hide the events of earlier files after `step`."""
    self._add(step + 1, session_log=SessionLog(status=SessionLog.START))

  def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds scalars by tag."""
    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    self.add(step, Summary(value=scalars))

  def add_text(self, step: int, tag: str, message: str) -> None:
    """Adds a text."""
    self.add(step, tensorboardx.text(tag, message))

  def add(self, step: int, summary: Summary) -> None:
    """Adds a summary."""
    self._add(step, summary=summary)

  def flush(self) -> None:
    """Writes all events to disk before it returns."""
    with self._dropped():
      if self._writer is not None:
        self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    with self._dropped():
      if self._writer is not None:
        self._writer.close()

  def _add(self, step: int, **content: Any) -> None:
    with self._dropped():
      if self._writer is not None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **content))

  @contextlib.contextmanager
  def _dropped(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # of tensorboardX
      logging.warning('%s: TensorBoard will lack later events: %s', self._folder, error)
      self._writer = None


def overview(row: Mapping[str, float]) -> dict[str, float]:
  """The scalars of a row to show first, by tag: the loss, and the highest logit of all blocks."""
  found = {f'{OVERVIEW}/loss': row['loss']} if 'loss' in row else {}
  logit = run_files.highest(row, LOGIT_MAX)
  return found if math.isnan(logit) else found | {f'{OVERVIEW}/{LOGIT_MAX}': logit}


def metrics(result: Result, rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
  """The metrics of a run, by tag; unknown ones are left out.

  Args:
    result: the run's result, which is not a failure.
    rows: the rows of its metrics.jsonl.
  """
  logits = [run_files.highest(row, LOGIT_MAX) for row in rows]
  found = {
      'result/status': STATUSES.index(result.status),
      'result/parameters': result.parameters,
      'initial_loss': result.initial_loss,
      'final_loss': result.final_loss,
      f'result/{LOGIT_MAX}': max((x for x in logits if not math.isnan(x)), default=None),
  }
  return {tag: value for tag, value in found.items() if value is not None}


def experiment(runs: Iterable[Mapping[str, Any]]) -> Summary:
  """The HParams columns of a sweep: METRICS, and the fields, from their values in each run."""
  values: dict[str, list[Any]] = {}
  for fields in runs:
    for field, value in fields.items():
      values.setdefault(field, []).append(value)
  columns = api_pb2.Experiment(
      hparam_infos=[api_pb2.HParamInfo(name=f, type=_type(v)) for f, v in values.items()],
      metric_infos=[
          api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title)
          for tag, title in METRICS.items()
      ],
  )
  return _hparams('experiment', experiment=columns)


def session_start(fields: Mapping[str, Any]) -> Summary:
  """The values of a run in the columns of its fields; None leaves a cell empty."""
  start = plugin_hparams_pb2.SessionStartInfo()
  for field, value in fields.items():
    if isinstance(value, bool):
      start.hparams[field].bool_value = value
    elif isinstance(value, int | float):
      start.hparams[field].number_value = value
    elif value is not None:
      start.hparams[field].string_value = str(value)
  return _hparams('session_start_info', session_start_info=start)


def session_end(result: Result) -> Summary:
  """TensorBoard's status of a run that has ended, success or failure; divergence is a failure."""
  name = 'STATUS_FAILURE' if result.status == 'diverged' else 'STATUS_SUCCESS'
  end = plugin_hparams_pb2.SessionEndInfo(status=api_pb2.Status.Value(name))
  return _hparams('session_end_info', session_end_info=end)


def _type(values: Iterable[Any]) -> int:
  """The type of a column with these values, among which may be None."""
  kinds = {type(value) for value in values} - {type(None)}
  if kinds == {bool}:
    return api_pb2.DATA_TYPE_BOOL
  return api_pb2.DATA_TYPE_FLOAT64 if kinds <= {int, float} else api_pb2.DATA_TYPE_STRING


def _hparams(name: str, **content: Any) -> Summary:
  data = plugin_hparams_pb2.HParamsPluginData(version=0, **content).SerializeToString()
  plugin = SummaryMetadata.PluginData(plugin_name='hparams', content=data)
  metadata = SummaryMetadata(plugin_data=plugin)
  return Summary(value=[Summary.Value(tag=f'_hparams_/{name}', metadata=metadata)])
