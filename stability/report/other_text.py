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
  it is above that of the parent; means over seeds, in nats. Cells are empty where a run that counts
  was not measured, such as one that diverged. A text that the runs were trained on in part or as a
  whole says so.
  """
  if not rows:
    return pd.DataFrame()
  measured = pd.DataFrame(rows)[['run', 'text', 'loss', 'parent_loss', 'training_documents']]
  runs = results.runs.assign(own_loss=lr_sensitivity.counted_loss(results.runs))
  runs = runs.dropna(subset='own_loss')
  runs = pd.concat([
      runs.merge(of_text.drop(columns='text'), on='run', how='left').assign(
          text=f'{text} (holds training text)' if of_text['training_documents'].any() else text
      )
      for text, of_text in measured.groupby('text', sort=False)
  ])
  found = []
  columns = ['text', 'parameters', *results.sizes, *results.groups]
  for values, of_arm in results_lib.split(runs, columns):
    if of_arm['loss'].isna().all():
      continue
    by_rate = of_arm.groupby('learning_rate')[['own_loss', 'loss', 'parent_loss']]
    of_rate = by_rate.mean(skipna=False)
    row = dict(zip(columns, values, strict=True)) | {'best': of_rate['own_loss'].idxmin()}
    for multiple in MULTIPLES:
      distances = np.abs(np.log10(of_rate.index) - np.log10(multiple * row['best']))
      at = of_rate.iloc[distances.argmin()] if distances.min() < _NEAR else None
      row[f'loss {multiple}'] = np.nan if at is None else at['loss']
      row[f'change {multiple}'] = np.nan if at is None else at['loss'] - at['parent_loss']
    found.append(row)
  return _as_text(results, pd.DataFrame(found)) if found else pd.DataFrame()


def _as_text(results: Results, found: pd.DataFrame) -> pd.DataFrame:
  columns = labels.columns(found, results.groups, results.sizes)
  text = pd.DataFrame({TEXT: found['text'], **columns})
  text['best LR'] = found['best'].map(labels.rounded)
  has_parents = found[[f'change {multiple}' for multiple in MULTIPLES]].notna().any(axis=None)
  for multiple in MULTIPLES:
    at = 'at best LR' if multiple == 1 else f'at {multiple}x'
    text[f'loss {at}'] = found[f'loss {multiple}'].map(labels.decimals)
    change = found[f'change {multiple}']
    if has_parents:
      text[f'forgotten {at}'] = ['' if pd.isna(nats) else f'{nats:+.3f}' for nats in change]
  return text
