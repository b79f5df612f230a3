"""Sentences that summarise a sweep."""

import pandas as pd

from stability.analysis import results as results_lib
from stability.analysis.results import Results
from stability.report import labels


def description(results: Results) -> str:
  """States what was run: the number of runs, sizes, learning rates, interventions and seeds."""
  runs = results.runs
  rates = sorted(runs['learning_rate'].unique())
  parts = [count(len(rates), 'learning rate')]
  if len(rates) > 1:
    parts[0] += f' from {labels.number(rates[0])} to {labels.number(rates[-1])}'
  sizes = runs.dropna(subset='parameters').sort_values('parameters')['parameters'].unique()
  if len(sizes):
    parts.insert(0, f'{labels.joined(map(labels.parameters, sizes))} parameters')
  for name, short in labels.fields(results.groups).items():
    parts.append(f'{short} {labels.joined(map(labels.value, runs[name].unique()))}')
  parts.append(count(runs['seed'].nunique(), 'seed'))
  return f'{count(len(runs), "run")}: {", ".join(parts)}.'


def on_lr_sensitivity(results: Results, table: pd.DataFrame) -> str | None:
  """States how the interventions compare in LR sensitivity; None if no size allows a comparison.

  Two interventions are compared at each size; more are ranked at the largest size. Sizes at which
  an intervention lacks runs are left out.
  """
  names = [labels.pairs(results.groups, row) for row in table[results.groups].to_numpy(object)]
  table = table.assign(name=names, size=labels.sizes(table, results.sizes))
  complete = table[(table['missing'] == 0) & (table['lr_sensitivity'] > 0)]
  sizes = {
      size: rows.set_index('name')['lr_sensitivity'].sort_values(kind='stable')
      for (size,), rows in results_lib.split(complete, ['size'])
      if len(rows) == len(set(names))
  }
  if not sizes:
    return None
  largest = list(sizes)[-1]
  if len(set(names)) == 1:
    values = [f'{value.iloc[0]:.3f} at {size}' for size, value in sizes.items()]
    return f'LR sensitivity is {labels.joined(values)} parameters.'
  if len(set(names)) == 2:
    better, worse = sizes[largest].index
    ratios = [f'{at[worse] / at[better]:.1f} times at {size}' for size, at in sizes.items()]
    at_sizes = labels.joined(ratios)
    return f'LR sensitivity with {worse}, compared with {better}: {at_sizes} parameters.'
  ranks = [f'{name} ({value:.3f})' for name, value in sizes[largest].items()]
  return f'LR sensitivity at {largest} parameters, lowest first: {", ".join(ranks)}.'


def on_best_loss(results: Results, table: pd.DataFrame) -> str | None:
  """States the lowest loss and where it occurs; None if no run counts."""
  if table['best_loss'].isna().all():
    return None
  row = table.loc[table['best_loss'].idxmin()]
  where = [f'{labels.parameters(row["parameters"])} parameters']
  if results.groups:
    where.append(labels.pairs(results.groups, row[results.groups]))
  where.append(f'learning rate {labels.number(row["best_learning_rate"])}')
  return f'The lowest loss is {row["best_loss"]:.3f} nats: {", ".join(where)}.'


def count(number: int, noun: str) -> str:
  """The number with the noun in singular or plural: `1 seed` or `3 seeds`."""
  return f'{number} {noun}' if number == 1 else f'{number} {noun}s'
