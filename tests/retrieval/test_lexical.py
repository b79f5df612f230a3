"""Passages by BM25, against its formula, and their place before the text."""

import collections
import math

import numpy as np
import pytest
from helpers.retrieval import StubModel, sentences

from stability.data.tokenize.stored import StoredTokenizer
from stability.retrieval import lexical
from stability.retrieval.texts import Windows

TOKENIZER = StoredTokenizer(None, {'tokenizer': 'bytes', 'end_of_document': 0})


def windows(texts, name='train'):
  """Texts of 17 bytes as windows that follow one another, of one document."""
  tokens = np.stack([np.frombuffer(text, np.uint8) for text in texts])
  return Windows(name, tokens, np.arange(len(texts)) * 16, [('book', 0)])


def bm25(query, documents):
  """Scores of Lucene's variant: idf = ln(1 + (N - n + 1/2) / (n + 1/2)), tf without k1 + 1."""
  mean = sum(map(len, documents)) / len(documents)
  scores = []
  for document in documents:
    counts, score = collections.Counter(document), 0.0
    for word in query:
      n = sum(word in other for other in documents)
      idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
      tf = counts[word]
      score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
    scores.append(score)
  return scores


@pytest.fixture(scope='module')
def store():
  """Two texts of windows of 16 bytes, so that a passage has four."""
  text = sentences(0, 200)
  parts = [text[i : i + 17] for i in range(0, 16 * 30, 16)]
  return [windows(parts[:20]), windows(parts[20:], 'more')]


def test_scores(store):
  passages = lexical.Passages(store, TOKENIZER)
  quarters = np.concatenate([text.tokens_NxT1[:, :16].reshape(-1, 4) for text in store])
  documents = [lexical.words(row.tobytes()) for row in quarters]
  query = b'the beta rho! et BET mu'
  known = [word for word in lexical.words(query) if any(word in d for d in documents)]
  assert len(known) >= 3
  expected = bm25(known, documents)
  found, scores = passages.search(query, 6)
  np.testing.assert_allclose(scores, sorted(expected, reverse=True)[:6], rtol=1e-5)
  np.testing.assert_allclose(scores, np.array(expected)[found], rtol=1e-5)


def test_words():
  assert lexical.words(b'A_1 (b2)+\xe9c\n') == ['a_1', 'b2', 'c']


def test_only_passages_with_a_word_of_the_query_are_found():
  passages = lexical.Passages([windows([b'aa  bb  cc  dd  .'])], TOKENIZER)
  found = passages.found(b'cc xx', 3)
  assert [(each.tokens.tobytes(), each.source) for each in found] == [
      (b'cc  ', 'train: book, token 8')
  ]
  assert passages.found(b'xx ??', 3) == []
  assert lexical.Passages([windows([b'+' * 17])], TOKENIZER).found(b'aa', 3) == []


def test_passages_displace_the_oldest_text():
  passages = lexical.Passages([windows([b'aa  bb  cc  bb  .'])], TOKENIZER)
  model = StubModel()
  text = np.frombuffer(b'0123 bb 8 cc  aa.', np.uint8)[None]
  found = {k: passages.losses(model, text, k) for k in (0, 1, 2)}
  seen = [row.astype(np.uint8).tobytes() for (row,) in model.seen]
  # The query is what comes before the last four bytes: `aa` is no word of it. The best passage, of
  # the rarer word, is the last.
  assert seen == [b'0123 bb 8 cc  aa.', b'cc   bb 8 cc  aa.', b'bb  cc  8 cc  aa.']
  for k, row in enumerate(seen):
    expected = -StubModel().log_p(np.frombuffer(row, np.uint8)[None])[:, -4:]
    assert np.array_equal(found[k], expected)


def test_fewer_passages_than_asked_for():
  passages = lexical.Passages([windows([b'aa  bb  cc  bb  .'])], TOKENIZER)
  model = StubModel()
  passages.losses(model, np.frombuffer(b'0123456 8 cc cdef', np.uint8)[None], 2)
  assert model.seen[0][0].astype(np.uint8).tobytes() == b'cc  456 8 cc cdef'
