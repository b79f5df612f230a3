"""Scalars in TensorBoard's event files, read by the tensorboard package."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stability.errors import BadInput
from stability.importing.tables import UnusableFile


def is_event_file(path: Path) -> bool:
  """Whether a file is an event file, by its name."""
  return 'tfevents' in path.name


def read(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Yields (tag, steps, values) for each scalar of an event file.

  A file that its trainer is still writing is read up to its last complete event.
  """
  try:
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.util import tensor_util
  except ImportError as error:
    raise BadInput(f'{path}: pip install tensorboard, which reads event files') from error
  found: dict[str, tuple[list[int], list[float]]] = {}
  try:
    # It turns the older forms of a scalar into tensors.
    for event in event_file_loader.EventFileLoader(str(path)).Load():
      for value in event.summary.value:
        if value.HasField('tensor'):
          array = tensor_util.make_ndarray(value.tensor)
          if array.size == 1 and array.dtype.kind in 'fiu':
            steps, values = found.setdefault(value.tag, ([], []))
            steps.append(event.step)
            values.append(float(array.item()))
  except Exception as error:  # of the package, which documents none
    raise UnusableFile(f'{path}: is not an event file: {type(error).__name__}: {error}') from error
  for tag, (steps, values) in found.items():
    yield tag, np.array(steps, np.int64), np.array(values)
