"""Claims, and how they are decided on a sweep."""

import dataclasses
import functools
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from stability.analysis import lr_sensitivity
from stability.analysis.claims.columns import Column
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.families import Family, closest_to_paper
from stability.analysis.claims.undecided import NotApplicable, Undecided
from stability.config import fields

HOLDS, DOES_NOT_HOLD, UNDECIDED = 'holds', 'does not hold', 'undecided'
_LEVEL = 0.9  # of intervals; fixed, as the thresholds are
EXTENSION = 'beyond'  # takes the place of a figure number in claims that are not from the paper
_COMPARISONS = {'>=': operator.ge, '>': operator.gt, '<=': operator.le}


@dataclasses.dataclass(frozen=True)
class Criterion:
  """How an effect must compare with a threshold."""

  comparison: str  # one of _COMPARISONS
  threshold: float

  def is_met(self, effect: float) -> bool:
    return _COMPARISONS[self.comparison](effect, self.threshold)

  def __str__(self) -> str:
    return f'{self.comparison} {self.threshold:g}'


AtLeast = functools.partial(Criterion, '>=')
MoreThan = functools.partial(Criterion, '>')  # a tie does not meet it
AtMost = functools.partial(Criterion, '<=')


def positive(value: Any) -> bool:
  """Whether a field's value is a number above 0."""
  return isinstance(value, numbers.Real) and value > 0


# The values allowed for a field. An entry is a value, a family (any of its members), or a function
# that returns true for allowed values.
Allowed = tuple[Any | Family | Callable[[Any], bool], ...]


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement of the paper or of another source, with a statistic that may contradict it.

  Thresholds come from the wording of the paper and the expected noise, and are not changed after a
  sweep has been run. LR sensitivities of equal runs differ by about 10 % between seeds, so
  "higher" means higher by at least 10 %.
  """

  figure: str  # 1 ... 13, C.1, E.1 ..., or EXTENSION
  statement: str  # paraphrases the source
  measure: str  # what the effect is, with its unit
  criterion: Criterion  # which effects agree with the statement
  # Computes the effect from the selected runs: one value per draw of the seeds.
  statistic: Callable[[Evidence], pd.Series | np.ndarray]
  # Field -> values that must all occur in the sweep. Runs with other values are not used.
  requires: Mapping[str, Allowed] = dataclasses.field(default_factory=dict)
  # Field -> values that may occur in the sweep. Runs with other values are not used.
  where: Mapping[str, Allowed] = dataclasses.field(default_factory=dict)
  # Column -> the minimum number of its distinct values in the sweep.
  min_unique: Mapping[str, int] = dataclasses.field(default_factory=dict)
  # Fields that may change along with those above; they are not held at the paper's value.
  covaries: tuple[str, ...] = ()
  constant: tuple[str, ...] = ()  # fields that the sweep must not vary
  # The only fields that may vary besides size, learning rate and seed; None: all may.
  only_varies: tuple[str, ...] | None = None
  is_ratio: bool = False  # whether the effect is a positive ratio: intervals on a log scale
  # Raises NotApplicable if the statistic makes no sense for the selected runs.
  precondition: Callable[[Evidence], object] = lambda evidence: None
  # Columns of the curves that the statistic reads; * stands for every block's number.
  probes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The outcome of a claim on a sweep."""

  verdict: str  # HOLDS, DOES_NOT_HOLD or UNDECIDED
  effect: float = float('nan')
  low: float = float('nan')  # 90 % interval over seeds; NaN with one seed
  high: float = float('nan')
  n: int = 0  # runs used; 0 if the claim does not apply to the sweep
  reason: str = ''  # why it is undecided
  variant: str = ''  # `field=value` of the family member that replaces the paper's value


