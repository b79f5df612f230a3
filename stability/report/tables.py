"""Results as tables of text, for the page and the terminal."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from stability.analysis import comparison, instability, lr_sensitivity, rescue
from stability.analysis import results as results_lib
from stability.analysis.claims.claim import DOES_NOT_HOLD, HOLDS, UNDECIDED
from stability.analysis.results import Results
from stability.report import labels
from stability.storage.files import Json
from stability.storage.sweeps import Fork

RATIO = 'ratio to baseline'
NOTHING_TRAINS = 'nothing trains'
DIFFERENCES = {  # column of several_sweeps.Differences -> heading
    'best_loss': 'best loss',
    'mean_loss': 'mean loss',
    'lr_sensitivity': 'LR sensitivity',
}


def interval(results: Results) -> str:
  """The name of the intervals of LR sensitivity: `90 % interval`."""
  return f'{100 * results.interval:g} % interval'


def sensitivities(results: Results, table: pd.DataFrame) -> pd.DataFrame:
  """LR sensitivity with its ratio to the baseline; columns without content are left out.

  Args:
    results: the runs of a sweep.
    table: the result of lr_sensitivity for these runs.
  """
  text = labels.columns(table, results.groups, results.sizes)
  is_comparable = table['window'] != lr_sensitivity.NOT_COMPARABLE
  decimals = table['lr_sensitivity'].map(labels.decimals)
  text['LR sensitivity'] = decimals.where(is_comparable, lr_sensitivity.NOT_COMPARABLE)
  # Equal losses of runs that all diverged have a sensitivity of 0, which looks like stability.
  nothing_trains = table['lr_sensitivity'].notna() & table['best_learning_rate'].isna()
  text.loc[nothing_trains, 'LR sensitivity'] = NOTHING_TRAINS
  if table['low'].notna().any():
    text[interval(results)] = [
        '' if pd.isna(low) else f'{low:.3f}-{high:.3f}'
        for low, high in zip(table['low'], table['high'], strict=True)
    ]
    text.loc[nothing_trains, interval(results)] = ''
  compared = comparison.compare(results, table)
  if compared['ratio'].notna().any():
    text[RATIO] = list(map(_ratio, compared.itertuples()))
  if (is_limited := is_comparable & (table['window'] != lr_sensitivity.ALL)).any():
    text['over LRs'] = table['window'].where(is_limited, '')
  name = 'best mean loss' if (table['seeds'] > 1).any() else 'best loss'
  text[name] = table['best_loss'].map(labels.decimals)
  text['best LR'] = table['best_learning_rate'].map(labels.rounded)
  if table['missing'].any():
    text['missing'] = table['missing'].astype(str)
  if (acted_on := _acted_on(results, table)).any():
    text['acted on'] = acted_on.astype(str)
  text['LRs'] = table['learning_rates'].astype(str)
  text['seeds'] = table['seeds'].astype(str)
  return text


def _ratio(row: tuple) -> str:
  if row.is_baseline:
    return 'baseline'
  if pd.isna(row.ratio):
    return ''
  if pd.isna(row.low):
    return f'{row.ratio:.2f}'
  text = f'{row.ratio:.2f} ({row.low:.2f}-{row.high:.2f})'
  return f'{text}, no difference shown' if row.low <= 1 <= row.high else text


def _acted_on(results: Results, table: pd.DataFrame) -> pd.Series:
  """The number of runs in each row of the table whose course an action changed."""
  if 'actions' not in results.runs:
    return pd.Series(0, table.index)
  keys = ['parameters', *results.sizes, *results.groups]
  runs = results.runs[keys][results.runs['actions'] > 0].to_numpy(object)
  counts = collections.Counter(map(results_lib.key, runs))
  return pd.Series([counts[results_lib.key(row)] for row in table[keys].to_numpy(object)])


def acted(results: Results, shares: pd.DataFrame) -> pd.DataFrame:
  """How often interventions acted in each arm; `shares` is the result of inert.by_arm."""
  text = labels.columns(shares, results.groups)
  for name in shares.columns.drop(results.groups):
    text[name] = shares[name].map('{:.0%}'.format).replace('nan%', '')
  return text


def differences(results: Results, table: pd.DataFrame) -> pd.DataFrame:
  """Differences over pairs of runs; `table` is that of several_sweeps.Differences."""
  text = labels.columns(table, results.groups, results.sizes)
  arms = table[results.groups].to_numpy(object)
  text['compared with'] = [
      reference(results, *pair) for pair in zip(arms, table['reference'], strict=True)
  ]
  for name, heading in DIFFERENCES.items():
    columns = table[[name, f'{name}_low', f'{name}_high']]
    text[heading] = [difference(*row) for row in columns.to_numpy()]
  return text.assign(**{name: table[name].astype(str) for name in ('pairs', 'seeds')})


def reference(results: Results, arm: Sequence[Any], of_first: Sequence[Any]) -> str:
  """The arm of the first sweep that an arm is compared with; only the sweep if they differ in it.

  Args:
    results: the runs of several sweeps.
    arm: its values of results.groups, the first of which is the sweep.
    of_first: those of the arm that it is compared with.
  """
  sweep = labels.cell(results.groups[0], of_first[0])
  if labels.pairs(results.groups[1:], arm[1:]) == labels.pairs(results.groups[1:], of_first[1:]):
    return sweep
  return f'{sweep}, {labels.pairs(results.groups[1:], of_first[1:])}'


def difference(number: float, low: float, high: float) -> str:
  """A difference with its sign and, if there is one, its interval; empty for NaN."""
  if pd.isna(number):
    return ''
  return f'{number:+.3f}' + ('' if pd.isna(low) else f' ({low:+.3f} to {high:+.3f})')


def runs(results: Results) -> pd.DataFrame:
  """Every run, failed ones first."""
  found = results.runs
  text = labels.columns(found, results.groups, results.sizes)
  text.insert(0, 'status', found['status'])
  text['learning rate'] = found['learning_rate'].map(labels.number)
  text['seed'] = found['seed'].astype(str)
  text['initial loss'] = found['initial_loss'].map(labels.decimals)
  text['final loss'] = found['final_loss'].map(labels.decimals)
  is_unstable = instability.unstable(results)
  text['unstable'] = is_unstable.map({True: 'yes', False: 'no'}).fillna('').astype(str)
  if 'actions' in found and found['actions'].any():
    text['actions'] = found['actions'].astype(str).replace('0', '')
  if 'error' in found and found['error'].notna().any():
    # The last line of a traceback is its message.
    text['error'] = [error.strip().split('\n')[-1] for error in found['error'].fillna('')]
  text['run'] = found['run']
  return text.sort_values('status', kind='stable', key=lambda status: status != 'failed')


def forks(rows: Sequence[Json], origins: Mapping[str, Fork]) -> pd.DataFrame:
  """Every fork; the arguments are from results_csv.read_fork_results and sweeps.read_forks."""
  return pd.DataFrame([
      {
          'run': row['run'],
          'forked from': fork.run,
          'at step': str(fork.step),
          'changes': labels.pairs(fork.changes, fork.changes.values()),
          'status': row['status'],
          'final loss': labels.decimals(row['final_loss']),
      }
      for row in rows
      for fork in [origins[row['run']]]
  ])


def claims(table: pd.DataFrame) -> pd.DataFrame:
  """The claims that apply to a sweep; `table` is the result of claims.registry.judge."""
  applicable = table[table['n'] > 0]
  text = applicable[['figure', 'claim', 'verdict']].copy()
  text['effect'] = applicable['effect'].map(_effect)
  text['needed'] = applicable['threshold']
  if applicable['low'].notna().any():
    text['90 % interval'] = [
        '' if pd.isna(low) else f'{_effect(low)} to {_effect(high)}'
        for low, high in zip(applicable['low'], applicable['high'], strict=True)
    ]
  text['runs'] = applicable['n'].astype(str)
  text['what the effect is'] = applicable['measure']
  text['reason'] = applicable['reason']
  text['variant'] = applicable['variant']
  return text


def _effect(effect: float) -> str:
  return '' if pd.isna(effect) else f'{effect:.3g}'


def count_verdicts(verdicts: Iterable[str]) -> str:
  """The number of claims with each verdict: `2 hold, 1 does not hold, 3 undecided`."""
  plural = {HOLDS: 'hold', DOES_NOT_HOLD: 'do not hold', UNDECIDED: UNDECIDED}
  counts = collections.Counter(verdicts)
  return ', '.join(
      f'{counts[verdict]} {verdict if counts[verdict] == 1 else plural[verdict]}'
      for verdict in plural
      if verdict in counts
  )


def rescues(results: Results) -> pd.DataFrame:
  """How many unstable runs the policy rescues at each size; empty if there are no pairs of runs."""
  pairs = rescue.pairs(results)
  if pairs.empty:
    return pd.DataFrame()
  counts = rescue.by_size(pairs, results)
  text = pd.DataFrame({'parameters': labels.sizes(counts, results.sizes)})
  names = {'doomed': 'unstable without the policy', 'rescued': 'rescued', 'others': 'others'}
  for column, name in (names | {'harmed': 'harmed'}).items():
    text[name] = counts[column].astype(str)
  return text


def rescue_sentence(results: Results) -> str | None:
  """States the share of unstable runs that the policy rescues; None if there are none."""
  pairs = rescue.pairs(results)
  if pairs.empty or not pairs['doomed'].any():
    return None
  doomed, rescued = pairs['doomed'].sum(), pairs['rescued'].sum()
  return (
      f'With the policy, {rescued} of {doomed} runs ({rescued / doomed:.0%}) that are unstable'
      f' without it end within {rescue.WITHIN:.0%} of the best loss at their size.'
  )


def first_regimes(found: pd.DataFrame) -> pd.DataFrame:
  """The regimes from which on claims hold, the result of regimes.first."""
  is_known = found['steps'].notna()
  steps = found['steps'].map('{:,.0f}'.format)
  counts = zip(found['holds'], found['decided'], strict=True)
  return pd.DataFrame({
      'figure': found['figure'],
      'claim': found['claim'],
      'from steps': steps.where(is_known, 'nowhere'),
      'with sizes up to': found['parameters'].map(labels.parameters).where(is_known, ''),
      'regimes in which it holds': [f'{holds} of {decided}' for holds, decided in counts],
      'note': found['last'].map({True: 'the last regime', False: ''}),
  })
