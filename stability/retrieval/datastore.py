"""Datastores on disk: the keys of texts by a model, memory-mapped, to which texts can be added.

  FOLDER/datastore.json    the model's run and fingerprint, and the parts in order
  FOLDER/part-N.keys       float32 [windows T, D], as the model computes them
  FOLDER/part-N.tokens     [windows, T + 1], in the type of the token files
  FOLDER/part-N.starts     int64 [windows]: position of each window in its text

All numbers are little-endian. The files of a part are written before datastore.json lists them, so
an addition that is interrupted leaves the datastore as it was.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from stability.errors import BadInput
from stability.retrieval.model import Model
from stability.retrieval.texts import Windows
from stability.storage import files
from stability.storage.files import Json

ABOUT = 'datastore.json'
FORMAT = 'stability datastore'

_DTYPES = ('uint8', 'uint16', 'uint32')
_FILES = ('keys', 'tokens', 'starts')
_TYPES = {'format': str, 'run': str, 'model': str, 'width': int, 'sequence_length': int}
_PART_TYPES = {'text': str, 'windows': int, 'dtype': str, 'sha256': dict}


@dataclasses.dataclass(frozen=True)
class Part:
  """The windows of a text, with their keys."""

  windows: Windows
  keys: np.ndarray  # float32 [windows T, D], memory-mapped


class Datastore:
  """An open datastore."""

  def __init__(self, folder: Path, about: Json, parts: list[Part]):
    self.folder = folder
    self.parts = parts
    self._about = about

  @classmethod
  def create(cls, folder: Path, run: str, model: Model) -> Self:
    """Makes an empty datastore; it exists on disk once a text is added."""
    about = {
        'format': FORMAT,
        'run': run,
        'model': model.fingerprint,
        'width': model.width,
        'sequence_length': model.sequence_length,
        'parts': [],
    }
    return cls(folder, about, [])

  @classmethod
  def open(cls, folder: Path, model: Model) -> Self:
    """Opens a datastore and checks its files.

    Raises:
      BadInput: it is damaged, no datastore, or of another model or length of windows.
    """
    path = folder / ABOUT
    about = files.read_json(path)
    try:
      files.check_types(about, _TYPES)
      if about['format'] != FORMAT or not isinstance(about.get('parts'), list):
        raise BadInput(f'format must be {FORMAT!r}, with a list of parts')
    except BadInput as error:
      raise BadInput(f'{path}: not a datastore: {error}') from None
    if about['model'] != model.fingerprint:
      raise BadInput(
          f'{path}: holds the keys of another model, that of run {about["run"]!r}; a datastore'
          ' serves only the model that made it'
      )
    if about['sequence_length'] != model.sequence_length:
      raise BadInput(
          f'{path}: holds windows of {about["sequence_length"]} tokens; must be of'
          f' {model.sequence_length}, config.data.sequence_length of the run'
      )
    parts = [_open_part(folder, number, about) for number in range(len(about['parts']))]
    return cls(folder, about, parts)

  @property
  def keys(self) -> int:
    """The number of keys."""
    return sum(len(part.keys) for part in self.parts)

  @property
  def name(self) -> str:
    """The texts, joined by a plus sign."""
    return '+'.join(part.windows.name for part in self.parts)

  def add(
      self,
      windows: Windows,
      model: Model,
      on_progress: Callable[[float], None] = lambda fraction: None,
  ) -> None:
    """Computes the keys of a text and adds them; `on_progress` gets the share that is done."""
    length = windows.tokens_NxT1.shape[1] - 1
    if length != self._about['sequence_length']:
      raise ValueError(f'windows of {length} tokens; must be {self._about["sequence_length"]}')
    base = self.folder / f'part-{len(self.parts)}'
    with files.open_atomic(base.with_suffix('.keys')) as file:
      for done, outputs in model.batches(windows.tokens_NxT1):
        file.write(np.ascontiguousarray(outputs.keys_NxTxD, '<f4'))
        on_progress(done.stop / len(windows.tokens_NxT1))
    dtype = windows.tokens_NxT1.dtype.name
    tokens = windows.tokens_NxT1.astype(np.dtype(dtype).newbyteorder('<'))
    files.write_atomic(base.with_suffix('.tokens'), tokens.tobytes())
    files.write_atomic(base.with_suffix('.starts'), windows.starts_N.astype('<i8').tobytes())
    part = {
        'text': windows.name,
        'windows': len(windows.starts_N),
        'dtype': dtype,
        'documents': [list(document) for document in windows.documents],
        'sha256': {name: files.sha256(base.with_suffix(f'.{name}')) for name in _FILES},
    }
    about = self._about | {'parts': [*self._about['parts'], part]}
    files.write_json(self.folder / ABOUT, about)
    self._about = about
    self.parts.append(_map_part(self.folder, len(self.parts), about))

  def arrays(self) -> list[np.ndarray]:
    """The keys of each part: float32 [keys, D]."""
    return [part.keys for part in self.parts]

  def values(self, indices: np.ndarray) -> np.ndarray:
    """The tokens that follow keys, which are given by their indices over all parts."""
    found, first = np.zeros(indices.shape, np.int64), 0
    for part in self.parts:
      inside = (indices >= first) & (indices < first + len(part.keys))
      window, position = np.divmod(indices[inside] - first, self._about['sequence_length'])
      found[inside] = part.windows.tokens_NxT1[window, position + 1]
      first += len(part.keys)
    return found

  def source(self, index: int) -> tuple[str, np.ndarray]:
    """Where the value of a key comes from, and the window's tokens up to and with it."""
    for part in self.parts:
      if index < len(part.keys):
        window, position = divmod(index, self._about['sequence_length'])
        start = int(part.windows.starts_N[window])
        where = part.windows.source(start + position + 1)
        return f'{part.windows.name}: {where}', part.windows.tokens_NxT1[window, : position + 2]
      index -= len(part.keys)
    raise IndexError(index)


