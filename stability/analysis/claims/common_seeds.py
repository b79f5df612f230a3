"""Which seeds the runs of several sizes and interventions have in common."""

import itertools

import numpy as np
import pandas as pd

from stability.analysis.claims.undecided import Undecided
from stability.analysis.same_rates import MIN_LEARNING_RATES


def choose(has_CxS: pd.DataFrame, row_C: pd.Series) -> pd.Index:
  """The seeds of Evidence.with_common_seeds; raises Undecided if there are none.

  Args:
    has_CxS: whether each cell (row) has a run of each seed (column).
    row_C: the number of the size and intervention that a cell belongs to.
  """
  needed = row_C.value_counts().clip(upper=MIN_LEARNING_RATES)
  best, score = None, (len(has_CxS) / 2, np.inf)
  for pair in itertools.combinations(has_CxS, 2):
    is_shared_C = has_CxS[list(pair)].all(axis='columns')
    left = row_C[is_shared_C].value_counts().reindex(needed.index, fill_value=0)
    shared = has_CxS.columns[has_CxS[is_shared_C].all()]
    if (left >= needed).all() and (is_shared_C.sum(), len(shared)) > score:
      best, score = shared, (is_shared_C.sum(), len(shared))
  if best is not None:
    return best
  if (has_CxS.sum(axis='columns') > 1).mean() > 0.5:
    raise Undecided(
        'no two seeds have all sizes and interventions at enough of the same learning rates'
    )
  seeds = has_CxS.columns[has_CxS.all()]
  if seeds.empty:
    raise Undecided('no seed has all sizes, interventions and learning rates')
  return seeds
