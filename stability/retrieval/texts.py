"""The texts of datastores, cut into windows as a model reads them.

Shape suffixes: N windows, T positions.
"""

import bisect
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stability.data import batches, sources, splits
from stability.data import tokens as tokens_lib
from stability.data.tokenize.stored import StoredTokenizer
from stability.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows of a text, each with the token after it."""

  name: str  # of the text: train, validation or a path
  tokens_NxT1: np.ndarray
  starts_N: np.ndarray  # int64, ascending; position of each window in the text
  documents: list[tuple[str, int]]  # name and first position of each document

  def digest(self) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the tokens."""
    return hashlib.sha256(np.ascontiguousarray(self.tokens_NxT1)).hexdigest()[:16]

  def stretches(self) -> list[np.ndarray]:
    """The tokens of each stretch of windows that follow one another in the text."""
    length = self.tokens_NxT1.shape[1] - 1
    breaks = np.flatnonzero(np.diff(self.starts_N) != length) + 1
    return [
        np.concatenate([part[:, :length].reshape(-1), part[-1, length:]])
        for part in np.split(self.tokens_NxT1, breaks)
    ]

  def source(self, position: int) -> str:
    """Where the text at a position comes from: the document and the offset in it, in tokens."""
    index = bisect.bisect_right([first for _, first in self.documents], position) - 1
    document, first = self.documents[index]
    return f'{document}, token {position - first:,}'

  def select(self, chosen: np.ndarray) -> 'Windows':
    """Some of the windows, by index or mask."""
    return dataclasses.replace(
        self, tokens_NxT1=self.tokens_NxT1[chosen], starts_N=self.starts_N[chosen]
    )


def of_split(
    folder: Path, split: str, sequence_length: int, count: int | None, name: str | None = None
) -> Windows:
  """Windows of a split of a token folder, spread evenly over it.

  Args:
    folder: the token folder.
    split: train or validation.
    sequence_length: T.
    count: the most windows; None: no limit.
    name: of the text; None: that of the split.
  """
  opened = tokens_lib.open_tokens(folder)
  documents, first = [], 0
  listed = opened.meta['documents'].get(split)
  for document, length in listed if isinstance(listed, list) else [(f'the {split} text', 0)]:
    documents.append((document, first))
    first += length + 1
  return _windows(name or split, getattr(opened, split), documents, sequence_length, count)


def of_path(
    path: Path, tokenizer: StoredTokenizer, sequence_length: int, count: int | None
) -> Windows:
  """Windows of a file or folder of text; BadInput if it cannot be read or is too short."""
  return of_documents(str(path), documents(path), tokenizer, sequence_length, count)


def of_path_in_two(
    path: Path, tokenizer: StoredTokenizer, sequence_length: int, count: int | None
) -> tuple[Windows, Windows]:
  """Windows of the training and of the validation documents of a path, split as a sweep's text."""
  with _naming(path):
    split = splits.train_validation_split(documents(path))
  return (
      of_documents(str(path), split.train, tokenizer, sequence_length, count),
      of_documents(f'{path} (held out)', split.validation, tokenizer, sequence_length, count),
  )


def documents(path: Path, name: str | None = None) -> list[sources.Document]:
  """The documents of a file or folder of text; BadInput if it cannot be read.

  `name` is what errors call the path; None: the path itself.
  """
  with _naming(path, name):
    return sources.read_documents(str(path))[0]


@contextlib.contextmanager
def _naming(path: Path, name: str | None = None) -> Iterator[None]:
  """Renames the option in a BadInput of stability/data, which knows only config.data.path."""
  try:
    yield
  except BadInput as error:
    message = str(error).removeprefix(f'config.data.path={str(path)!r}: ')
    raise BadInput(f'{name or path}: {message.removeprefix("config.data.path: ")}') from None


def of_documents(
    name: str,
    documents: list[sources.Document],
    tokenizer: StoredTokenizer,
    sequence_length: int,
    count: int | None,
) -> Windows:
  """Windows of documents; BadInput if they are too short for one."""
  tokens, lengths = tokenizer.pack([text for _, text in documents])
  if len(tokens) <= sequence_length:
    raise BadInput(
        f'{name}: holds {len(tokens)} tokens; must hold at least {sequence_length + 1}, a window'
    )
  firsts = np.cumsum([0, *(length + 1 for length in lengths[:-1])]).tolist()
  listed = [(document, first) for (document, _), first in zip(documents, firsts, strict=True)]
  return _windows(name, tokens, listed, sequence_length, count)


def _windows(
    name: str,
    tokens: Any,
    documents: list[tuple[str, int]],
    sequence_length: int,
    count: int | None,
) -> Windows:
  available = (len(tokens) - 1) // sequence_length
  count = available if count is None else max(1, min(count, available))
  starts = batches.validation_starts(count, sequence_length, len(tokens))
  windows = np.empty((count, sequence_length + 1), tokens.dtype)
  for i, start in enumerate(starts.tolist()):
    windows[i] = tokens[start : start + sequence_length + 1]
  return Windows(name, windows, starts, documents)
