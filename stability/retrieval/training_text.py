"""The documents of a text that the runs of a sweep were trained on, and may have memorised."""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stability.data import tokens as tokens_lib
from stability.data.sources import Document
from stability.data.tokenize import readers
from stability.data.tokenize.shards import ShardedArray
from stability.data.tokenize.stored import StoredTokenizer

# At the end of the name of a piece of a document, see splits.py, or of a passage, see labelled.py.
_PLACES = re.compile(r'(\[\d+:\d+\])+$')
_READ = 2**24  # tokens read at a time


def trained_on(
    documents: Sequence[Document], folder: Path, tokenizer: StoredTokenizer
) -> list[str]:
  """The names of the documents whose content is that of a training document.

  Where long documents were cut, a document with a piece that is training text counts, too.

  Args:
    documents: those to look for.
    folder: the token folder. If it does not list its training documents, as those that
      launch.tokenize makes do not, its end tokens tell them apart.
    tokenizer: that of the folder.
  """
  opened = tokens_lib.open_tokens(folder)
  listed = opened.meta['documents'].get('train')
  if not isinstance(listed, list):
    listed = (('', length) for length in _lengths(opened.train, tokenizer.end_of_document))
  dtype = np.dtype(opened.meta['dtype']).newbyteorder('<')
  encoded = [
      [np.asarray(tokenizer.encode(part), dtype) for part in _packed_as(text)]
      for _, text in documents
  ]
  lengths = {len(tokens) for parts in encoded for tokens in parts}
  longest = max(len(text) for _, text in documents)
  whole, pieces, start = set(), [], 0
  for name, length in listed:
    own = slice(start, start + length)
    if length in lengths:
      whole.add(_digest(np.asarray(opened.train[own], dtype)))
    if (place := _place(name)) and place.stop <= longest:
      pieces.append((place, tokenizer.decode(np.asarray(opened.train[own]))))
    start += length + 1
  return [
      name
      for (name, text), parts in zip(documents, encoded, strict=True)
      if any(_digest(tokens) in whole for tokens in parts)
      or any(text[part] == piece for part, piece in pieces)
  ]


def _place(name: str) -> slice | None:
  """The bytes of a document that a piece of it, or a passage of a piece, has; None: all of them."""
  if not (found := _PLACES.search(name)):
    return None
  starts, ends = zip(*(map(int, place.split(':')) for place in found[0][1:-1].split('][')))
  return slice(sum(starts), sum(starts[:-1]) + ends[-1])


def _lengths(tokens: np.memmap | ShardedArray, end: int) -> Iterator[int]:
  """The length of each document of a text, without the end token that follows it."""
  start = 0
  for first in range(0, len(tokens), _READ):
    for position in (first + np.flatnonzero(tokens[first : first + _READ] == end)).tolist():
      yield position - start
      start = position + 1


def _packed_as(text: bytes) -> list[bytes]:
  """The text and, if it is long, the pieces that launch.tokenize packs it in."""
  return list(dict.fromkeys([text, *readers.text_pieces(io.BytesIO(text))]))


def _digest(tokens: np.ndarray) -> bytes:
  return hashlib.sha256(tokens).digest()
