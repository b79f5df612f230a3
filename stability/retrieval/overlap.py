"""Windows whose text occurs in a datastore, and passages whose text occurs in validation text.

The same passage in training and validation text, a licence or copied code, makes retrieval look
better than it is on new text. A window that shares LENGTH bytes with a datastore is left out. A
passage to train on may be a whole document, and so is left out if it shares LONG bytes with the
validation text: half of all passages of Python source share LENGTH, by its idioms.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

LENGTH, LONG = 32, 128  # bytes; powers of two
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing
_BLOCK = 2**22  # bytes that are looked up at once


def overlapping(windows: list[bytes], texts: Iterable[bytes]) -> np.ndarray:
  """Which windows have a run of LENGTH bytes that one of the texts has, too: bool [windows]."""
  pieces: dict[bytes, set[int]] = {}
  for index, window in enumerate(windows):
    for start in range(len(window) - LENGTH + 1):
      pieces.setdefault(window[start : start + LENGTH], set()).add(index)
  found = np.zeros(len(windows), bool)
  hashes = np.unique(_hashes(b''.join(pieces), LENGTH)[::LENGTH])
  for joined, ends in _blocks(texts):
    for start in _hits(joined, ends, hashes, LENGTH):
      found[list(pieces.get(joined[start : start + LENGTH], ()))] = True
  return found


def occurring_in(passages: Sequence[bytes], text: bytes) -> np.ndarray:
  """Which of many passages have a run of LONG bytes that a text has, too: bool [passages].

  Of passages that are shorter than LONG, LENGTH bytes count.
  """
  found = np.zeros(len(passages), bool)
  is_long = np.array([len(passage) >= LONG for passage in passages], bool)
  for length, chosen in ((LENGTH, ~is_long), (LONG, is_long)):
    found[chosen] = _sharing((passages[i] for i in np.flatnonzero(chosen)), text, length)
  return found


def _sharing(passages: Iterable[bytes], text: bytes, length: int) -> list[bool]:
  """Which of many passages have a run of `length` bytes that a text has, too."""
  found: list[bool] = []
  hashes = np.unique(_hashes(text, length))
  for joined, ends in _blocks(passages):
    first = len(found)
    found += [False] * len(ends)
    starts = _hits(joined, ends, hashes, length)
    for start, owner in zip(starts, np.searchsorted(ends, starts, 'right').tolist()):
      found[first + owner] = found[first + owner] or joined[start : start + length] in text
  return found


def _hits(joined: bytes, ends: np.ndarray, hashes: np.ndarray, length: int) -> list[int]:
  """Where in a block a piece within a text has one of the hashes; the piece may be another."""
  hits = np.isin(_hashes(joined, length), hashes)
  for end in ends[:-1].tolist():
    hits[max(0, end - length + 1) : end] = False  # begins in one text and ends in the next
  return np.flatnonzero(hits).tolist()


def _blocks(texts: Iterable[bytes]) -> Iterator[tuple[bytes, np.ndarray]]:
  """The texts, joined until they have _BLOCK bytes, and the end of each: int64 [texts]."""
  block: list[bytes] = []
  size = 0
  for text in texts:
    block.append(text)
    size += len(text)
    if size >= _BLOCK:
      yield b''.join(block), np.cumsum(list(map(len, block)), dtype=np.int64)
      block, size = [], 0
  yield b''.join(block), np.cumsum(list(map(len, block)), dtype=np.int64)


def _hashes(text: bytes, length: int) -> np.ndarray:
  """A hash of the `length` bytes at each position: uint64 [len(text) - length + 1], or empty."""
  found = np.frombuffer(text, np.uint8).astype(np.uint64)
  done, factor = 1, _FACTOR
  while done < length:  # of two neighbouring pieces of half the length
    found = found[:-done] * np.uint64(factor) + found[done:]
    done, factor = 2 * done, factor * factor % 2**64
  return found
