"""Columns of runs as numbers of their distinct values."""

import numpy as np
import pandas as pd

from stability.analysis.claims.columns import Column


def test_column_is_that_of_the_runs():
  column = pd.Series(['none', 'layernorm', None, 'none', 1.0], index=[3, 1, 4, 5, 9])
  found = Column.of(column)
  assert found.where(lambda value: value == 'none').tolist() == [True, False, False, True, False]
  assert found.where(lambda value: value == 1).tolist() == [False] * 4 + [True]
  kept_N = np.array([True, True, False, True, False])
  assert found.among(kept_N) == {'none', 'layernorm'}
  assert found.among(~kept_N) > {1.0} and len(found.among(~kept_N)) == 2
  assert not found.among(np.zeros(5, bool))


def test_column_without_runs():
  found = Column.of(pd.Series([], dtype=object))
  assert found.among(np.ones(0, bool)) == set() and len(found.where(bool)) == 0
