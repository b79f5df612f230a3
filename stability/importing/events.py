"""Scalars in TensorBoard's event files, read by the tensorboard package."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stability.errors import BadInput
from stability.importing.tables import UnusableFile

_HEADER = struct.Struct('<QI')  # of a record: the length of an event, and the checksum of that
_FRAME = _HEADER.size + 4  # bytes of a record beside the event: a header, and a checksum at the end


def is_event_file(path: Path) -> bool:
  """Whether a file is an event file, by its name."""
  return 'tfevents' in path.name


def read(path: Path, damaged: list[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Yields (tag, steps, values) for each scalar of an event file.

  A file that its trainer is still writing is read up to its last complete event.

  Args:
    path: the file.
    damaged: if the file is damaged, the place from which on it is left out is added.
  """
  try:
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.util import tensor_util
  except ImportError as error:
    raise BadInput(f'{path}: pip install tensorboard, which reads event files') from error

  class Records(event_file_loader.RawEventFileLoader):
    """Counts the bytes of complete records; at a damaged one, the package ends without a word."""

    read = 0

    def Load(self) -> Iterator[bytes]:
      for event in super().Load():
        self.read += len(event) + _FRAME
        yield event

  class Events(event_file_loader.EventFileLoader, Records):
    """The events, with older forms of a scalar as tensors."""

  found: dict[str, tuple[list[int], list[float]]] = {}
  try:
    size, events = path.stat().st_size, Events(str(path))
    for event in events.Load():
      for value in event.summary.value:
        if value.HasField('tensor'):
          array = tensor_util.make_ndarray(value.tensor)
          if array.size == 1 and array.dtype.kind in 'fiu':
            steps, values = found.setdefault(value.tag, ([], []))
            steps.append(event.step)
            values.append(float(array.item()))
  except Exception as error:  # of the package, which documents none
    raise UnusableFile(f'{path}: is not an event file: {type(error).__name__}: {error}') from error
  if _is_damaged(path, events.read, size):
    damaged.append(f'{path}, from byte {events.read:,} of {size:,} on: is damaged')
  for tag, (steps, values) in found.items():
    yield tag, np.array(steps, np.int64), np.array(values)


def _is_damaged(path: Path, start: int, size: int) -> bool:
  """Whether what begins at byte `start` of a file is not the beginning of its last record."""
  from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

  if size - start < _HEADER.size:
    return False
  with path.open('rb') as file:
    file.seek(start)
    header = file.read(_HEADER.size)
  length, checksum = _HEADER.unpack(header)
  return checksum != masked_crc32c(header[:8]) or start + length + _FRAME <= size
