"""Sharded token files: written by appending, with resume, and read as one array.

The shards of NAME (such as train) are NAME.bin, NAME-00001.bin, NAME-00002.bin and so on; all but
the last are full. meta.json refers to a shard by its file name without .bin.
"""

import bisect
import hashlib
import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stability.errors import BadInput, writing

Json = dict[str, Any]

_READ_BYTES = 2**24  # bytes read at a time


def shard_name(name: str, number: int) -> str:
  """The name of a shard, without .bin."""
  return f'{name}-{number:05}' if number else name


def shard_names(name: str, known: Collection[str]) -> list[str]:
  """The shards of `name` among the known names, in order; at least the first."""
  count = sum(each == name or each.startswith(f'{name}-') for each in known)
  return [shard_name(name, number) for number in range(max(1, count))]


class ShardedArray:
  """A read-only concatenation of arrays, which may be memory-mapped."""

  def __init__(self, parts: Sequence[np.ndarray]):
    """Concatenates `parts`, arrays [tokens] of one dtype."""
    self._parts = list(parts)
    self._ends = list(itertools.accumulate(map(len, self._parts)))
    self.dtype = self._parts[0].dtype
    self.nbytes = len(self) * self.dtype.itemsize

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
    """A slice without a step, or the tokens at an array of offsets."""
    if isinstance(index, slice):
      return self._slice(*index.indices(len(self)))
    index = np.asarray(index)
    result = np.empty(index.shape, self.dtype)
    part_of_index = np.searchsorted(self._ends, index, side='right')
    for number in np.unique(part_of_index):
      mask = part_of_index == number
      part = self._parts[number]
      result[mask] = part[index[mask] - (self._ends[number] - len(part))]
    return result

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """The whole array in memory."""
    return np.concatenate(self._parts, dtype=dtype)

  def _slice(self, start: int, stop: int, step: int) -> np.ndarray:
    if step != 1:
      raise IndexError(f'slices of sharded tokens must have step 1, not {step}')
    pieces = [self._parts[0][:0]]
    number = bisect.bisect_right(self._ends, start)
    while start < stop:
      part, end = self._parts[number], min(stop, self._ends[number])
      offset = self._ends[number] - len(part)
      pieces.append(part[start - offset : end - offset])
      start, number = end, number + 1
    return np.concatenate(pieces)


class ShardWriter:
  """Appends tokens to shards.

  A new ShardWriter continues from the state that `commit` returned. Tokens appended after that
  commit are discarded.
  """

  def __init__(
      self, folder: Path, name: str, dtype: np.dtype, shard_tokens: int, committed: Json | None
  ):
    """Truncates the shards to the committed state; raises BadInput if they do not match it.

    Args:
      folder: the folder of the shards.
      name: the name of the shards.
      dtype: the type of the tokens on disk.
      shard_tokens: number of tokens in a full shard.
      committed: the state that `commit` returned; None: start from scratch.
    """
    self._folder = folder
    self._name = name
    self._dtype = dtype
    self._shard_tokens = shard_tokens
    committed = committed or {'tokens': 0, 'sha256': {}}
    self.tokens = committed['tokens']
    self._full = dict(committed['sha256'])  # full shard -> SHA-256
    self._hash = hashlib.sha256()
    self._stream: BinaryIO | None = None
    remainder = self.tokens % shard_tokens
    if remainder:
      last = self._full.pop(shard_name(name, self._number))
    for full in self._full:
      self._check(folder / f'{full}.bin', shard_tokens * dtype.itemsize)
    if remainder:
      self._reopen(remainder * dtype.itemsize, last)
    self._remove_later_shards()

  @property
  def _number(self) -> int:
    """The number of the shard that is being written."""
    return self.tokens // self._shard_tokens

  def append(self, tokens: np.ndarray) -> None:
    """Appends tokens [tokens]; until the next commit they may be lost."""
    tokens = tokens.astype(self._dtype, copy=False)
    while len(tokens):
      path = self._path(self._number)
      room = self._shard_tokens - self.tokens % self._shard_tokens
      piece, tokens = tokens[:room], tokens[room:]
      with writing(path):
        if self._stream is None:
          self._stream = path.open('wb')
        self._stream.write(piece)
      self._hash.update(piece)
      if len(piece) == room:
        self._full[shard_name(self._name, self._number)] = self._hash.hexdigest()
        self._sync()
        self.close()
        self._hash = hashlib.sha256()
      self.tokens += len(piece)

  def commit(self) -> Json:
    """Syncs all tokens to disk and returns the state: their number and each shard's SHA-256."""
    digests = dict(self._full)
    if self._stream is not None:
      self._sync()
      digests[shard_name(self._name, self._number)] = self._hash.hexdigest()
    return {'tokens': self.tokens, 'sha256': digests}

  def close(self) -> None:
    """Closes the current shard without committing it."""
    if self._stream is not None:
      stream, self._stream = self._stream, None
      with writing(stream.name):
        stream.close()

  def _sync(self) -> None:
    with writing(self._stream.name):
      self._stream.flush()
      os.fsync(self._stream.fileno())

  def _path(self, number: int) -> Path:
    return self._folder / f'{shard_name(self._name, number)}.bin'

  def _check(self, path: Path, length: int) -> None:
    """Raises BadInput unless a full shard has `length` bytes."""
    if not path.exists():
      raise BadInput(f'{path}: removed since it was written; choose a new folder')
    if path.stat().st_size != length:
      raise BadInput(f'{path}: changed since it was written; choose a new folder')

  def _reopen(self, length: int, digest: str) -> None:
    """Opens the last shard and truncates it to `length` bytes, whose digest must match."""
    path = self._path(self._number)
    try:
      self._stream = path.open('r+b')
    except FileNotFoundError:
      raise BadInput(f'{path}: removed since it was written; choose a new folder') from None
    left = length
    while left and (block := self._stream.read(min(left, _READ_BYTES))):
      self._hash.update(block)
      left -= len(block)
    if left or self._hash.hexdigest() != digest:
      raise BadInput(f'{path}: changed since it was written; choose a new folder')
    with writing(path):
      self._stream.truncate(length)
    self._stream.seek(length)

  def _remove_later_shards(self) -> None:
    number = self._number + (self._stream is not None)
    while (path := self._path(number)).exists():
      path.unlink()
      number += 1
