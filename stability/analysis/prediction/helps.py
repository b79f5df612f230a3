"""Which arms of a sweep surely have a higher critical learning rate than another one."""

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
  at_least: bool  # one of the two critical rates is a bound, so the factor is larger
  of_headroom: bool  # compared are the ratios of critical to best learning rate


def helps(
    results: Results, by_arm: Mapping[tuple, Observations], surface: surface_lib.RateSurface
) -> list[Help]:
  """Pairs each arm with the one whose critical rate exceeds its own the most, if any does.

  Two arms are compared at the largest size that both have. One helps if its rate is measured as at
  least MIN_HELP times as high, and is higher in the draws of the surface but for a share of at most
  (1 - SURE) / (arms - 1), so that all helps of a sweep are right with a probability of SURE
  (Bonferroni: there is at most one for each arm but the best).

  If the sweep varies what a learning rate means (results.not_comparable), the ratios of critical to
  best learning rate are compared. Bounds count where they still show that one rate is higher.

  Args:
    results: the runs of a sweep.
    by_arm: see observations.by_arm.
    surface: see surface.fit_arms.
  """
  columns = ['parameters', *results.sizes]
  of_headroom = results.not_comparable is not None
  curves = {}  # arm -> shape -> (log10 of what is compared, whether it is a bound)
  for arm, of_arm in by_arm.items():
    curve = of_arm.curves
    if of_headroom:  # a best rate beyond the grid says nothing of it
      curve = curve[curve['best_censored'] == 0]
    log_factor = curve['log_critical'] - (curve['log_best'] if of_headroom else 0)
    shapes = map(results_lib.key, curve[columns].itertuples(index=False))
    bounded = zip(log_factor, curve['critical_censored'], strict=True)
    curves[arm] = dict(zip(shapes, bounded, strict=True))
  found = []
  for arm, own in curves.items():
    candidates = []
    for helper, other in curves.items():
      both = [shape for shape in own if shape in other]
      if helper == arm or not both:
        continue
      largest = max(both, key=lambda shape: shape[0])  # its parameters
      (log_factor, censored), (log_factor_helper, helper_censored) = own[largest], other[largest]
      factor = 10 ** (log_factor_helper - log_factor)
      if censored == 1 or helper_censored == -1 or not factor >= MIN_HELP:
        continue
      at_least = censored == -1 or helper_censored == 1
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
