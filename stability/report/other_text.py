"""Losses of finished runs on other text than their own, as the page and the terminal show them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.results import Results
from stability.report import labels
from stability.storage.other_text_csv import Row

TEXT = 'text'
MULTIPLES = (1, 3, 10)  # of the best learning rate
_NEAR = 0.1  # decades between a multiple and a learning rate of the grid that stands for it


def table(results: Results, rows: Sequence[Row]) -> pd.DataFrame:
  """A row for each text, size and intervention, as text.

  Columns: text, those of size and intervention, best LR (of all runs, on the own text), and for it
  and the rates 3 and 10 times as high: the loss on the text, and, of runs with a parent, how much
  it is above that of the parent; means over seeds, in nats. Where some of the runs that count were
  not measured, such as one that diverged, the loss says how many were; where none was, cells are
  empty. A text that the runs were trained on in part or as a whole says so.
  """
  if not rows:
    return pd.DataFrame()
  measured = pd.DataFrame(rows)[['run', 'text', 'loss', 'parent_loss', 'training_documents']]
  measured['change'] = measured['loss'] - measured.pop('parent_loss').astype(float)
  runs = results.runs.assign(own_loss=lr_sensitivity.counted_loss(results.runs))
  runs = runs.dropna(subset='own_loss')
  runs = pd.concat([
      runs.merge(of_text.drop(columns='text'), on='run', how='left').assign(
          text=_name(text, of_text['training_documents'].any())
      )
      for text, of_text in measured.groupby('text', sort=False)
  ])
  found = []
  columns = ['text', 'parameters', *results.sizes, *results.groups]
  for values, of_arm in results_lib.split(runs, columns):
    if of_arm['loss'].isna().all():
      continue
    by_rate = of_arm.groupby('learning_rate')
    of_rate = by_rate[['own_loss', 'loss', 'change']].mean()
    of_rate[['runs', 'measured']] = by_rate['loss'].agg(['size', 'count'])
    row = dict(zip(columns, values, strict=True)) | {'best': of_rate['own_loss'].idxmin()}
    for multiple in MULTIPLES:
      distances = np.abs(np.log10(of_rate.index) - np.log10(multiple * row['best']))
      at = of_rate.iloc[distances.argmin()] if distances.min() < _NEAR else None
      row[f'loss {multiple}'] = '' if at is None else _mean(at)
      row[f'change {multiple}'] = np.nan if at is None else at['change']
    found.append(row)
  return _as_text(results, pd.DataFrame(found)) if found else pd.DataFrame()


def of_runs(rows: Sequence[Row]) -> pd.DataFrame:
  """A row for each measurement, as text."""
  has_parents = any(row.parent_loss is not None for row in rows)
  return pd.DataFrame(
      {
          'run': row.run,
          TEXT: _name(row.text, bool(row.training_documents)),
          'windows': str(row.windows),
          'loss': labels.decimals(row.loss),
          **({'forgotten': _change(row)} if has_parents else {}),
      }
      for row in rows
  )


def _name(text: str, is_known: bool) -> str:
  return f'{text} (holds training text)' if is_known else text


def _change(row: Row) -> str:
  return '' if row.parent_loss is None else f'{row.loss - row.parent_loss:+.3f}'


def _mean(at: pd.Series) -> str:
  """The mean loss of the runs of a rate that were measured; says how many, if not all were."""
  if not at['measured']:
    return ''
  part = f' ({at["measured"]:.0f} of {at["runs"]:.0f} runs)' if at['measured'] < at['runs'] else ''
  return labels.decimals(at['loss']) + part


def _as_text(results: Results, found: pd.DataFrame) -> pd.DataFrame:
  columns = labels.columns(found, results.groups, results.sizes)
  text = pd.DataFrame({TEXT: found['text'], **columns})
  text['best LR'] = found['best'].map(labels.rounded)
  has_parents = found[[f'change {multiple}' for multiple in MULTIPLES]].notna().any(axis=None)
  for multiple in MULTIPLES:
    at = 'at best LR' if multiple == 1 else f'at {multiple}x'
    text[f'loss {at}'] = found[f'loss {multiple}']
    change = found[f'change {multiple}']
    if has_parents:
      text[f'forgotten {at}'] = ['' if pd.isna(nats) else f'{nats:+.3f}' for nats in change]
  return text
