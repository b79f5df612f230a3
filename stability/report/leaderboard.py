"""The leaderboard in reports: its table, sentences and figures, and leaderboard.csv."""

import dataclasses
import functools
from collections.abc import Iterator

import pandas as pd

from stability.analysis.leaderboard import controls, curve, front
from stability.analysis.leaderboard import table as table_lib
from stability.analysis.results import Results
from stability.report import labels
from stability.report.plots import leaderboard as plots
from stability.report.plots.selection import Plot

_HEADINGS = {  # column -> heading
    'best_loss': 'best loss',
    'best_learning_rate': 'best LR',
    'lr_sensitivity': 'LR sensitivity',
    'width_02': 'width .02',
    'width_05': 'width .05',
    'width_10': 'width .1',
    'critical_learning_rate': 'critical LR',
    'headroom': 'headroom',
    'loss_at_3x': 'at 3x',
    'loss_at_10x': 'at 10x',
    'regret': 'regret',
}
MOST_NAMED = 8  # arms that a sentence lists
_LOSSES = ('best_loss', 'lr_sensitivity', *curve.MULTIPLES, 'regret')
_WITH_INTERVAL = ('best_loss', 'headroom')


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell of the sortable table."""

  text: str
  key: float | str  # what it is sorted by; an empty one is last
  look: str = ''  # class of the element


@dataclasses.dataclass(frozen=True)
class Section:
  """The page's section on a leaderboard."""

  table: pd.DataFrame  # see analysis/leaderboard/table.py; the content of leaderboard.csv
  headings: list[str]
  rows: list[list[Cell]]
  sentences: list[str]
  plots: list[Plot]


def section(
    results: Results, acted: pd.DataFrame | None = None, costs: pd.DataFrame | None = None
) -> Section | None:
  """The section; None if the sweep has no label `arm` or no run of it has finished.

  Args:
    results: the runs of a sweep.
    acted: how often interventions acted, see analysis/inert.py; None: not known.
    costs: see analysis/leaderboard/table.py.
  """
  if not table_lib.applies(results):
    return None
  known = {} if acted is None else {'acted': acted}
  table = table_lib.leaderboard(results, costs=costs, **known)
  if table['best_loss'].isna().all():
    return None
  has_sizes = table['is_baseline'].sum() > 1
  rows = [list(_row(row, has_sizes).values()) for _, row in table.iterrows()]
  headings = list(_row(table.iloc[0], has_sizes))
  return Section(table, headings, rows, list(_sentences(table)), _plots(results, table))


def _row(row: pd.Series, has_sizes: bool) -> dict[str, Cell]:
  """Heading -> cell of an arm at a size."""
  cells = {'arm': Cell(row['arm'], row['arm'], 'text')}
  parameters = Cell(labels.parameters(row['parameters']), _key(row['parameters']))
  cells['place'] = Cell(row['place'], row['place'], 'text')
  cells['parameters'] = parameters
  if row['is_baseline']:
    cells['arm'] = Cell(f'{row["arm"]} (baseline)', row['arm'], 'text')
  for name, heading in _HEADINGS.items():
    if name != 'regret' or has_sizes:
      cells[heading] = Cell(_number(row, name), _key(row[name]))
  for name, heading in (('seconds_ratio', 'time'), ('bytes_ratio', 'memory')):
    cells[heading] = Cell(labels.decimals(row[name], 2), _key(row[name]))
  cells['inert'] = Cell('inert' if row['inert'] else '', 'inert' if row['inert'] else '')
  distance = 'front' if row['front'] else labels.decimals(row['distance'], 1)
  cells['bands to front'] = Cell(distance, _key(row['distance']))
  for name in ('loss', 'headroom'):
    verdict = row[f'{name}_verdict']
    cells[f'{name} verdict'] = Cell(verdict, verdict, f'text {verdict}')
  return cells


def _number(row: pd.Series, name: str) -> str:
  """A number with the sign of a bound and, for some, its interval."""
  text = functools.partial(_plain, name)
  if pd.isna(row[name]):
    return ''
  shown = _bounded(row, name)
  low, high = (row.get(f'{name}_{end}', float('nan')) for end in ('low', 'high'))
  if name not in _WITH_INTERVAL or pd.isna(low):
    return shown
  return f'{shown} ({text(low)}-{text(high)})'


