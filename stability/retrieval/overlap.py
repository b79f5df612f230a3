"""Windows whose text stands in a datastore.

The same passage in training and validation text, a licence or copied code, makes retrieval look
better than it is on new text. A window that shares LENGTH bytes with a datastore is left out.
"""

from collections.abc import Iterable, Iterator

import numpy as np

LENGTH = 32  # bytes; a power of two
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing
_BLOCK = 2**22  # bytes that are looked up at once


def overlapping(windows: list[bytes], texts: Iterable[bytes]) -> np.ndarray:
  """Which windows have a run of LENGTH bytes that one of the texts has, too: bool [windows]."""
  pieces: dict[bytes, set[int]] = {}
  for index, window in enumerate(windows):
    for start in range(len(window) - LENGTH + 1):
      pieces.setdefault(window[start : start + LENGTH], set()).add(index)
  found = np.zeros(len(windows), bool)
  hashes = np.unique(_hashes(b''.join(pieces))[::LENGTH])
  for joined, lengths in _blocks(texts):
    # The hash only selects: the pieces themselves are compared.
    hits = np.isin(_hashes(joined), hashes)
    for end in np.cumsum(lengths)[:-1].tolist():
      hits[max(0, end - LENGTH + 1) : end] = False  # begins in one text and ends in the next
    for start in np.flatnonzero(hits).tolist():
      found[list(pieces.get(joined[start : start + LENGTH], ()))] = True
  return found


def _blocks(texts: Iterable[bytes]) -> Iterator[tuple[bytes, list[int]]]:
  """The texts, joined until they have _BLOCK bytes, and the length of each."""
  block: list[bytes] = []
  size = 0
  for text in texts:
    block.append(text)
    size += len(text)
    if size >= _BLOCK:
      yield b''.join(block), list(map(len, block))
      block, size = [], 0
  yield b''.join(block), list(map(len, block))


def _hashes(text: bytes) -> np.ndarray:
  """A hash of the LENGTH bytes at each position: uint64 [len(text) - LENGTH + 1], or empty."""
  found = np.frombuffer(text, np.uint8).astype(np.uint64)
  length, factor = 1, _FACTOR
  while length < LENGTH:  # of two neighbouring pieces of half the length
    found = found[:-length] * np.uint64(factor) + found[length:]
    length, factor = 2 * length, factor * factor % 2**64
  return found
