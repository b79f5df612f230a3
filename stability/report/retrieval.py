"""What retrieval beside finished runs does to their loss, as the page and the terminal show it."""

from collections.abc import Sequence

import pandas as pd

from stability.report import labels
from stability.storage.retrieval_csv import Row

TEXT_COLUMNS = ('run', 'model', 'method', 'datastore', 'text')
# Columns that often have the same value in all rows.
SHARED = ('run', 'model', 'datastore', 'text', 'keys', 'windows', 'left out')
# Columns that a short line does without, the first one first.
SPARE = ('stable rank', 'temperature', 'weight', 'seconds', 'left out', 'windows', 'keys')
_METHODS = {'knn': 'kNN language model', 'bm25': 'BM25 passages in context'}


def table(rows: Sequence[Row]) -> pd.DataFrame:
  """The rows of retrieval.csv as text."""
  return pd.DataFrame(
      {
          'run': row.run,
          'model': row.model,
          'method': row.method,
          'datastore': row.datastore,
          'text': row.text,
          'loss without': labels.decimals(row.loss_without),
          'loss with': labels.decimals(row.loss_with),
          'change': f'{row.loss_with - row.loss_without:+.3f}',
          'recall': '' if row.recall is None else f'{row.recall:.2f}',
          'stable rank': '' if row.stable_rank is None else f'{row.stable_rank:.1f}',
          'k': str(row.k),
          'temperature': '' if row.temperature is None else f'{row.temperature:g}',
          'weight': '' if row.weight is None else f'{row.weight:g}',
          'keys': f'{row.keys:,}',
          'windows': str(row.windows),
          'left out': str(row.left_out),
          'seconds': f'{row.seconds:.0f}',
      }
      for row in rows
  )


def sentences(rows: Sequence[Row]) -> list[str]:
  """The largest change of each method, and in how many measurements the loss falls."""
  found = []
  for method, name in _METHODS.items():
    of_method = [row for row in rows if row.method == method]
    if not of_method:
      continue
    lower = sum(row.loss_with < row.loss_without for row in of_method)
    best = min(of_method, key=lambda row: row.loss_with - row.loss_without)
    found.append(
        f'{name}: the loss is lower in {lower} of {len(of_method)} measurements; the largest change'
        f' is from {labels.decimals(best.loss_without)} to {labels.decimals(best.loss_with)}'
        f' ({best.run}; {best.datastore}, measured on {best.text}).'
    )
  return found
