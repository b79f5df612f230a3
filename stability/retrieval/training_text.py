"""The documents of a text that the runs of a sweep were trained on, and may have memorised."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stability.data import tokens as tokens_lib
from stability.data.sources import Document
from stability.data.tokenize.stored import StoredTokenizer

_PIECE = re.compile(r'\[(\d+):(\d+)\]$')  # in the name of a piece of a cut document, see splits.py


def trained_on(
    documents: Sequence[Document], folder: Path, tokenizer: StoredTokenizer
) -> list[str]:
  """The names of the documents whose content is that of a training document.

  So is a document of which a piece is training text, where long ones were cut.

  Args:
    documents: those to look for.
    folder: the token folder. If it does not list its training documents, none are found.
    tokenizer: that of the folder.
  """
  opened = tokens_lib.open_tokens(folder)
  listed = opened.meta['documents'].get('train')
  if not isinstance(listed, list):
    return []
  dtype = np.dtype(opened.meta['dtype']).newbyteorder('<')
  encoded = [np.asarray(tokenizer.encode(text), dtype) for _, text in documents]
  lengths = {len(tokens) for tokens in encoded}
  longest = max(len(text) for _, text in documents)
  whole, pieces, start = set(), [], 0
  for name, length in listed:
    tokens = opened.train[start : start + length]
    if length in lengths:
      whole.add(_digest(np.asarray(tokens, dtype)))
    if (piece := _PIECE.search(name)) and int(piece[2]) <= longest:
      pieces.append((slice(int(piece[1]), int(piece[2])), tokenizer.decode(np.asarray(tokens))))
    start += length + 1
  return [
      name
      for (name, text), tokens in zip(documents, encoded, strict=True)
      if _digest(tokens) in whole or any(text[part] == piece for part, piece in pieces)
  ]


def _digest(tokens: np.ndarray) -> bytes:
  return hashlib.sha256(tokens).digest()
