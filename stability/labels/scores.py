"""What models think of passages: loss, disagreement, and what could be learned from them.

A passage is read as a document of its own: the first token comes after the end of another document.
Shape suffixes: M models, N windows, T positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stability.data.tokenize.stored import StoredTokenizer
from stability.labels.passages import Passage
from stability.retrieval.model import Model

_ELEMENTS = 2**24  # log-probabilities at once: of all models, windows, positions and tokens
_CHUNK = 2**20  # those of them whose entropies are computed at once, in float64


class Scores(NamedTuple):
  """Means over the tokens of each passage, in nats: float64 [passages] each."""

  loss: np.ndarray  # mean over the models
  disagreement: np.ndarray  # BALD
  reference_loss: np.ndarray  # NaN without a reference

  @property
  def gain(self) -> np.ndarray:
    """The reducible holdout loss (arXiv 2206.07137): what the models lack that the reference knows.

    The reference is a model that was trained on other text of the kind.
    """
    return self.loss - self.reference_loss


def bald(log_p_MxTxV: np.ndarray) -> np.ndarray:
  """The mutual information of a token and the choice of model (arXiv 1112.5745): [T], in nats.

  It is the entropy of the mean of the models' distributions minus the mean of their entropies: high
  where each of them is sure of something else, zero where they agree.
  """
  M, T, V = log_p_MxTxV.shape
  size = max(1, _CHUNK // (M * V))
  found = []
  for start in range(0, T, size):
    p = np.exp(log_p_MxTxV[:, start : start + size].astype(np.float64))
    found.append(_entropy(p.mean(axis=0)) - _entropy(p).mean(axis=0))
  return np.concatenate(found)


def _entropy(p: np.ndarray) -> np.ndarray:
  """Entropy over the last axis, in nats."""
  return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


def score(
    passages: Sequence[Passage],
    models: Sequence[Model],
    tokenizer: StoredTokenizer,
    reference: Model | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Scores:
  """Scores passages.

  Args:
    passages: the passages.
    models: those of several seeds.
    tokenizer: of all models.
    reference: a model that was trained on other text.
    on_progress: called with the share of the windows that are done.
  """
  tokens = [tokenizer.encode(passage.text.encode(passage.encoding)) for passage in passages]
  windows, owners, masks = _windows(tokens, models[0].sequence_length, tokenizer.end_of_document)
  sums = np.zeros((3, len(passages)))
  per_window = len(models) * models[0].sequence_length * models[0].vocabulary_size
  size = max(1, _ELEMENTS // per_window)
  for start in range(0, len(windows), size):
    part = windows[start : start + size]
    log_p_MxNxTxV = np.stack([model.log_p_all(part) for model in models])
    targets = part[None, :, 1:, None].astype(np.int64)
    _, N, T, V = log_p_MxNxTxV.shape
    found = [
        -np.take_along_axis(log_p_MxNxTxV, targets, -1)[..., 0].mean(axis=0, dtype=np.float64),
        bald(log_p_MxNxTxV.reshape(len(models), N * T, V)).reshape(N, T),
        np.full(part[:, 1:].shape, np.nan) if reference is None else -reference.log_p(part),
    ]
    mask = masks[start : start + size]
    for row, values in zip(sums, found, strict=True):
      np.add.at(row, owners[start : start + size], np.where(mask, values, 0).sum(axis=1))
    on_progress((start + len(part)) / len(windows))
  lengths = np.array([max(1, len(each)) for each in tokens])
  loss, disagreement, reference_loss = sums / lengths
  missing = np.full(len(passages), np.nan)
  return Scores(loss, disagreement, missing if reference is None else reference_loss)


def _windows(
    tokens: Sequence[np.ndarray], length: int, end: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Windows [N, T + 1] in which each token is a target once, their passages, and which targets."""
  windows, owners, masks = [], [], []
  for owner, own in enumerate(tokens):
    text = np.concatenate([[end], own]).astype(np.int64)
    for start in range(0, len(own), length):
      part = text[start : start + length + 1]
      windows.append(np.pad(part, (0, length + 1 - len(part))))
      owners.append(owner)
      masks.append(np.arange(length) < len(part) - 1)
  return np.stack(windows), np.array(owners), np.stack(masks)
