"""Retrieval in context (arXiv 2302.00083): passages found by BM25 stand before the text.

A window of T tokens is cut into quarters. The words of the first three are the query; the last one
is predicted. With k passages, each a quarter long, the model reads them, then the rest of the
window as far as T tokens reach: so passages displace the oldest part of the window.

Shape suffixes: N windows, T positions, P positions of a passage.
"""

import logging
import re
from typing import NamedTuple

import bm25s
import numpy as np

from stability.data.tokenize.stored import StoredTokenizer
from stability.retrieval.model import Model
from stability.retrieval.texts import Windows

NUMBERS = (1, 2)  # of passages that are tried
K1, B = 1.5, 0.75  # constants of BM25, as bm25s has them

logging.getLogger('bm25s').setLevel(logging.WARNING)  # it logs what it does

_WORD = re.compile(rb'\w+')


class Found(NamedTuple):
  """A passage of a datastore."""

  score: float
  tokens: np.ndarray
  source: str


def words(text: bytes) -> list[str]:
  """The words of a text, in lower case; bytes above 127 separate words."""
  return [word.decode() for word in _WORD.findall(text.lower())]


class Passages:
  """The quarters of the windows of texts, with an index of their words."""

  def __init__(self, texts: list[Windows], tokenizer: StoredTokenizer):
    length = texts[0].tokens_NxT1.shape[1] - 1
    self._texts, self._tokenizer, self._length = texts, tokenizer, length // 4
    self._passages = [
        text.tokens_NxT1[:, : 4 * self._length].reshape(-1, self._length) for text in texts
    ]
    found = [words(tokenizer.decode(tokens)) for part in self._passages for tokens in part]
    self._index = bm25s.BM25(k1=K1, b=B, method='lucene')
    self._has_words = any(found)
    if self._has_words:
      self._index.index(found, show_progress=False)

  def search(self, query: bytes, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices and scores of at most k passages with a word of the query, the best first."""
    known = [word for word in words(query) if word in self._vocabulary]
    if not known:
      return np.empty(0, np.int64), np.empty(0, np.float32)
    scores = self._index.get_scores(known)
    k = min(k, len(scores))
    best = np.argpartition(-scores, k - 1)[:k]
    best = best[np.lexsort((best, -scores[best]))]
    return best[scores[best] > 0], scores[best][scores[best] > 0]

  def found(self, query: bytes, k: int) -> list[Found]:
    """At most k passages with a word of the query, the best first."""
    return [
        Found(float(score), *self._passage(int(index)))
        for index, score in zip(*self.search(query, k), strict=True)
    ]

  def losses(self, model: Model, windows_NxT1: np.ndarray, k: int) -> np.ndarray:
    """The loss of the last quarter of each window with k passages before it: [N, P], in nats.

    Where fewer passages have a word of the query, fewer are used; k = 0 is the model alone.
    """
    P = self._length
    inputs_NxT1 = np.array(windows_NxT1, np.int32)
    for row in inputs_NxT1 if k else ():
      chosen, _ = self.search(self._tokenizer.decode(row[:-P]), k)
      for place, index in enumerate(reversed(chosen.tolist())):  # the best one is the last
        row[place * P : (place + 1) * P] = self._passage(index)[0]
    return -model.log_p(inputs_NxT1)[:, -P:]

  @property
  def _vocabulary(self) -> dict[str, int]:
    return self._index.vocab_dict if self._has_words else {}

  def _passage(self, index: int) -> tuple[np.ndarray, str]:
    for text, passages in zip(self._texts, self._passages, strict=True):
      if index < len(passages):
        window, quarter = divmod(index, 4)
        position = int(text.starts_N[window]) + quarter * self._length
        return passages[index], f'{text.name}: {text.source(position)}'
      index -= len(passages)
    raise IndexError(index)
