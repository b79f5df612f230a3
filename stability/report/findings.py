"""Sentences that summarise a sweep."""

from typing import Any

import pandas as pd

from stability.analysis import comparison, instability, lr_sensitivity, several_sweeps
from stability.analysis import results as results_lib
from stability.analysis.results import SWEEP, Results
from stability.report import labels, tables

_NAMED = 12  # values of a field that the description names; more are counted
_COMPARED = 4  # arms that the sentence on instability names


def description(results: Results) -> str:
  """States what was run: the number of runs, sizes, learning rates, interventions and seeds.

  It also says how many runs a person has steered: they count at the rate of their config.
  """
  runs = results.runs
  rates = sorted(runs['learning_rate'].unique())
  parts = [count(len(rates), 'learning rate')]
  if len(rates) > 1:
    parts[0] += f' from {labels.number(rates[0])} to {labels.number(rates[-1])}'
  sizes = runs.dropna(subset='parameters').sort_values('parameters')['parameters'].unique()
  if len(sizes):
    parts.insert(0, f'{labels.joined(map(labels.parameters, sizes))} parameters')
  for name, short in labels.fields(results.groups).items():
    cells = [labels.cell(name, value) for value in runs[name].unique()]
    if len(cells) > _NAMED:
      parts.append(f'{len(cells)} arms' if name == 'arm' else f'{len(cells)} values of {short}')
    else:
      parts.append(f'{short} {labels.joined(cells)}')
  parts.append(count(runs['seed'].nunique(), 'seed'))
  steered = int(results_lib.steered(runs).sum())
  note = f' A person has acted on {count(steered, "run")}.' if steered else ''
  return f'{count(len(runs), "run")}: {", ".join(parts)}.{note}'


def on_lr_sensitivity(results: Results, table: pd.DataFrame) -> str | None:
  """Compares the LR sensitivity of each intervention with the baseline; None if that is impossible.

  A single other intervention is compared at each size, several at the largest size. Sizes at which
  runs of one of the two are missing are left out.
  """
  names = [labels.pairs(results.groups, row) for row in table[results.groups].to_numpy(object)]
  table = table.assign(name=names, size=labels.sizes(table, results.sizes))
  if len(set(names)) == 1:
    complete = table[(table['missing'] == 0) & (table['lr_sensitivity'] > 0)]
    values = [f'{row.lr_sensitivity:.3f} at {row.size}' for row in complete.itertuples()]
    return f'LR sensitivity is {labels.joined(values)} parameters.' if values else None
  compared = comparison.compare(results, table)
  table = table.assign(**compared.rename(columns={'low': 'ratio_low', 'high': 'ratio_high'}))
  baseline = table['name'][table['is_baseline']].iloc[0]
  others = table[table['ratio'].notna()]
  if others.empty:
    return None
  note = f' ({tables.interval(results)}s)' if others['ratio_low'].notna().any() else ''
  if len(set(names)) == 2:
    ratios = [f'{_times(row)} at {row.size}' for row in others.itertuples()]
    return (
        f'LR sensitivity with {others["name"].iloc[0]}, compared with the baseline'
        f' {baseline}{note}: {labels.joined(ratios)} parameters.'
    )
  largest = others['size'].iloc[-1]
  ranked = others[others['size'] == largest].sort_values('ratio', kind='stable')
  ratios = [f'{row.name} {_times(row)}' for row in ranked.itertuples()]
  return (
      f'LR sensitivity at {largest} parameters, compared with the baseline {baseline}{note}:'
      f' {"; ".join(ratios)}.'
  )


def _times(row: Any) -> str:
  """A ratio with its interval."""
  if pd.isna(row.ratio_low):
    return f'{row.ratio:.2f} times'
  unclear = ', no difference shown' if row.ratio_low <= 1 <= row.ratio_high else ''
  return f'{row.ratio:.2f} times ({row.ratio_low:.2f} to {row.ratio_high:.2f}{unclear})'


def on_differences(results: Results, found: several_sweeps.Differences) -> list[str]:
  """States how the later sweeps differ from the first at the largest size, and what is unpaired."""
  sentences = [
      f'Nothing of {labels.cell(SWEEP, sweep)} can be paired with'
      f' {labels.cell(SWEEP, results.sweeps[0])}: they have no {what} in common.'
      for sweep, what in found.unpaired.items()
  ]
  if found.table.empty:
    return sentences
  parameters = found.table['parameters'].astype('Float64')
  is_known = parameters.notna().any()
  largest = parameters.eq(parameters.max()).fillna(False) if is_known else parameters.isna()
  arms = found.table[results.groups].to_numpy(object)
  rows = tables.differences(results, found.table)[largest].to_dict('index')
  for number, row in rows.items():
    numbers = [f'{name} {row[name]}' for name in tables.DIFFERENCES.values() if row[name]]
    where = f'At {row["parameters"]} parameters, ' if is_known else ''
    sentences.append(
        f'{where}{labels.pairs(results.groups, arms[number])}, minus'
        f' {row["compared with"]}, over {count(int(row["pairs"]), "pair")} of runs:'
        f' {", ".join(numbers)} nats.'
    )
  return sentences


