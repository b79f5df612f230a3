"""What models reach that know little: the losses of bigram and unigram models of a text."""

import math
from collections.abc import Iterator

import numpy as np

_CHUNK = 2**22  # tokens worked on at a time
_MOST_COUNTED = 50_000_000  # tokens of a side that the bigram model and its loss look at


def bigram_loss(train: np.ndarray, validation: np.ndarray, vocabulary_size: int) -> float:
  """Nats per token on validation of the bigram model counted from train; two tokens or more each.

  p(b|a) = (c(a,b) + p(b)) / (c(a) + 1): one imagined count, spread as the add-one unigram p(b).
  """
  pairs, counts = _count_pairs(train, vocabulary_size)
  firsts = np.bincount(pairs // vocabulary_size, counts, vocabulary_size)
  seconds = np.bincount(pairs % vocabulary_size, counts, vocabulary_size)
  wanted, times = _count_pairs(validation, vocabulary_size)
  at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
  seen = np.where(pairs[at] == wanted, counts[at], 0)
  a, b = np.divmod(wanted, vocabulary_size)
  log = np.log((seen + _add_one(seconds)[b]) / (firsts[a] + 1))
  return float(-(times @ log) / times.sum())


def unigram_loss(train: np.ndarray, validation: np.ndarray, vocabulary_size: int) -> float:
  """Nats per token on validation of the frequencies in train, with one count added to each."""
  times = _count_next(validation, vocabulary_size)
  log = np.log(_add_one(_count_next(train, vocabulary_size)))
  return float(-(times @ log) / times.sum())


def counted(train: np.ndarray) -> int:
  """Tokens that both models are counted from: all that have one before, up to 50 million."""
  return sum(len(chunk) - 1 for chunk in _chunks(train))


def _chunks(tokens: np.ndarray) -> Iterator[np.ndarray]:
  """Pieces that overlap by a token, so that every pair is in one; of long text an even part."""
  count = math.ceil((len(tokens) - 1) / _CHUNK)
  used = min(count, _MOST_COUNTED // _CHUNK)
  for i in range(used):
    start = i * count // used * _CHUNK
    yield tokens[start : start + _CHUNK + 1].astype(np.int64)


def _count_pairs(tokens: np.ndarray, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
  """The distinct a * vocabulary_size + b of neighbours a, b, in order, and how often each is."""
  pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
  for chunk in _chunks(tokens):
    new, times = np.unique(chunk[:-1] * vocabulary_size + chunk[1:], return_counts=True)
    pairs, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([counts, times])).astype(np.int64)
  return pairs, counts


def _count_next(tokens: np.ndarray, vocabulary_size: int) -> np.ndarray:
  """How often each token follows another, int64 [vocabulary_size]."""
  return sum(np.bincount(chunk[1:], minlength=vocabulary_size) for chunk in _chunks(tokens))


def _add_one(counts: np.ndarray) -> np.ndarray:
  """Probabilities from counts, with one more of each."""
  return (counts + 1) / (counts.sum() + len(counts))
