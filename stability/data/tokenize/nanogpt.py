"""Takes over the token files of nanoGPT: train.bin and val.bin, raw uint16 without a header.

They do not say how large the vocabulary is or which token ends a document, so the user does.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stability.data import tokens
from stability.errors import BadInput

_FILES = {'train': 'train.bin', 'validation': 'val.bin'}
_DTYPE = 'uint16'
_CHUNK = 2**24  # tokens read at once


def take_over(
    source: Path, output: Path, vocabulary_size: int, end_of_document: int | None
) -> dict[str, int]:
  """Makes a token folder from a folder of nanoGPT; returns the number of tokens by split.

  Raises BadInput, before anything is written, if the files do not fit the vocabulary.
  """
  if output.exists():
    raise BadInput(f'--output={output}: exists; choose a new folder')
  if end_of_document is not None and not 0 <= end_of_document < vocabulary_size:
    raise BadInput(
        f'--end_of_document={end_of_document}: must be below --vocabulary_size={vocabulary_size}'
    )
  arrays = {split: _open(source / name, vocabulary_size) for split, name in _FILES.items()}
  meta = {
      'tokenizer': 'nanogpt',
      'vocabulary_size': vocabulary_size,
      'end_of_document': end_of_document,
      'dtype': _DTYPE,
      'sha256': tokens.digests(arrays),
      'documents': {split: _documents(array, end_of_document) for split, array in arrays.items()},
      **tokens.statistics(arrays, vocabulary_size),
  }
  tokens.write(output, meta, arrays)
  return {split: len(array) for split, array in arrays.items()}


def _open(file: Path, vocabulary_size: int) -> np.memmap:
  """Memory-maps a file; [tokens]."""
  try:
    size = file.stat().st_size
  except OSError as error:
    raise BadInput(f'--input={file.parent}: {file.name} cannot be read: {error}') from error
  if size < 4 or size % 2:
    raise BadInput(f'{file}: holds {size} bytes; must be two per token, and at least two tokens')
  array = np.memmap(file, np.dtype(_DTYPE).newbyteorder('<'), mode='r')
  highest = max(int(chunk.max()) for chunk in _chunks(array))
  if highest >= vocabulary_size:
    raise BadInput(
        f'{file}: holds token {highest}; --vocabulary_size={vocabulary_size} must be above it'
    )
  return array


def _documents(array: np.memmap, end_of_document: int | None) -> int:
  """The number of documents; one if nothing says where they end."""
  if end_of_document is None:
    return 1
  return sum(int(np.count_nonzero(chunk == end_of_document)) for chunk in _chunks(array))


def _chunks(array: np.memmap) -> Iterator[np.ndarray]:
  return (array[start : start + _CHUNK] for start in range(0, len(array), _CHUNK))
