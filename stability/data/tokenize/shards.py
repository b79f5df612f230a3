"""The token files of a side of the text: appended to without loss, and read as one array.

A side is NAME.bin, and where that is full NAME-00001.bin, NAME-00002.bin and so on, each full but
the last. meta.json and what is below call a file by its stem.
"""

import bisect
import hashlib
import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from stability.errors import BadInput

Json = dict[str, Any]

_READ = 2**24  # bytes at a time


def stem(side: str, number: int) -> str:
  """Of the file of that number."""
  return f'{side}-{number:05}' if number else side


def stems(side: str, known: Collection[str]) -> list[str]:
  """The files of a side, in order, where these are known of both; at least one."""
  count = sum(name == side or name.startswith(f'{side}-') for name in known)
  return [stem(side, number) for number in range(max(1, count))]


class Shards:
  """Several arrays in a row that are read as one; what is not asked for stays on the disk."""

  def __init__(self, parts: Sequence[np.ndarray]):
    """parts: [tokens] each, of the same type."""
    self._parts = list(parts)
    self._ends = list(itertools.accumulate(map(len, self._parts)))
    self.dtype = self._parts[0].dtype
    self.nbytes = len(self) * self.dtype.itemsize

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
    """A stretch, or the tokens at offsets of any shape."""
    if isinstance(index, slice):
      return self._stretch(*index.indices(len(self)))
    index = np.asarray(index)
    found = np.empty(index.shape, self.dtype)
    places = np.searchsorted(self._ends, index, side='right')
    for place in np.unique(places):
      here = places == place
      part = self._parts[place]
      found[here] = part[index[here] - (self._ends[place] - len(part))]
    return found

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """Everything, in memory."""
    return np.concatenate(self._parts, dtype=dtype)

  def _stretch(self, start: int, stop: int, step: int) -> np.ndarray:
    if step != 1:
      raise IndexError(f'a stretch of tokens has no step, here {step}')
    pieces = [self._parts[0][:0]]
    place = bisect.bisect_right(self._ends, start)
    while start < stop:
      part, end = self._parts[place], min(stop, self._ends[place])
      begin = self._ends[place] - len(part)
      pieces.append(part[start - begin : end - begin])
      start, place = end, place + 1
    return np.concatenate(pieces)


class Writer:
  """Appends tokens to the files of a side.

  commit gives what must be written down for a Writer made with it to go on from there, whatever was
  appended since.
  """

  def __init__(
      self, folder: Path, side: str, dtype: np.dtype, shard_tokens: int, committed: Json | None
  ):
    """Cuts the files back to what was committed; raises BadInput where that is not there.

    Args:
      folder: of the files.
      side: their name.
      dtype: of tokens on the disk.
      shard_tokens: in a full file.
      committed: what commit returned; None to begin.
    """
    self._folder = folder
    self._side = side
    self._dtype = dtype
    self._shard_tokens = shard_tokens
    committed = committed or {'tokens': 0, 'sha256': {}}
    self.tokens = committed['tokens']
    self._full = {name: digest for name, digest in committed['sha256'].items()}
    self._hash = hashlib.sha256()
    self._stream: BinaryIO | None = None
    inside = self.tokens % shard_tokens
    if inside:
      self._reopen(inside * dtype.itemsize, self._full.pop(stem(side, self._number)))
    self._remove_later_files()

  @property
  def _number(self) -> int:
    """Of the file that is being written."""
    return self.tokens // self._shard_tokens

  def append(self, tokens: np.ndarray) -> None:
    """Adds tokens [tokens]; they may be lost until they are committed."""
    tokens = tokens.astype(self._dtype, copy=False)
    while len(tokens):
      if self._stream is None:
        self._stream = self._file(self._number).open('wb')
      room = self._shard_tokens - self.tokens % self._shard_tokens
      piece, tokens = tokens[:room], tokens[room:]
      self._stream.write(piece)
      self._hash.update(piece)
      if len(piece) == room:
        self._full[stem(self._side, self._number)] = self._hash.hexdigest()
        self._sync()
        self.close()
        self._hash = hashlib.sha256()
      self.tokens += len(piece)

  def commit(self) -> Json:
    """Brings everything to the disk; what the next Writer needs, SHA-256 of the files in it."""
    digests = dict(self._full)
    if self._stream is not None:
      self._sync()
      digests[stem(self._side, self._number)] = self._hash.hexdigest()
    return {'tokens': self.tokens, 'sha256': digests}

  def close(self) -> None:
    """Lets go of the file; what was not committed may be in it or not."""
    if self._stream is not None:
      stream, self._stream = self._stream, None
      stream.close()

  def _sync(self) -> None:
    self._stream.flush()
    os.fsync(self._stream.fileno())

  def _file(self, number: int) -> Path:
    return self._folder / f'{stem(self._side, number)}.bin'

  def _reopen(self, length: int, digest: str) -> None:
    """The last file again, cut to `length` bytes, which must be those that were committed."""
    file = self._file(self._number)
    try:
      self._stream = file.open('r+b')
    except FileNotFoundError:
      raise BadInput(f'{file}: is gone since it was written; name a new folder') from None
    left = length
    while left and (block := self._stream.read(min(left, _READ))):
      self._hash.update(block)
      left -= len(block)
    if left or self._hash.hexdigest() != digest:
      raise BadInput(f'{file}: was changed since it was written; name a new folder')
    self._stream.truncate(length)
    self._stream.seek(length)

  def _remove_later_files(self) -> None:
    number = self._number + (self._stream is not None)
    while (file := self._file(number)).exists():
      file.unlink()
      number += 1
