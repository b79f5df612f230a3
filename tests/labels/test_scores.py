"""BALD and RHO-LOSS against computation by hand, and the means over the tokens of passages."""

import math

import numpy as np
import pytest

from stability.data.tokenize.stored import StoredTokenizer
from stability.labels import scores
from stability.labels.passages import Passage

TOKENIZER = StoredTokenizer(None, {'tokenizer': 'bytes', 'end_of_document': 0})


def test_bald_by_hand():
  """Two models: sure of different tokens, equally unsure, and in between."""
  p = np.array([
      [[1.0, 0.0], [0.5, 0.5], [0.75, 0.25]],
      [[0.0, 1.0], [0.5, 0.5], [0.25, 0.75]],
  ])
  with np.errstate(divide='ignore'):
    found = scores.bald(np.log(p))
  entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
  np.testing.assert_allclose(found, [math.log(2), 0, math.log(2) - entropy], atol=1e-12)


def test_bald_is_the_mean_divergence_from_the_mean():
  """Mutual information is also the mean KL divergence of the models from their mean."""
  p = np.random.default_rng(0).dirichlet(np.full(6, 0.3), size=(4, 10))
  mean = p.mean(axis=0)
  expected = (p * np.log(p / mean)).sum(-1).mean(axis=0)
  np.testing.assert_allclose(scores.bald(np.log(p)), expected, rtol=1e-9)


class TableModel:
  """A bigram model from a random table; it remembers the windows."""

  sequence_length, vocabulary_size = 4, 128

  def __init__(self, seed):
    table = np.random.default_rng(seed).dirichlet(np.full(128, 0.5), size=128)
    self.table = np.log(np.maximum(table, 1e-12)).astype(np.float32)
    self.most = 0  # windows at once

  def log_p_all(self, windows):
    self.most = max(self.most, len(windows))
    return self.table[windows[:, :-1]]

  def log_p(self, windows):
    return np.take_along_axis(self.log_p_all(windows), windows[:, 1:, None], -1)[..., 0]


TEXTS = ['a', 'abcd', 'abcde', 'hello, passages of several windows', 'xyz' * 90]


def test_scores_of_passages(monkeypatch):
  monkeypatch.setattr(scores, '_ELEMENTS', 3 * 4 * 128 * 3 + 100)  # three windows of three models
  monkeypatch.setattr(scores, '_CHUNK', 3 * 128 * 5)  # five positions
  models, reference = [TableModel(0), TableModel(1), TableModel(2)], TableModel(3)
  passages = [Passage('x', 0, len(text), text, 'utf-8') for text in TEXTS]
  shares = []
  found = scores.score(passages, models, TOKENIZER, reference, shares.append)
  for n, text in enumerate(TEXTS):
    pairs = list(zip(b'\0' + text.encode(), text.encode(), strict=False))
    losses = [np.mean([-model.table[a, b] for a, b in pairs]) for model in (*models, reference)]
    assert found.loss[n] == pytest.approx(np.mean(losses[:3]), rel=1e-5)
    assert found.reference_loss[n] == pytest.approx(losses[3], rel=1e-5)
    rows = np.exp([[model.table[a] for a, _ in pairs] for model in models], dtype=np.float64)
    mean = rows.mean(axis=0)
    bald = (-mean * np.log(mean)).sum(-1) - (-rows * np.log(rows)).sum(-1).mean(axis=0)
    assert found.disagreement[n] == pytest.approx(bald.mean(), rel=1e-4)
    assert found.gain[n] == pytest.approx(np.mean(losses[:3]) - losses[3], rel=1e-4)
  assert shares[-1] == 1 and {model.most for model in models} == {3}


def test_without_a_reference():
  found = scores.score([Passage('x', 0, 1, 'a', 'utf-8')], [TableModel(0)], TOKENIZER)
  assert math.isnan(found.reference_loss[0]) and found.disagreement[0] == pytest.approx(0, abs=1e-9)
