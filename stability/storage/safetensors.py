"""Files of named arrays in the format safetensors (github.com/huggingface/safetensors).

A file holds the length of its header, 8 bytes, little-endian; the header, a JSON object with type,
shape and position of each array and the texts `__metadata__`; the arrays' elements, little-endian,
in C order. So it can be read without running code, and in part. NumPy has no bfloat16 of its own:
ml_dtypes, which jax needs, adds it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from stability.errors import BadInput
from stability.storage import files

Arrays = dict[str, np.ndarray]  # by name

_TYPES = {
    'F32': np.dtype('<f4'),
    'BF16': np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_METADATA = '__metadata__'
_ALIGNMENT = 8  # of the first element, in bytes
_MAX_HEADER = 100_000_000  # bytes, as in the format's own library


class Header(NamedTuple):
  """What a file says about its content."""

  types: dict[str, str]  # by name of the array: a key of _TYPES
  shapes: dict[str, tuple[int, ...]]
  offsets: dict[str, tuple[int, int]]  # of the first byte and behind the last one, in the file
  metadata: dict[str, str]


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
  """Writes arrays of float32 or bfloat16, atomically; a scalar has the shape ()."""
  files.write_atomic(path, to_bytes(arrays, metadata))


def to_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
  """The content of a file; equal arrays and metadata give equal bytes."""
  header: dict[str, Any] = {_METADATA: dict(metadata)}
  parts, end = [], 0
  for name in sorted(arrays):
    array = np.asarray(arrays[name])
    start, end = end, end + array.nbytes
    header[name] = {
        'dtype': _NAMES[array.dtype],
        'shape': list(array.shape),
        'data_offsets': [start, end],
    }
    parts.append(array.tobytes())
  text = json.dumps(header, sort_keys=True).encode()
  text += b' ' * (-len(text) % _ALIGNMENT)
  return b''.join([len(text).to_bytes(8, 'little'), text, *parts])


def read_header(path: Path) -> Header:
  """The header of a file; raises BadInput if the file cannot be read or is damaged."""
  try:
    with path.open('rb') as file:
      length = int.from_bytes(file.read(8), 'little')
      text = file.read(min(length, _MAX_HEADER))
    size = path.stat().st_size
  except OSError as error:
    raise BadInput(f'{path}: cannot be read: {error.strerror}') from error
  try:
    return _header(json.loads(text), 8 + length, size)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise BadInput(f'{path}: is not a file of safetensors, or is damaged: {error}') from error


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
  """The arrays of a file, which are read-only, and its metadata; BadInput if it is damaged."""
  header = read_header(path)
  try:
    content = path.read_bytes()
  except OSError as error:
    raise BadInput(f'{path}: cannot be read: {error.strerror}') from error
  arrays = {}
  for name, (start, end) in header.offsets.items():
    flat = np.frombuffer(content[start:end], _TYPES[header.types[name]])
    arrays[name] = flat.reshape(header.shapes[name])
  return arrays, header.metadata


def digest(path: Path) -> str:
  """The SHA-256 of a file; raises BadInput if the file cannot be read."""
  try:
    return files.sha256(path)
  except OSError as error:
    raise BadInput(f'{path}: cannot be read: {error.strerror}') from error


def _header(found: dict[str, Any], start: int, size: int) -> Header:
  """The checked header; raises ValueError, KeyError, TypeError or AttributeError."""
  metadata = found.pop(_METADATA, {})
  types, shapes, offsets = {}, {}, {}
  expected = start
  for name in sorted(found, key=lambda name: found[name]['data_offsets']):
    entry = found[name]
    types[name], shapes[name] = entry['dtype'], tuple(entry['shape'])
    if types[name] not in _TYPES:
      raise ValueError(f'{name!r} is of type {types[name]}, must be {" or ".join(_TYPES)}')
    if not all(type(length) is int and length >= 0 for length in shapes[name]):
      raise ValueError(f'the shape of {name!r} is wrong')
    first, last = (start + offset for offset in entry['data_offsets'])
    if first != expected or last - first != math.prod(shapes[name]) * _TYPES[types[name]].itemsize:
      raise ValueError(f'the position of {name!r} is wrong')
    offsets[name], expected = (first, last), last
  if expected != size:
    raise ValueError(f'it has {size} bytes, must have {expected}')
  if not all(isinstance(text, str) for text in metadata.values()):
    raise ValueError(f'{_METADATA} must have texts')
  return Header(types, shapes, offsets, metadata)