def _open_part(folder: Path, number: int, about: Json) -> Part:
  part, path = about['parts'][number], folder / ABOUT
  try:
    files.check_types(part if isinstance(part, dict) else {}, _PART_TYPES)
    if part['dtype'] not in _DTYPES or part['windows'] < 1:
      raise BadInput(f'dtype must be one of {", ".join(_DTYPES)}, windows at least 1')
    documents = [(str(name), int(first)) for name, first in part['documents']]
    if not documents or documents[0][1] != 0:
      raise BadInput('documents must begin at position 0')
  except (BadInput, KeyError, TypeError, ValueError) as error:
    raise BadInput(f'{path}: damaged: part {number}: {error}') from None
  layout = _layout(part, about)
  for name in _FILES:
    file = folder / f'part-{number}.{name}'
    if not file.is_file():
      raise BadInput(f'{file}: no such file')
    dtype, shape = layout[name]
    size = math.prod(shape) * dtype.itemsize
    if file.stat().st_size != size or files.sha256(file) != part['sha256'].get(name):
      raise BadInput(f'{file}: damaged: it does not match its size and SHA-256 in {ABOUT}')
  return _map_part(folder, number, about)


def _map_part(folder: Path, number: int, about: Json) -> Part:
  part = about['parts'][number]
  mapped = {
      name: np.memmap(folder / f'part-{number}.{name}', dtype, 'r', shape=shape)
      for name, (dtype, shape) in _layout(part, about).items()
  }
  documents = [(str(name), int(first)) for name, first in part['documents']]
  windows = Windows(part['text'], mapped['tokens'], np.asarray(mapped['starts']), documents)
  return Part(windows, mapped['keys'])


def _layout(part: Json, about: Json) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
  """The type and shape of each file of a part."""
  length, windows = about['sequence_length'], part['windows']
  return {
      'keys': (np.dtype('<f4'), (windows * length, about['width'])),
      'tokens': (np.dtype(part['dtype']).newbyteorder('<'), (windows, length + 1)),
      'starts': (np.dtype('<i8'), (windows,)),
  }
