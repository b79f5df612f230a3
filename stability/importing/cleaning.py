"""The curve of a run out of the rows that its trainer logged: each step once, in order."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from stability.importing import columns as columns_lib

MAX_RESTARTS = 0.1  # of a curve's rows; if steps go back more often, the rows are not in order
_FEW = 20  # so many may be restarts in any case, if each looks like one
# A cell that is NaN, while rows are collected; an empty one is NaN there. `tidy` decides between
# "not a finite number" and "not logged".
SAID_NAN = -np.inf


@dataclasses.dataclass(frozen=True)
class Curve:
  """What a run logged, by ascending step."""

  steps: np.ndarray  # whole numbers
  # metric -> value of each step; NaN: not logged; infinite: logged, but not a finite number
  values: dict[str, np.ndarray]
  repeated: int  # rows that a restart logged again
  unordered: int  # rows, not in order, of a step at which another row has the same metric


def tidy(steps: np.ndarray, values: dict[str, np.ndarray]) -> Curve:
  """The rows of a run by ascending step, each step once; of equal steps, the later row counts.

  A restart from an earlier step replaces all rows from that step on, if they have a metric that it
  logs again: a file may have all training losses first and then all validation losses. Rows that
  are merely not in order are sorted.
  """
  values = _logged(values)
  back = np.flatnonzero(np.diff(steps) < 0) + 1
  keep, are_restarts = np.ones(len(steps), bool), _are_restarts(steps, back)
  if are_restarts:
    for start, end in itertools.pairwise([*back, len(steps)]):
      earlier = np.flatnonzero(keep[:start])
      seen, segment = steps[earlier], steps[start:end]
      later = earlier[seen >= segment[0]]
      if (steps[later] <= segment.max()).any() and any(
          np.isfinite(column[later]).any() and np.isfinite(column[start:end]).any()
          for column in values.values()
      ):
        keep[later] = False
  rows = np.flatnonzero(keep)
  rows = rows[np.argsort(steps[rows], kind='stable')]
  steps, values = steps[rows], {name: column[rows] for name, column in values.items()}
  if any(_is_filled_with_nan(column) for column in values.values()):
    values = {name: np.where(c == SAID_NAN, np.nan, c) for name, c in values.items()}
  logged = [] if are_restarts else [steps[~np.isnan(column)] for column in values.values()]
  unordered = max((len(of_metric) - len(np.unique(of_metric)) for of_metric in logged), default=0)
  return _merged(steps, _logged(values), int((~keep).sum()), unordered)


def _are_restarts(steps: np.ndarray, back: np.ndarray) -> bool:
  """Whether the run was restarted at the rows where steps go back.

  What a restart logs has several rows and repeats a step.
  """
  if len(back) <= max(1, MAX_RESTARTS * len(steps)):
    return True
  return len(back) <= _FEW and all(
      end - start > 1 and np.isin(steps[start:end], steps[:start]).any()
      for start, end in itertools.pairwise([*back, len(steps)])
  )


def _logged(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The metrics with any value."""
  return {name: column for name, column in values.items() if not np.isnan(column).all()}


def _is_filled_with_nan(values: np.ndarray) -> bool:
  """Whether cells of a metric seem to be NaN because it was not logged.

  Then there are at least as many of them as numbers, with a number after them. Of a run that
  diverged they are the last ones, and what overflows once is rare.
  """
  finite = np.flatnonzero(np.isfinite(values))
  return len(finite) > 0 and (values[: finite[-1]] == SAID_NAN).sum() >= len(finite)


def without_filled(curve: Curve, names: Mapping[str, str]) -> Curve:
  """The curve without metrics that are NaN in each row because the run never logged them.

  A file of several runs may be so filled. A training loss may be NaN from the start, and so may
  a validation loss, unless the training loss is finite.

  Args:
    curve: the curve.
    names: the name under which each metric will be stored.
  """
  values = curve.values
  losses = [column for metric, column in values.items() if names[metric] == 'loss']
  is_finite = any(np.isfinite(c).any() and not np.isinf(c).any() for c in losses)

  def is_filled(metric: str, column: np.ndarray) -> bool:
    if columns_lib.key(names[metric]) in columns_lib.VALIDATION:
      return is_finite and bool((column == SAID_NAN).all())
    return names[metric] != 'loss' and bool((np.isnan(column) | (column == SAID_NAN)).all())

  logged = {metric: c for metric, c in values.items() if not is_filled(metric, c)}
  return dataclasses.replace(curve, values=logged)


def _merged(
    steps: np.ndarray, values: dict[str, np.ndarray], repeated: int, unordered: int
) -> Curve:
  """The curve with one row per step; `steps` ascend."""
  if (np.diff(steps) == 0).any():
    # W&B logs the metrics of a step in several rows. `last` skips NaN.
    merged = pd.DataFrame(values, np.arange(len(steps))).groupby(steps).last()
    steps = merged.index.to_numpy()
    values = {name: merged[name].to_numpy() for name in merged}
  return Curve(steps, values, repeated, unordered)


def joined(parts: list[Curve]) -> Curve:
  """The curve of a run whose metrics were logged separately."""
  if len(parts) == 1:
    return parts[0]
  tables = [pd.DataFrame(part.values, part.steps) for part in parts]
  table = pd.concat(tables).sort_index(kind='stable')
  values = {name: table[name].to_numpy() for name in table}
  repeated, unordered = (
      max(getattr(part, name) for part in parts) for name in ('repeated', 'unordered')
  )
  return _merged(table.index.to_numpy(), values, repeated, unordered)


def overlap(one: Curve, other: Curve) -> bool:
  """Whether two curves are of different runs, as a metric differs at steps that both have.

  A run that was continued repeats few steps, so most steps of the shorter curve must be within
  the range of the longer one. Copies of a file are of one run.
  """
  for name in one.values.keys() & other.values.keys():
    first, second = (
        pd.Series(curve.values[name], curve.steps).dropna() for curve in (one, other)
    )
    shorter, longer = sorted((first, second), key=len)
    within = shorter[(shorter.index >= longer.index[0]) & (shorter.index <= longer.index[-1])]
    if 2 * len(within) > len(shorter) and not within.equals(longer.reindex(within.index)):
      return True
  return False


def alone(curve: Curve) -> Curve:
  """A curve of one metric, without the steps at which it was not logged."""
  rows = np.zeros(len(curve.steps), bool)
  for column in curve.values.values():
    rows |= ~np.isnan(column)
  values = {name: column[rows] for name, column in curve.values.items()}
  return dataclasses.replace(curve, steps=curve.steps[rows], values=values)
