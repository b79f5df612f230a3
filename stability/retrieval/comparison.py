"""The loss of a model with and without a datastore.

The windows whose text stands in the datastore are left out. The first half of the others tunes the
numbers of a method, the second half is reported.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stability.data.tokenize.stored import StoredTokenizer
from stability.errors import BadInput
from stability.retrieval import knn, lexical, overlap, search
from stability.retrieval.datastore import Datastore
from stability.retrieval.model import Model
from stability.retrieval.texts import Windows

MIN_WINDOWS = 2  # one to tune, one to report
RECALL_AT = 16  # neighbours

Progress = Callable[[str, float], None]  # what is being done, and the share of it that is done


class Comparison(NamedTuple):
  """The losses of a method on the reported half, and the tuned numbers."""

  k: int
  temperature: float | None
  weight: float | None
  windows: int
  loss_without: float  # nats
  loss_with: float
  recall: float | None = None  # of RECALL_AT neighbours
  stable_rank: float | None = None  # of the keys


def without_overlap(
    windows: Windows, texts: Sequence[Windows], tokenizer: StoredTokenizer
) -> tuple[Windows, int]:
  """The windows that share no passage with the texts, and how many were left out.

  Raises:
    BadInput: fewer than MIN_WINDOWS are left.
  """
  decoded = [tokenizer.decode(np.asarray(tokens)) for tokens in windows.tokens_NxT1]
  stretches = (tokenizer.decode(part) for text in texts for part in text.stretches())
  shared = overlap.overlapping(decoded, stretches)
  if len(shared) - shared.sum() < MIN_WINDOWS:
    raise BadInput(
        f'{windows.name}: {shared.sum()} of {len(shared)} windows share {overlap.LENGTH} bytes with'
        f' the datastore; at least {MIN_WINDOWS} must share none'
    )
  return windows.select(~shared), int(shared.sum())


def compare_knn(
    model: Model, store: Datastore, windows: Windows, threads: int, on_progress: Progress
) -> Comparison:
  """The nearest-neighbour language model against the model alone."""
  tokens_NxT1 = windows.tokens_NxT1
  log_p, queries = [], []
  for done, outputs in model.batches(tokens_NxT1):
    log_p.append(outputs.log_p_NxT)
    queries.append(outputs.keys_NxTxD)
    on_progress('validation text', done.stop / len(tokens_NxT1))
  log_p_NxT = np.concatenate(log_p)
  queries_QxD = np.concatenate(queries).reshape(-1, model.width)
  found = search.nearest(
      queries_QxD,
      store.arrays(),
      max(knn.NUMBERS),
      threads,
      lambda fraction: on_progress('neighbours', fraction),
  )
  targets_Qx1 = tokens_NxT1[:, 1:].reshape(-1, 1)
  is_target_QxK = store.values(found.indices_QxK) == targets_Qx1
  on_progress('tuning', 0.0)
  half = len(tokens_NxT1) // 2 * (tokens_NxT1.shape[1] - 1)
  parts = log_p_NxT.reshape(-1), found.distances_QxK, is_target_QxK
  setting = knn.tune(*(array[:half] for array in parts))
  reported = [array[half:] for array in parts]
  return Comparison(
      setting.k,
      setting.temperature,
      setting.weight,
      len(tokens_NxT1) - len(tokens_NxT1) // 2,
      float(-reported[0].mean(dtype=np.float64)),
      knn.loss(*reported, setting),
      float(is_target_QxK[half:, :RECALL_AT].any(axis=1).mean()),
      stable_rank(queries_QxD[half:]),
  )


def stable_rank(keys_QxD: np.ndarray) -> float:
  """||K||_F^2 / ||K||_2^2 of keys minus their mean: how many directions they use; 0 if equal."""
  centred = keys_QxD.astype(np.float64) - keys_QxD.mean(axis=0, dtype=np.float64)
  squares = np.linalg.eigvalsh(centred.T @ centred)  # squared singular values, in ascending order
  return float(squares.sum() / squares[-1]) if squares[-1] > 0 else 0.0


def compare_in_context(
    model: Model, passages: lexical.Passages, windows: Windows, on_progress: Progress
) -> Comparison:
  """Passages before the text against the model with the text alone."""
  half = len(windows.tokens_NxT1) // 2
  tuned, reported = windows.tokens_NxT1[:half], windows.tokens_NxT1[half:]
  losses = {}
  for k in lexical.NUMBERS:
    losses[k] = float(passages.losses(model, tuned, k).mean(dtype=np.float64))
    on_progress('passages', len(losses) / (len(lexical.NUMBERS) + 1))
  best = min(losses, key=losses.get)
  without, with_passages = (
      float(passages.losses(model, reported, k).mean(dtype=np.float64)) for k in (0, best)
  )
  return Comparison(best, None, None, len(reported), without, with_passages)
