"""Over which learning rates LR sensitivities are compared."""

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from stability.analysis import windows as windows_lib

Grid = tuple[float, ...]  # the learning rates of a size and intervention, in ascending order

MIN_LEARNING_RATES = 3  # LR sensitivity over fewer has little meaning


def of_all(
    grids: Sequence[Grid], windows: Sequence[windows_lib.Window] | None, *, are_whole: bool
) -> list[Grid] | None:
  """The learning rates at which to compare the LR sensitivities of several rows with equal windows.

  They are the rates that all rows share. In each window there must be at least MIN_LEARNING_RATES
  of them, the lowest and the highest rate of every row included: launch.next may choose other rates
  in each row, and LR sensitivity would then reflect which runs were trained. Whole grids that
  differ by a factor, such as those of optimizers, are kept.

  Args:
    grids: of the rows, within their windows.
    windows: of the rows; None: a single one without limits.
    are_whole: whether these are the grids of all sizes of their interventions, not parts of them.

  Returns:
    The rates of each row; None if the rows cannot be compared.
  """
  if len(set(grids)) == 1 or (are_whole and _are_moved(grids)):
    return list(grids)
  shared = set.intersection(*map(set, grids))
  for window in [(0.0, math.inf)] if windows is None else windows:
    of_window = [[rate for rate in grid if windows_lib.inside(rate, window)] for grid in grids]
    kept = [rate for rate in of_window[0] if rate in shared]
    ends = kept[:1] + kept[-1:]
    if any(rates != of_window[0] for rates in of_window) and (
        len(kept) < MIN_LEARNING_RATES or any(rates[:1] + rates[-1:] != ends for rates in of_window)
    ):
      return None
  return [tuple(sorted(shared))] * len(grids)


def with_one_grid(grids: Iterable[tuple[Hashable, Grid]]) -> set[Hashable]:
  """The interventions that have the same learning rates at all sizes, of pairs with their grids."""
  of_arm: dict[Hashable, set[Grid]] = {}
  for arm, grid in grids:
    of_arm.setdefault(arm, set()).add(grid)
  return {arm for arm, found in of_arm.items() if len(found) == 1}


def _are_moved(grids: Sequence[Grid]) -> bool:
  """Whether grids differ by a factor alone, up to the rounding of rates such as 0.003."""
  if len(set(map(len, grids))) > 1:
    return False
  steps = np.diff(np.log10(grids))
  return bool(np.ptp(steps, axis=0).max() < 0.1)