def select(claim: Claim, evidence: Evidence) -> Evidence:
  """The runs on which a claim is decided; raises NotApplicable if the sweep lacks what it needs."""
  groups = evidence.results.groups
  for field in groups:
    is_allowed = claim.only_varies is None or field in claim.only_varies
    if field in claim.constant or not is_allowed:
      raise NotApplicable(f'the sweep varies {field} as well')
  named = {*claim.requires, *claim.where, *claim.min_unique, *claim.covaries}
  for field in (*claim.requires, *claim.where, *claim.min_unique):
    if field not in evidence.runs:
      raise NotApplicable(f'the results have no column {field}')
  kept_N, variants = np.ones(len(evidence.runs), bool), {}
  for field, allowed in {**claim.requires, **claim.where}.items():
    kept_N &= _matches(evidence.column(field), allowed)
    if not kept_N.any():
      raise NotApplicable(f'the sweep has no run with {field} = {" or ".join(map(_text, allowed))}')
  for field in (field for field in groups if field not in named):
    column = evidence.column(field)
    if (value := closest_to_paper(field, column.among(kept_N))) is not None:
      kept_N &= _matches(column, (value,))
      variants[field] = value
  for field, allowed in {**claim.requires, **claim.where}.items():
    column = evidence.column(field)
    for family in (entry for entry in allowed if isinstance(entry, Family)):
      # Of the members of a family, the one that represents it.
      if (chosen := family.choose(column.among(kept_N))) is not None:
        kept_N &= ~_matches(column, (family,)) | _matches(column, (chosen,))
        variants[field] = chosen
  for field, values in claim.requires.items():
    for value in values:
      if not (kept_N & _matches(evidence.column(field), (value,))).any():
        raise NotApplicable(f'the sweep has no run with {field} = {_text(value)}')
  evidence = evidence.only(kept_N).with_variants(variants)
  for column, needed in claim.min_unique.items():
    count = evidence.runs[column].nunique()
    if count < needed:
      raise NotApplicable(f'the sweep has {count} values of {column}, {needed} are needed')
  claim.precondition(evidence)
  return evidence


def require_one_way_of_scaling(evidence: Evidence) -> None:
  """The precondition of claims on size alone: no dimension shrinks as the parameters grow."""
  shape = ['parameters', *evidence.results.sizes]
  shapes = evidence.runs[shape].drop_duplicates().sort_values(shape)
  if shapes['parameters'].duplicated().any() or not all(
      shapes[field].is_monotonic_increasing for field in evidence.results.sizes
  ):
    raise NotApplicable('the sweep scales models up in more than one way')


def _matches(column: Column, allowed: Allowed) -> np.ndarray:
  """A mask [N] of the runs whose value is allowed."""

  def is_match(value: Any, entry: Any) -> bool:
    if isinstance(entry, Family):
      return value in entry.members
    return entry(value) if callable(entry) else entry == value

  return column.where(lambda value: any(is_match(value, entry) for entry in allowed))


def _text(entry: Any) -> str:
  """An allowed value, family or function in words."""
  if isinstance(entry, Family):
    return entry.name
  return f'a {entry.__name__} number' if callable(entry) else str(entry)


def applies(claim: Claim, evidence: Evidence) -> bool:
  """Whether a sweep has the runs that a claim needs, regardless of their status."""
  try:
    select(claim, evidence)
  except NotApplicable:
    return False
  return True


def decide(claim: Claim, evidence: Evidence) -> Verdict:
  """The verdict on a claim.

  It is undecided if a selected run does not count, or if the 90 % interval over seeds contains the
  threshold. The seeds are those that all sizes, interventions and learning rates have; a single one
  has no interval. Learning rates that only some seeds have do not count where most have several
  seeds, see Evidence.with_common_seeds.
  """
  n = 0
  try:
    evidence = select(claim, evidence)
    if claim.probes and evidence.curves is None:
      raise NotApplicable('the results have no probes')
    n = len(evidence.runs)
    absent = evidence.runs['status'][evidence.runs['loss'].isna()].value_counts()
    if len(absent):
      raise Undecided(', '.join(f'{count} of {n} runs {name}' for name, count in absent.items()))
    evidence = evidence.with_common_seeds()
    n = len(evidence.runs)
    effects = np.asarray(claim.statistic(evidence), float)
    if not np.isfinite(effects[0]):
      raise Undecided('the effect is not a finite number')
  except NotApplicable as reason:
    return Verdict(UNDECIDED, reason=str(reason))
  except Undecided as reason:
    return Verdict(UNDECIDED, n=n, reason=str(reason), variant=_variant(evidence))
  effect, low, high = float(effects[0]), float('nan'), float('nan')
  met, reason = claim.criterion.is_met(effect), ''
  verdict = HOLDS if met else DOES_NOT_HOLD
  if evidence.seeds > 1:
    low, high = lr_sensitivity.interval(
        effects, evidence.seeds, _LEVEL, of_ratio=claim.is_ratio
    )
    if not np.isfinite([low, high]).all():
      verdict, reason = UNDECIDED, 'the effect of resampled seeds is not a finite number'
    elif not claim.criterion.is_met(low) == claim.criterion.is_met(high) == met:
      verdict, reason = UNDECIDED, 'the threshold lies within the interval over seeds'
  return Verdict(verdict, effect, low, high, n, reason, _variant(evidence))


def _variant(evidence: Evidence) -> str:
  """`field=value` of each value that replaces the paper's."""
  paper = fields.paper_values()
  used = [(field, value) for field, value in evidence.variants.items() if value != paper[field]]
  return ', '.join(f'{field}={value}' for field, value in used)
