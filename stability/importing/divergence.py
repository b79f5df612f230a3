"""Tells from a curve whether its run diverged: whether its loss is not a finite number any more."""

import numpy as np

from stability.importing import columns as columns_lib
from stability.importing.cleaning import Curve

# A loss that is missing for this many of its intervals is not a finite number: pandas writes NaN as
# an empty cell. The interval is the largest of the last ones, as a trainer may log more at first.
MISSING = 3
_LAST_INTERVALS = 10


def has_diverged(curve: Curve) -> bool:
  """Whether the loss becomes NaN or infinite for good, or is no longer logged because it did."""
  losses = _losses(curve)
  after = np.arange(len(curve.steps)) > _last_finite(losses)
  return bool((np.isinf(losses).any(axis=0) & after).any() or seems_not_finite(curve).any())


def seems_not_finite(curve: Curve) -> np.ndarray:
  """The steps of a run's end at which no loss was logged, although its trainer logs one there.

  None, unless they go on for MISSING intervals. Steps with a metric that is never logged together
  with the loss do not count, since they are evaluations and summaries.
  """
  found, intervals = _end_without_loss(curve)
  return found & (intervals >= MISSING)


def may_not_be_finite(curve: Curve) -> bool:
  """Whether the curve ends with such steps for less than MISSING intervals, which may be chance."""
  return 1 <= _end_without_loss(curve)[1] < MISSING


def _end_without_loss(curve: Curve) -> tuple[np.ndarray, float]:
  """Such steps, and for how many intervals they go on."""
  losses = _losses(curve)
  is_finite, last = np.isfinite(losses).any(axis=0), _last_finite(losses)
  found = np.arange(len(curve.steps)) > last
  if last < 0 or np.isinf(losses[:, found]).any():
    return np.zeros(len(curve.steps), bool), 0.0
  for values in curve.values.values():
    if np.isnan(values[is_finite]).all():
      found &= np.isnan(values)
  steps = curve.steps[is_finite] if is_finite.sum() > 1 else curve.steps
  interval = np.diff(steps)[-_LAST_INTERVALS:].max(initial=0)
  reach = curve.steps[found].max(initial=curve.steps[last]) - curve.steps[last]
  return found, reach / interval if interval else 0.0


def _losses(curve: Curve) -> np.ndarray:
  """The training and validation losses of each step, a row each."""
  names = [
      name
      for name in curve.values
      if name == 'loss' or columns_lib.key(name) in columns_lib.VALIDATION
  ]
  return np.array([curve.values[name] for name in names]).reshape(len(names), len(curve.steps))


def _last_finite(losses: np.ndarray) -> int:
  return int(np.flatnonzero(np.isfinite(losses).any(axis=0)).max(initial=-1))
