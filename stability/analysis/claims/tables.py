"""Operations on tables of statistics, which have a column for each draw; see evidence.py."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from stability.analysis.claims.undecided import Undecided


def groups(table: pd.DataFrame, levels: list[str]) -> Iterable[tuple[tuple, pd.DataFrame]]:
  """The rows of each combination of values of these levels, by these values."""
  if not levels:
    yield (), table
  else:
    yield from table.groupby(level=levels, sort=False, dropna=False)


def of_rows(rows: dict[tuple, np.ndarray], levels: list[str]) -> pd.DataFrame:
  """A table of rows by the values of these levels."""
  # Without levels there is a single row, and the index is a placeholder.
  index = pd.MultiIndex.from_tuples(list(rows), names=levels) if levels else ['']
  return pd.DataFrame(np.array(list(rows.values())), index)


def pairs(
    table: pd.DataFrame, field: str, base: object, covaries: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Pairs the rows with other values of a field with the rows that have the value `base`.

  The rows of a pair differ in the field alone. Rows without a partner are left out.

  Args:
    table: with `field` among its levels.
    field: the field that is compared.
    base: the value with which the others are compared.
    covaries: levels that change along with the field and may also differ.

  Returns:
    The rows with other values, and a table of their partners with the same index.
  """
  dropped = [field, *(level for level in covaries if level in table.index.names)]
  is_base = table.index.get_level_values(field) == base
  partners, others = table[is_base].droplevel(dropped), table[~is_base]
  keys = others.index.droplevel(dropped)
  has_partner = keys.isin(partners.index)
  if not has_partner.any():
    raise Undecided(f'no two rows differ in {field} alone')
  partners = partners.groupby(level=partners.index.names, sort=False, dropna=False).mean()
  matched = partners.reindex(keys[has_partner]).set_axis(others.index[has_partner])
  return others[has_partner], matched


def ratios(
    table: pd.DataFrame, field: str, base: object, covaries: Sequence[str] = ()
) -> pd.DataFrame:
  """The LR sensitivity of each row divided by its partner's; see pairs and positive."""
  others, matched = pairs(table, field, base, covaries)
  return known(others) / positive(matched, {field: base, **dict.fromkeys(covaries)})


def log_ratios(
    table: pd.DataFrame, field: str, base: object, covaries: Sequence[str] = ()
) -> pd.DataFrame:
  """Logarithms of `ratios`; the rows must be positive, too."""
  others, matched = pairs(table, field, base, covaries)
  partners = positive(matched, {field: base, **dict.fromkeys(covaries)})
  return np.log(positive(others)) - np.log(partners)


def known(table: pd.DataFrame, instead: Mapping[str, object] | None = None) -> pd.DataFrame:
  """LR sensitivities; raises Undecided if that of a row is NaN, which a mean would leave out.

  Args:
    table: the rows; draws in which one is NaN become NaN in all.
    instead: values of levels that the message names instead of those of the index.
  """
  return _checked(table, table.notna(), 'no run of {} trains', instead)


def positive(table: pd.DataFrame, instead: Mapping[str, object] | None = None) -> pd.DataFrame:
  """LR sensitivities for divisors and logarithms; as `known`, and Undecided if one is 0."""
  table = known(table, instead)
  return _checked(table, table > 0, 'the LR sensitivity of {} is 0', instead)


def _checked(
    table: pd.DataFrame, is_good: pd.DataFrame, reason: str, instead: Mapping[str, object] | None
) -> pd.DataFrame:
  bad = table.index[~is_good[0]]
  if len(bad):
    key = bad[0] if isinstance(bad, pd.MultiIndex) else bad[:1]
    raise Undecided(reason.format(name(dict(zip(bad.names, key, strict=True)) | (instead or {}))))
  return table.where(is_good.all(), axis='columns')


def name(row: Mapping[str, object]) -> str:
  """A size and intervention in words, such as `parameters=9,216, model.qk_norm=none`."""
  parts = [
      f'{level}={value:,.0f}' if level == 'parameters' else f'{level}={value}'
      for level, value in row.items()
      if level is not None and value is not None
  ]
  return ', '.join(parts) or 'the sweep'


def differences(table: pd.DataFrame, field: str, base: object) -> pd.DataFrame:
  """Each row minus its partner with the value `base`; see pairs."""
  others, matched = pairs(table, field, base)
  return others - matched


def slopes(table: pd.DataFrame, level: str, drop: Iterable[str] = ()) -> pd.DataFrame:
  """Least-squares slopes of the values on ln(level): a row for each line of two or more points.

  The other levels distinguish the lines.

  Args:
    table: holds logarithms if the slopes are to be exponents of power laws.
    level: the independent variable, positive.
    drop: levels that change along with `level` and so do not distinguish lines.
  """
  table = table.droplevel([name for name in drop if name in table.index.names])
  others = [name for name in table.index.names if name != level]
  found = {}
  for key, rows in groups(table, others):
    x = np.log(rows.index.get_level_values(level).to_numpy(float))
    if len(set(x)) > 1:
      x = x - x.mean()
      found[key] = x @ rows.to_numpy() / (x @ x)
  if not found:
    raise Undecided(f'no line has 2 values of {level}')
  return of_rows(found, others)


def at_highest(table: pd.DataFrame, level: str) -> pd.DataFrame:
  """The rows with the highest value of a level."""
  values = table.index.get_level_values(level)
  return table[values == values.max()]


def at_lowest(table: pd.DataFrame, level: str) -> pd.DataFrame:
  """The rows with the lowest value of a level."""
  values = table.index.get_level_values(level)
  return table[values == values.min()]


def at(table: pd.DataFrame, level: str, value: object) -> pd.DataFrame:
  """The rows with a given value of a level; raises Undecided if there are none."""
  found = table[table.index.get_level_values(level) == value]
  if found.empty:
    raise Undecided(f'{level} = {value} has no rows')
  return found