def on_best_loss(results: Results, table: pd.DataFrame) -> str | None:
  """States the lowest loss and where it occurs, or that nothing trains; None if no run counts."""
  if table['best_loss'].isna().all():
    return None
  trained = table[table['best_learning_rate'].notna()]
  if trained.empty:
    statuses = results.runs['status']
    counted = statuses[statuses.isin(lr_sensitivity.COUNTED)]
    runs = count(len(counted), 'run') + (' that count' if len(counted) < len(statuses) else '')
    how = 'diverged' if (counted == 'diverged').all() else 'diverged or learned nothing'
    return f'All {runs} {how}; no learning rate trains.'
  row = trained.loc[trained['best_loss'].idxmin()]
  where = []
  if pd.notna(row['parameters']):
    where.append(f'{labels.parameters(row["parameters"])} parameters')
  if results.groups:
    where.append(labels.pairs(results.groups, row[results.groups]))
  where.append(f'learning rate {labels.rounded(row["best_learning_rate"])}')
  seeds = _seeds_of_best(results, row)
  what = f'lowest mean loss over {seeds} seeds' if seeds > 1 else 'lowest loss'
  return f'The {what} is {row["best_loss"]:.3f} nats: {", ".join(where)}.'


def _seeds_of_best(results: Results, row: pd.Series) -> int:
  """How many seeds the best loss of a row is the mean of: other rates may have more or others."""
  columns = [*results.sizes, *results.groups, 'parameters']
  of_row = results_lib.key(row[columns])
  losses = pd.concat(
      lr_sensitivity.counted_loss(runs[runs['learning_rate'] == row['best_learning_rate']])
      for values, runs in results_lib.split(results.runs, columns)
      if results_lib.key(values) == of_row
  )
  return min(int(losses.notna().sum()), row['seeds'])


def on_instability(results: Results) -> str | None:
  """Counts the unstable runs, and states from which rate on the largest size has any.

  None if no run counts or all are unstable.
  """
  runs = results.runs.assign(unstable=instability.unstable(results)).dropna(subset='unstable')
  number = int(runs['unstable'].sum())
  if number == len(runs):
    return None
  said = f'{number or "None"} of {count(len(runs), "run")} {"are" if number > 1 else "is"} unstable'
  known = runs[runs['parameters'].notna()]
  if not number or known.empty or runs['learning_rate'].nunique() == 1:
    return f'{said}.'
  size = labels.sizes(known, results.sizes)[known['parameters'].astype(float).idxmax()]
  largest = known[labels.sizes(known, results.sizes) == size]
  lowest = {
      labels.pairs(results.groups, values): of_arm['learning_rate'][of_arm['unstable']].min()
      for values, of_arm in results_lib.split(largest, results.groups)
  }
  found = [rate for rate in lowest.values() if pd.notna(rate)]
  if not found:
    return f'{said}, none of them at {size} parameters.'
  if len(lowest) > _COMPARED:
    ends = ' to '.join(dict.fromkeys(labels.rounded(end(found)) for end in (min, max)))
    of = 'all' if len(found) == len(lowest) else f'{len(found)} of'
    rates = f'{ends} in {of} {len(lowest)} arms'
  else:
    rates = labels.joined(
        [
            labels.rounded(rate) + (f' with {name}' if name else '')
            for name, rate in lowest.items()
            if pd.notna(rate)
        ]
    )
    without = [name for name, rate in lowest.items() if pd.isna(rate)]
    if without:
      rates += f'; {labels.joined(without)} {"have" if len(without) > 1 else "has"} none'
  return f'{said}; the lowest unstable learning rate at {size} parameters is {rates}.'


def on_inert(results: Results, shares: pd.DataFrame) -> str | None:
  """Names the interventions that never acted; `shares` is the result of inert.by_arm."""
  arms = [labels.pairs(results.groups, row) for row in shares[results.groups].to_numpy(object)]
  found = []
  for name in shares.columns.drop(results.groups):
    inert = [arm for arm, share in zip(arms, shares[name], strict=True) if share == 0]
    if inert:
      everywhere = len(inert) == shares[name].notna().sum()
      found.append(name if everywhere else f'{name} with {labels.joined(inert)}')
  if not found:
    return None
  return f'Never acted in a measured step: {"; ".join(found)}.'


def count(number: int, noun: str) -> str:
  """The number with the noun in singular or plural: `1 seed` or `3 seeds`."""
  return f'{number} {noun}' if number == 1 else f'{number} {noun}s'
