"""Losses with a datastore against sums over all keys, and the windows that are left out."""

import numpy as np
import pytest
from helpers.retrieval import StubModel, sentences

from stability.data.tokenize.stored import StoredTokenizer
from stability.errors import BadInput
from stability.retrieval import comparison, knn, lexical
from stability.retrieval.datastore import Datastore
from stability.retrieval.texts import Windows

TOKENIZER = StoredTokenizer(None, {'tokenizer': 'bytes', 'end_of_document': 0})


def windows(name, text, length=16, count=None):
  starts = np.arange(0, len(text) - length, length)[:count]
  tokens = np.stack([np.frombuffer(text[s : s + length + 1], np.uint8) for s in starts])
  return Windows(name, tokens, starts, [('book', 0)])


def test_knn_against_brute_force(tmp_path):
  """Every distance, in float64; the first half tunes the numbers, the second is reported."""
  model, train = StubModel(), windows('train', sentences(0, 300))
  validation = windows('validation', sentences(1, 60))
  (tmp_path / 'store').mkdir()
  store = Datastore.create(tmp_path / 'store', 'run', model)
  store.add(train, model)
  found = comparison.compare_knn(model, store, validation, 2, lambda *_: None)
  half = len(validation.starts_N) // 2
  assert found.windows == len(validation.starts_N) - half

  def flat(text):
    outputs = [outputs for _, outputs in model.batches(text.tokens_NxT1)]
    keys = np.concatenate([each.keys_NxTxD for each in outputs]).reshape(-1, 8).astype(float)
    log_p = np.concatenate([each.log_p_NxT for each in outputs]).reshape(-1)
    return keys, log_p, text.tokens_NxT1[:, 1:].reshape(-1)

  keys, _, values = flat(train)
  queries, log_p, targets = (array[: 16 * half] for array in flat(validation))
  distances = np.square(keys - queries[:, None]).sum(axis=2)
  order = np.argsort(distances, kind='stable')[:, : max(knn.NUMBERS)]
  is_target = values[order] == targets[:, None]
  setting = knn.tune(log_p, np.take_along_axis(distances, order, axis=1), is_target)
  assert (found.k, found.weight) == (setting.k, setting.weight)
  assert found.temperature == pytest.approx(setting.temperature, rel=0.01)
  queries, log_p, targets = (array[16 * half :] for array in flat(validation))
  losses, hits = [], []
  for query, own, target in zip(queries, log_p, targets, strict=True):
    distances = np.square(keys - query).sum(axis=1)
    nearest = np.argsort(distances, kind='stable')
    # Keys of equal contexts are equally far: which of them count at the limit is left open.
    chosen = nearest[: found.k]
    weights = np.exp(-distances[chosen] / found.temperature)
    p = weights[values[chosen] == target].sum() / weights.sum()
    losses.append(-np.log(found.weight * p + (1 - found.weight) * np.exp(own)))
    hits.append(target in values[nearest[:16]])
  assert found.loss_with == pytest.approx(np.mean(losses), rel=2e-3)
  assert found.loss_without == pytest.approx(-log_p.mean(), rel=1e-6)
  assert found.recall == pytest.approx(np.mean(hits), abs=0.03)
  assert found.loss_with < found.loss_without


def test_windows_say_where_the_tuned_half_ends(tmp_path):
  """Whatever the length that a model was trained with."""
  model, train = StubModel(), windows('train', sentences(0, 300))
  (tmp_path / 'store').mkdir()
  store = Datastore.create(tmp_path / 'store', 'run', model)
  store.add(train, model)
  validation = windows('validation', sentences(1, 60))
  expected = comparison.compare_knn(model, store, validation, 1, lambda *_: None)
  model.sequence_length = 8
  assert comparison.compare_knn(model, store, validation, 1, lambda *_: None) == expected


def test_in_context_by_the_losses_of_passages():
  """The first half chooses the number of passages; losses are those of the second half."""

  class Remembering(StubModel):
    def log_p(self, windows):
      return -1 - np.cumsum(windows[:, :-1], axis=1) % 11 / 4

  model = Remembering()
  passages = lexical.Passages([windows('train', sentences(0, 300))], TOKENIZER)
  validation = windows('validation', sentences(1, 60))
  half = len(validation.starts_N) // 2
  first, second = (
      {k: passages.losses(model, part, k).mean() for k in (0, 1, 2)}
      for part in (validation.tokens_NxT1[:half], validation.tokens_NxT1[half:])
  )
  assert first[1] < first[2] and second[2] < second[1]
  found = comparison.compare_in_context(model, passages, validation, lambda *_: None)
  assert (found.k, found.windows) == (1, len(validation.starts_N) - half)
  assert found.loss_without == pytest.approx(second[0], rel=1e-6)
  assert found.loss_with == pytest.approx(second[1], rel=1e-6)


def test_stable_rank_by_singular_values():
  keys = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 0.1] + 7
  values = np.linalg.svd(keys - keys.mean(axis=0), compute_uv=False)
  expected = np.square(values).sum() / values[0] ** 2
  assert comparison.stable_rank(keys.astype(np.float32)) == pytest.approx(expected, rel=1e-4)
  assert comparison.stable_rank(np.ones((5, 3), np.float32)) == 0


def test_windows_that_stand_in_the_datastore_are_left_out():
  """Made-up text: two of ten windows are copied, one across the limit of two stored windows."""
  rng = np.random.default_rng(3)
  fresh = [bytes(rng.integers(97, 123, 65, np.uint8)) for _ in range(10)]
  stored = bytearray(rng.integers(97, 123, 64 * 8 + 1, np.uint8))
  stored[10 : 10 + 40] = fresh[3][20:60]
  stored[64 * 5 - 16 : 64 * 5 + 16] = fresh[7][:32]
  stored[64 * 2 : 64 * 2 + 31] = fresh[8][:31]  # a byte too short
  validation = Windows(
      'validation', np.stack([np.frombuffer(w, np.uint8) for w in fresh]), np.arange(10) * 100, []
  )
  train = windows('train', bytes(stored), 64)
  kept, left_out = comparison.without_overlap(validation, [train], TOKENIZER)
  assert left_out == 2 and kept.starts_N.tolist() == [0, 100, 200, 400, 500, 600, 800, 900]
  # Windows that do not follow one another are not joined.
  apart = train.select(np.array([0, 1, 2, 3, 5, 6, 7]))
  assert comparison.without_overlap(validation, [apart], TOKENIZER)[1] == 1
  with pytest.raises(BadInput, match='validation: 10 of 10 windows share 32 bytes'):
    comparison.without_overlap(validation, [windows('train', b''.join(fresh), 64)], TOKENIZER)
