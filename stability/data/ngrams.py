"""Losses of unigram and bigram models: baselines for the loss of a trained model."""

import math
from collections.abc import Iterator

import numpy as np

_CHUNK = 2**22  # tokens processed at a time
_MAX_TOKENS = 50_000_000  # per split; longer text is subsampled


def bigram_loss(train: np.ndarray, validation: np.ndarray, vocabulary_size: int) -> float:
  """Validation loss, in nats per token, of the bigram model counted on train.

  p(b|a) = (c(a,b) + p(b)) / (c(a) + 1), where p(b) is the add-one unigram: one pseudo-count per
  context, distributed as the unigram. Each split must have at least two tokens.
  """
  pairs, counts = _count_pairs(train, vocabulary_size)
  firsts = np.bincount(pairs // vocabulary_size, counts, vocabulary_size)
  seconds = np.bincount(pairs % vocabulary_size, counts, vocabulary_size)
  queries, weights = _count_pairs(validation, vocabulary_size)
  at = np.minimum(np.searchsorted(pairs, queries), len(pairs) - 1)
  pair_counts = np.where(pairs[at] == queries, counts[at], 0)
  a, b = np.divmod(queries, vocabulary_size)
  log_p = np.log((pair_counts + _add_one(seconds)[b]) / (firsts[a] + 1))
  return float(-(weights @ log_p) / weights.sum())


def unigram_loss(train: np.ndarray, validation: np.ndarray, vocabulary_size: int) -> float:
  """Validation loss, in nats per token, of the add-one unigram model counted on train."""
  weights = _count_targets(validation, vocabulary_size)
  log_p = np.log(_add_one(_count_targets(train, vocabulary_size)))
  return float(-(weights @ log_p) / weights.sum())


def counted_tokens(train: np.ndarray) -> int:
  """Number of targets that both models are counted on: all but the first, at most 50 million."""
  return sum(len(chunk) - 1 for chunk in _chunks(train))


def _chunks(tokens: np.ndarray) -> Iterator[np.ndarray]:
  """Chunks that overlap by one token, so that each pair of tokens is in exactly one of them.

  A text of more than 50 million tokens is represented by evenly spaced chunks.
  """
  count = math.ceil((len(tokens) - 1) / _CHUNK)
  used = min(count, _MAX_TOKENS // _CHUNK)
  for i in range(used):
    start = i * count // used * _CHUNK
    yield tokens[start : start + _CHUNK + 1].astype(np.int64)


def _count_pairs(tokens: np.ndarray, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Sorted distinct pairs (a, b), encoded as a * vocabulary_size + b, and their counts."""
  pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
  for chunk in _chunks(tokens):
    new, new_counts = np.unique(chunk[:-1] * vocabulary_size + chunk[1:], return_counts=True)
    pairs, index = np.unique(np.concatenate([pairs, new]), return_inverse=True)
    counts = np.bincount(index, np.concatenate([counts, new_counts])).astype(np.int64)
  return pairs, counts


def _count_targets(tokens: np.ndarray, vocabulary_size: int) -> np.ndarray:
  """How often each token is a target, that is, follows another: int64 [vocabulary_size]."""
  return sum(np.bincount(chunk[1:], minlength=vocabulary_size) for chunk in _chunks(tokens))


def _add_one(counts: np.ndarray) -> np.ndarray:
  """Add-one smoothed probabilities."""
  return (counts + 1) / (counts.sum() + len(counts))