def _bounded(row: pd.Series, name: str) -> str:
  """A number with the sign of a bound."""
  bound = next((part for part in row['censored'].split() if part[:-2] == name), '')
  return {'>=': '\u2265 ', '<=': '\u2264 '}.get(bound[-2:], '') + _plain(name, row[name])


def _plain(name: str, value: float) -> str:
  if name in _LOSSES:
    return labels.decimals(value)
  if name in curve.WIDTHS:
    return labels.decimals(value, 2)
  return labels.rounded(value, 2)


def _key(value: float) -> float | str:
  return '' if pd.isna(value) else float(value)


def _sentences(table: pd.DataFrame) -> Iterator[str]:
  """What the table says in words."""
  for _, of_size in table.groupby(table['is_baseline'].cumsum()):
    size = labels.parameters(of_size['parameters'].iloc[0])
    on_front = of_size[of_size['front']].sort_values('best_loss')
    if len(on_front):
      arms = [
          f'{row["arm"]} ({_bounded(row, "best_loss")}, {_bounded(row, "headroom")})'
          for _, row in on_front.iterrows()
      ]
      yield f'On the front at {size} (best loss, headroom): {"; ".join(arms)}.'
    for verdict in ('better', 'worse'):
      for what in ('loss', 'headroom'):
        named = list(of_size['arm'][of_size[f'{what}_verdict'] == verdict])
        listed = '; '.join(named)
        if len(named) > MOST_NAMED:
          listed = f'{len(named)} of {len(of_size) - 1} arms, see the table'
        if named:
          yield f'{verdict.capitalize()} than the baseline in {what} at {size}: {listed}.'
    if of_size['inert'].any():
      yield f'Inert at {size}: {"; ".join(of_size["arm"][of_size["inert"]])}.'
    for arm, why in front.at_edges(of_size):
      yield f'{arm} needs more rates at {size}: {why}.'
    lacking = of_size[of_size['missing'] > 0]
    listed = '; '.join(f'{row.arm} ({row.missing})' for row in lacking.itertuples())
    if len(lacking) > MOST_NAMED:
      listed = f'{lacking["missing"].sum()} of {len(lacking)} arms, see leaderboard.csv'
    if len(lacking):
      yield f'Runs without a result at {size}: {listed}.'
    unmatched = of_size['arm'][of_size['parameters'] != of_size['parameters'].iloc[0]]
    if len(unmatched):
      yield f'Not at the parameters of the baseline at {size}: {"; ".join(unmatched)}.'
  for found in controls.outcomes(table):
    size = labels.parameters(found.parameters)
    verdict, wanted = ('a tie' if name == 'tie' else name for name in (found.found, found.wanted))
    if found.is_right:
      outcome = 'as it must be'
    elif found.is_decided:
      outcome = f'but must be {wanted}'
    elif found.missing:
      outcome = f'without {found.missing}'
    else:
      outcome = f'more seeds would tell whether it is {wanted}, as it must be'
    yield f'Control: {found.arm} is {verdict} at {size}, {outcome}.'


def _plots(results: Results, table: pd.DataFrame) -> list[Plot]:
  """The front, and the curves of the arms of each place."""
  front_plot = Plot(
      'leaderboard_front',
      'Best loss and headroom of the arms',
      'Lower right is worse: a higher loss, and less room between the best and the critical'
      ' learning rate. No arm has both a lower loss and more headroom than those on the front.',
      functools.partial(plots.front, results, table),
  )
  can_be_drawn = table['is_baseline'] & table[['best_loss', 'headroom']].notna().all(axis='columns')
  found = [front_plot] if can_be_drawn.any() else []
  sizes = table_lib.sizes(results)
  for number, place in enumerate(dict.fromkeys(table['place'][~table['is_baseline']]), 1):
    name = place if place.isidentifier() else str(number)
    found.append(
        Plot(
            f'leaderboard_curves_{name}',
            f'Arms against the baseline{f": {place}" if place else ""}',
            'Final loss against learning rate; the dashed line is the baseline.',
            functools.partial(plots.curves, results, table, sizes, place),
        )
    )
  return found
