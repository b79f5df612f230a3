"""Measurements with a datastore, in words."""

import dataclasses

from stability.report import retrieval
from stability.storage.retrieval_csv import Row

KNN = Row('a', 'knn', 64, 1.5, 0.25, 10, 2, 2.5, 2.25, 3.1, 1000, 'train', 'validation', 0.5, 4.0,
          'ff')  # fmt: skip
WORSE = dataclasses.replace(KNN, run='b', loss_with=2.625)
BM25 = dataclasses.replace(KNN, method='bm25', temperature=None, weight=None, loss_with=2.75)


def test_table():
  first, _, last = retrieval.table([KNN, WORSE, BM25]).to_dict('records')
  assert first['change'] == '-0.250' and first['keys'] == '1,000' and first['temperature'] == '1.5'
  assert last['change'] == '+0.250' and last['temperature'] == last['weight'] == ''
  assert set(retrieval.TEXT_COLUMNS) | set(retrieval.SHARED) <= set(first)
  assert retrieval.table([]).empty


def test_sentences():
  knn, bm25 = retrieval.sentences([KNN, WORSE, BM25])
  assert knn == (
      'kNN language model: the loss is lower in 1 of 2 measurements; the largest change is from'
      ' 2.500 to 2.250 (a; train, measured on validation).'
  )
  assert bm25.startswith('BM25 passages in context: the loss is lower in 0 of 1')
  assert retrieval.sentences([]) == []
