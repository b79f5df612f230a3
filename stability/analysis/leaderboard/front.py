"""The Pareto front of best loss (low) and headroom (high), and how far arms are from it."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

# Differences that do not matter. 0.02 nats is 1 % of the losses of small runs and two to three
# times their standard deviation between seeds. 0.15 decades, a factor of 1.4, is what interpolation
# between rates half a decade apart can resolve.
LOSS_BAND = 0.02  # nats
HEADROOM_BAND = 0.15  # decades


def place(best_losses: np.ndarray, headrooms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Which arms are on the front, and how far each is from it.

  Args:
    best_losses: nats; NaN: unknown, so that the arm is not on the front.
    headrooms: likewise.

  Returns:
    Whether no other arm is at least as good in both and better in one; and the number of bands by
    which an arm would have to gain in loss and headroom at once for no other to be better in both;
    NaN if unknown.
  """
  costs_A = best_losses / LOSS_BAND
  gains_A = np.log10(headrooms) / HEADROOM_BAND
  # By how many bands the arm of a row is behind that of a column; comparisons with NaN are false.
  loss_AxA = costs_A[:, None] - costs_A
  gain_AxA = gains_A - gains_A[:, None]
  is_dominated_AxA = (loss_AxA >= 0) & (gain_AxA >= 0) & ((loss_AxA > 0) | (gain_AxA > 0))
  distance_A = np.fmax.reduce(np.minimum(loss_AxA, gain_AxA), axis=1)  # 0 to itself
  return ~is_dominated_AxA.any(axis=1) & ~np.isnan(distance_A), distance_A


def finalists(table: pd.DataFrame, count: int) -> list[str]:
  """The arms of a screening that go to the finals, nearest to the front first.

  These are the `count` arms with the smallest distance; of equal ones, those with the lower loss.
  The baseline, controls, inert arms and arms that lack runs are left out, and so are arms that need
  more rates first (see `at_edges`).

  Args:
    table: of one size, see table.leaderboard.
    count: how many.
  """
  may_be = table['distance'].notna() & (table['control'] == '') & ~table['is_baseline']
  may_be &= ~table['inert'] & (table['missing'] == 0)
  may_be &= ~table['arm'].isin([arm for arm, _ in at_edges(table)])
  ranked = table[may_be].sort_values(['distance', 'best_loss'], kind='stable')
  return list(ranked['arm'][:count])


def best_of_places(table: pd.DataFrame) -> dict[str, str]:
  """Place -> the first of its arms by the rule of `finalists`."""
  ranked = table.set_index('arm').loc[finalists(table, len(table))]
  return {place: of_place.index[0] for place, of_place in ranked.groupby('place', sort=False)}


def at_edges(table: pd.DataFrame) -> Sequence[tuple[str, str]]:
  """(arm, what is at which end of its grid) of the arms that need more rates there.

  These are arms whose loss is lowest at an end, or whose critical rate is above the highest rate.
  Arms that lack runs are left out: the rates beyond may be among those that have no result yet.
  """
  found = []
  for row in table[table['missing'] == 0].itertuples():
    if row.edge:
      where = {'low': 'lowest', 'high': 'highest'}[row.edge]
      found.append((row.arm, f'its loss is lowest at the {where} of its rates'))
    elif 'headroom>=' in row.censored.split():
      found.append((row.arm, 'it is stable at the highest of its rates'))
  return found
