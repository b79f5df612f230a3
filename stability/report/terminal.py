"""LR sensitivity as people read it: the table that ends a sweep, and the same for the page."""

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from stability.analysis import sensitivity
from stability.analysis.tables import SIZE_FIELDS
from stability.report import labels


def readable(table: pd.DataFrame) -> pd.DataFrame:
  """The table of lr_sensitivity as text, without the columns that say nothing."""
  swept = list(table.columns[: table.columns.get_loc('parameters')])
  shape = [name for name in swept if name in SIZE_FIELDS]
  text = pd.DataFrame({'parameters': labels.sizes(table, shape)})
  for name, short in labels.fields([name for name in swept if name not in shape]).items():
    text[short] = table[name].map(labels.value)
  compared = table['window'] != sensitivity.NOT_COMPARABLE
  decimals = table['lr_sensitivity'].map(labels.decimals)
  text['LR sensitivity'] = decimals.where(compared, sensitivity.NOT_COMPARABLE)
  if table['low'].notna().any():
    text['90 % interval'] = [
        '' if pd.isna(low) else f'{low:.3f}-{high:.3f}'
        for low, high in zip(table['low'], table['high'], strict=True)
    ]
  if (limited := compared & (table['window'] != sensitivity.ALL)).any():
    text['over LRs'] = table['window'].where(limited, '')
  text['best loss'] = table['best_loss'].map(labels.decimals)
  text['best LR'] = table['best_learning_rate'].map(labels.number).replace('nan', '')
  text['LRs'] = table['learning_rates'].astype(str)
  text['seeds'] = table['seeds'].astype(str)
  if table['missing'].any():
    text['missing'] = table['missing'].astype(str)
  return text


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
