"""Which arm of a sweep has a higher critical learning rate than another one, beyond doubt."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from stability.analysis import results as results_lib
from stability.analysis.prediction import surface as surface_lib
from stability.analysis.prediction.observations import Observations
from stability.analysis.results import Results

MIN_HELP = 1.25  # a smaller factor between critical rates is within the error of interpolation
SURE = 0.95  # probability that all helps of a sweep are right


@dataclasses.dataclass(frozen=True)
class Help:
  """An arm with a higher critical learning rate than another one at the same size."""

  arm: tuple
  helper: tuple
  parameters: float  # of the largest size that both have
  factor: float  # how many times as high it is
  at_least: bool  # the grid ends before the helper's learning rates, so the factor is larger
  of_headroom: bool  # compared are the ratios of critical to best learning rate


def helps(
    results: Results, by_arm: Mapping[tuple, Observations], surface: surface_lib.RateSurface
) -> list[Help]:
  """Pairs each arm with the one whose critical rate exceeds its own the most, if any does.

  Two arms are compared at the largest size that both have. One helps if its rate is measured as at
  least MIN_HELP times as high, and is higher in the draws of the surface: in so many of them that
  all helps of a sweep, at most one for each arm but the best, are right with a probability of SURE.

  If the sweep varies what a learning rate means (results.not_comparable), the ratios of critical to
  best learning rate are compared. An arm whose own rates lie outside the grid is not compared.

  Args:
    results: the runs of a sweep.
    by_arm: see observations.by_intervention.
    surface: see surface.fit_arms.
  """
  columns = ['parameters', *results.sizes]
  of_headroom = results.not_comparable is not None
  curves = {}  # arm -> shape -> (log10 of what is compared, whether it is a bound)
  for arm, of_arm in by_arm.items():
    curve = of_arm.curves
    curve = curve[curve['critical_censored'] != -1]  # a size at which the arm does not train
    if of_headroom:  # a best rate above the grid says nothing of it
      curve = curve[curve['best_censored'] != 1]
    log_factor, is_bound = curve['log_critical'], curve['critical_censored'] != 0
    if of_headroom:
      log_factor = log_factor - curve['log_best']
      is_bound |= curve['best_censored'] != 0
    shapes = map(results_lib.key, curve[columns].itertuples(index=False))
    curves[arm] = dict(zip(shapes, zip(log_factor, is_bound, strict=True), strict=True))
  found = []
  for arm, own in curves.items():
    candidates = []
    for helper, other in curves.items():
      both = [shape for shape in own if shape in other]
      if helper == arm or not both:
        continue
      largest = max(both, key=lambda shape: shape[0])  # its parameters
      (log_factor, is_bound), (log_factor_helper, at_least) = own[largest], other[largest]
      factor = 10 ** (log_factor_helper - log_factor)
      if is_bound or factor < MIN_HELP:
        continue
      chance = _chance(surface, arm, helper, largest[0], of_headroom)
      if chance < (1 - SURE) / (len(curves) - 1):
        candidates.append(Help(arm, helper, largest[0], factor, bool(at_least), of_headroom))
    if candidates:
      found.append(max(candidates, key=lambda candidate: candidate.factor))
  return found


def _chance(
    surface: surface_lib.RateSurface,
    arm: tuple,
    helper: tuple,
    parameters: float,
    of_headroom: bool,
) -> float:
  """The probability that the helper's rate is not higher, at this size and for many seeds."""
  log_size = [np.log10(parameters)]
  own_D, other_D = (
      surface.critical(each, log_size).law_DxC[:, 0]
      - of_headroom * surface.best(each, log_size).law_DxC[:, 0]
      for each in (arm, helper)
  )
  return float((other_D <= own_D).mean())
