"""What a claim is, and how it is decided."""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from stability.analysis import lr_sensitivity
from stability.analysis.claims.evidence import Evidence, NotAbout, Undecided
from stability.config import fields

HOLDS, DOES_NOT_HOLD, UNDECIDED = 'holds', 'does not hold', 'undecided'
BEYOND = 'beyond'  # in the place of a figure: not of the paper


@dataclasses.dataclass(frozen=True)
class AtLeast:
  """A claim holds if its effect is this or more."""

  threshold: float

  def met(self, effect: float) -> bool:
    return effect >= self.threshold

  def __str__(self) -> str:
    return f'>= {self.threshold:g}'


@dataclasses.dataclass(frozen=True)
class MoreThan:
  """A claim holds if its effect is above this: of two things that are alike, none is better."""

  threshold: float

  def met(self, effect: float) -> bool:
    return effect > self.threshold

  def __str__(self) -> str:
    return f'> {self.threshold:g}'


@dataclasses.dataclass(frozen=True)
class AtMost:
  """A claim holds if its effect is this or less."""

  threshold: float

  def met(self, effect: float) -> bool:
    return effect <= self.threshold

  def __str__(self) -> str:
    return f'<= {self.threshold:g}'


def above_zero(value: Any) -> bool:
  """Any number above 0, among the values of a field."""
  return isinstance(value, numbers.Real) and value > 0


@dataclasses.dataclass(frozen=True)
class Claim:
  """A sentence, the paper's or another's, as a statistic that can come out against it.

  Thresholds come from the paper's words and the noise to be expected, and are not moved after a
  sweep: LR sensitivities of equal runs differ by about 10 % between seeds, so a higher one is one
  that is higher by 10 %.
  """

  figure: str  # 1 ... 13, C.1, E.1 ..., or BEYOND
  statement: str  # in our words
  measure: str  # what the effect is, with its unit
  holds: AtLeast | MoreThan | AtMost
  # Of the evidence narrowed to what the claim is about: the effect in each draw.
  statistic: Callable[[Evidence], pd.Series | np.ndarray]
  # Field -> the values it needs (or functions that tell them); all must be there. Runs with other
  # values are left aside.
  arms: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  # Field -> the values it may have. Runs with other values are left aside.
  where: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  # Column -> how many different values it needs.
  several: Mapping[str, int] = dataclasses.field(default_factory=dict)
  along: tuple[str, ...] = ()  # fields that move with the arms and are not held where the paper is
  still: tuple[str, ...] = ()  # fields that the sweep must not vary
  alone: tuple[str, ...] | None = None  # the only interventions it may vary; None: any
  # Raises NotAbout where the values of the narrowed runs do not suit it.
  suits: Callable[[Evidence], object] = lambda evidence: None
  probes: tuple[str, ...] = ()  # what it reads of the curves; * stands for every block's number


@dataclasses.dataclass(frozen=True)
class Verdict:
  """How a claim came out on a sweep."""

  verdict: str  # HOLDS, DOES_NOT_HOLD or UNDECIDED
  effect: float = float('nan')
  low: float = float('nan')  # 90 % interval by resampling whole seeds; NaN with one seed
  high: float = float('nan')
  n: int = 0  # runs that it was decided on, or would have been; 0: it is not about this sweep
  reason: str = ''  # why it is undecided


def narrow(claim: Claim, evidence: Evidence) -> Evidence:
  """The runs that a claim is about; NotAbout if there are none in this sweep."""
  groups = evidence.results.groups
  for field in groups:
    if field in claim.still or (claim.alone is not None and field not in claim.alone):
      raise NotAbout(f'the sweep varies {field} as well')
  named = {*claim.arms, *claim.where, *claim.several, *claim.along}
  for field in (*claim.arms, *claim.where, *claim.several):
    if field not in evidence.runs:
      raise NotAbout(f'the results do not tell {field}')
  for field, values in {**claim.arms, **claim.where}.items():
    evidence = evidence.only(_is_one_of(evidence.runs[field], values))
    if evidence.runs.empty:
      raise NotAbout(f'the sweep has no run with {field} = {" or ".join(map(_text, values))}')
  paper = fields.paper_values()
  for field in groups:
    if field in paper and field not in named and (evidence.runs[field] == paper[field]).any():
      evidence = evidence.only(evidence.runs[field] == paper[field])
  for field, values in claim.arms.items():
    for value in values:
      if not _is_one_of(evidence.runs[field], (value,)).any():
        raise NotAbout(f'the sweep has no run with {field} = {_text(value)}')
  for column, fewest in claim.several.items():
    count = evidence.runs[column].nunique()
    if count < fewest:
      raise NotAbout(f'the sweep has {count} values of {column}, {fewest} are needed')
  claim.suits(evidence)
  return evidence


def grows_in_one_way(evidence: Evidence) -> None:
  """For claims on size alone: with more parameters, shapes are neither narrower nor shallower."""
  shape = ['parameters', *evidence.results.sizes]
  shapes = evidence.runs[shape].drop_duplicates().sort_values(shape)
  if shapes['parameters'].duplicated().any() or not all(
      shapes[field].is_monotonic_increasing for field in evidence.results.sizes
  ):
    raise NotAbout('the sweep grows in more than one way')


def _is_one_of(column: pd.Series, values: tuple[Any, ...]) -> pd.Series:
  def fits(entry: Any) -> bool:
    return any(value(entry) if callable(value) else value == entry for value in values)

  return column.map(fits).astype(bool)


def _text(value: Any) -> str:
  return value.__name__ if callable(value) else str(value)


def is_about(claim: Claim, evidence: Evidence) -> bool:
  """Whether a sweep varies what the claim needs, whatever has come of its runs."""
  try:
    narrow(claim, evidence)
  except NotAbout:
    return False
  return True


def decide(claim: Claim, evidence: Evidence) -> Verdict:
  """Holds or not, if all runs it reads count, and if the seeds agree."""
  n = 0
  try:
    evidence = narrow(claim, evidence)
    if claim.probes and evidence.curves is None:
      raise NotAbout('the results tell nothing of what was inside the runs')
    n = len(evidence.runs)
    absent = evidence.runs['status'][evidence.runs['loss'].isna()].value_counts()
    if len(absent):
      raise Undecided(', '.join(f'{count} of {n} runs {name}' for name, count in absent.items()))
    effects = np.asarray(claim.statistic(evidence), float)
    if not np.isfinite(effects[0]):
      raise Undecided('the effect is not a finite number')
  except Undecided as undecided:
    n = 0 if isinstance(undecided, NotAbout) else n
    return Verdict(UNDECIDED, n=n, reason=str(undecided))
  effect, low, high = float(effects[0]), float('nan'), float('nan')
  met = claim.holds.met(effect)
  if evidence.seeds > 1:
    low, high = map(float, np.nanpercentile(effects[1:], lr_sensitivity.INTERVAL))
    if not claim.holds.met(low) == claim.holds.met(high) == met:
      reason = 'the threshold lies within the interval over seeds'
      return Verdict(UNDECIDED, effect, low, high, n, reason)
  return Verdict(HOLDS if met else DOES_NOT_HOLD, effect, low, high, n)
