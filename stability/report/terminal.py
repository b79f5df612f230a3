"""LR sensitivity and claims as people read them: what ends a sweep, and the same for the page."""

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from stability.analysis import lr_sensitivity, rescue
from stability.analysis.results import SIZE_FIELDS, Results
from stability.report import labels


def readable(table: pd.DataFrame) -> pd.DataFrame:
  """The table of lr_sensitivity as text, without the columns that say nothing."""
  swept = list(table.columns[: table.columns.get_loc('parameters')])
  shape = [name for name in swept if name in SIZE_FIELDS]
  text = pd.DataFrame({'parameters': labels.sizes(table, shape)})
  for name, short in labels.fields([name for name in swept if name not in shape]).items():
    text[short] = table[name].map(labels.value)
  compared = table['window'] != lr_sensitivity.NOT_COMPARABLE
  decimals = table['lr_sensitivity'].map(labels.decimals)
  text['LR sensitivity'] = decimals.where(compared, lr_sensitivity.NOT_COMPARABLE)
  if table['low'].notna().any():
    text['90 % interval'] = [
        '' if pd.isna(low) else f'{low:.3f}-{high:.3f}'
        for low, high in zip(table['low'], table['high'], strict=True)
    ]
  if (limited := compared & (table['window'] != lr_sensitivity.ALL)).any():
    text['over LRs'] = table['window'].where(limited, '')
  text['best loss'] = table['best_loss'].map(labels.decimals)
  text['best LR'] = table['best_learning_rate'].map(labels.number).replace('nan', '')
  text['LRs'] = table['learning_rates'].astype(str)
  text['seeds'] = table['seeds'].astype(str)
  if table['missing'].any():
    text['missing'] = table['missing'].astype(str)
  return text


def summary(results: Results, judged: pd.DataFrame) -> list[Table]:
  """What ends a sweep; judged: the table of claims.judge."""
  found = lr_sensitivity.lr_sensitivity(results)
  shown = [terminal_table(found), rescues(results), claims_table(judged)]
  return [table for table in shown if table is not None]


def terminal_table(table: pd.DataFrame) -> Table:
  """LR sensitivity and best loss per size and intervention, a gap between sizes."""
  shown = Table(
      title='LR sensitivity (loss above the best, nats)',
      box=box.SIMPLE_HEAD,
      collapse_padding=True,
  )
  text = readable(table).drop(columns=['LRs', 'seeds'])
  for name in text:
    shown.add_column(Text(name), justify='right', overflow='fold')
  last_of_size = text['parameters'] != text['parameters'].shift(-1)
  for row, last in zip(text.itertuples(index=False), last_of_size, strict=True):
    # Text, not str: brackets in a field's value are no markup.
    shown.add_row(*map(Text, row), end_section=last)
  return shown


def rescues(results: Results) -> Table | None:
  """How many doomed runs the policy rescues, per size and in all; None without such runs."""
  pairs = rescue.pairs(results)
  if pairs.empty:
    return None
  counts = rescue.by_size(pairs, results)
  shown = Table(
      title=f'Runs that the policy brings to within {rescue.WITHIN:.0%} of the best loss',
      box=box.SIMPLE_HEAD,
      caption=rescued(results),
  )
  for name in ('parameters', 'doomed', 'rescued', 'others', 'harmed'):
    shown.add_column(name, justify='right')
  sizes = labels.sizes(counts, results.sizes)
  numbers = counts[['doomed', 'rescued', 'others', 'harmed']].astype(str)
  for size, row in zip(sizes, numbers.itertuples(index=False), strict=True):
    shown.add_row(size, *row)
  return shown


def rescued(results: Results) -> str | None:
  """The same in a sentence."""
  pairs = rescue.pairs(results)
  if pairs.empty or not pairs['doomed'].any():
    return None
  doomed, saved = pairs['doomed'].sum(), pairs['rescued'].sum()
  return (
      f'With the policy, {saved} of {doomed} runs ({saved / doomed:.0%}) that are unstable without'
      f' it end within {rescue.WITHIN:.0%} of the best loss at their size.'
  )


def readable_claims(table: pd.DataFrame) -> pd.DataFrame:
  """The claims that are about the sweep, as text; the table is that of claims.judge."""
  about = table[table['n'] > 0]
  text = about[['figure', 'claim', 'verdict']].copy()
  text['effect'] = about['effect'].map(_effect)
  text['needed'] = about['threshold']
  if about['low'].notna().any():
    text['90 % interval'] = [
        '' if pd.isna(low) else f'{_effect(low)} to {_effect(high)}'
        for low, high in zip(about['low'], about['high'], strict=True)
    ]
  text['runs'] = about['n'].astype(str)
  text['what the effect is'] = about['measure']
  text['reason'] = about['reason']
  return text


def _effect(effect: float) -> str:
  return '' if pd.isna(effect) else f'{effect:.3g}'


def claims_table(table: pd.DataFrame) -> Table | None:
  """The claims that are about the sweep; beneath each, what its effect is or why there is none.

  None where there are none.
  """
  others = (table['n'] == 0).sum()
  if others == len(table):
    return None
  left_out = 'One other is' if others == 1 else f'{others} others are'
  shown = Table(
      title='Claims',
      caption=f'{left_out} not about this sweep.' if others else None,
      box=box.SIMPLE_HEAD,
      collapse_padding=True,
  )
  shown.add_column('figure')
  shown.add_column('claim, and what the effect is', ratio=1)
  shown.add_column('verdict', style='bold')
  for name in ('effect', 'needed'):
    shown.add_column(name, justify='right')
  for row in readable_claims(table).to_dict('records'):
    claim = Text(row['claim'])
    claim.append(f'\n{row["reason"] or row["what the effect is"]}', style='dim')
    effect = '\n'.join(filter(None, (row['effect'], row.get('90 % interval'))))
    shown.add_row(row['figure'], claim, row['verdict'], effect, row['needed'])
  return shown
