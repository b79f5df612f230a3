"""Claims on width, depth and parameterization (3.2.3, 3.2.4; Figures 7, 8, E.2 to E.5, E.14)."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from stability.analysis.claims import tables
from stability.analysis.claims.attention import QK_NORM, benefit_of_qk_norm
from stability.analysis.claims.claim import AtLeast, AtMost, Claim, MoreThan
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.families import QK_NORMS
from stability.analysis.claims.undecided import NotApplicable, Undecided
from stability.analysis.instability import UNSTABLE_LOGIT
from stability.analysis.results import LOGIT

WIDTH, DEPTH = 'model.width', 'model.depth'
NAME, RATE_SCALE = 'parameterization.name', 'optimizer.learning_rate_scale'
MIN_SHAPES = 3  # for each way of scaling
MAX_SIZE_RATIO = 1.25  # parameter counts up to this ratio apart count as matched


def require_shapes(*ways: str) -> Callable[[Evidence], None]:
  """The precondition that the sweep has MIN_SHAPES shapes for each of these ways of scaling."""

  def check(e: Evidence) -> None:
    for way in ways:
      if len(scaled_in(e, way).runs[[WIDTH, DEPTH]].drop_duplicates()) < MIN_SHAPES:
        raise NotApplicable(f'the sweep has fewer than {MIN_SHAPES} shapes scaled in {way}')

  return check


def scaled_in(e: Evidence, way: str) -> Evidence:
  """The runs whose shapes are scaled in one way: width, depth or both.

  width: the shapes with the most common depth; depth: those with the most common width; both: the
  shapes with neither of these, and the shape with both.
  """
  shapes = e.runs[[WIDTH, DEPTH]].drop_duplicates()
  depth = shapes.groupby(DEPTH)[WIDTH].nunique().idxmax()
  width = shapes.groupby(WIDTH)[DEPTH].nunique().idxmax()
  is_wide, is_deep = e.runs[DEPTH] == depth, e.runs[WIDTH] == width
  return e.only({'width': is_wide, 'depth': is_deep, 'both': is_wide == is_deep}[way])


def _sensitivity_slope(e: Evidence, way: str) -> pd.Series:
  table = np.log(tables.positive(scaled_in(e, way).lr_sensitivity(across_sizes=True)))
  return tables.slopes(table, 'parameters', e.results.sizes).mean()


def _best_at_largest(e: Evidence, way: str) -> pd.Series:
  best = scaled_in(e, way).best_loss()
  of_others = [scaled_in(e, other).runs['parameters'].max() for other in ('width', 'depth')]
  largest = best.index.get_level_values('parameters').max()
  if not all(1 / MAX_SIZE_RATIO <= largest / other <= MAX_SIZE_RATIO for other in of_others):
    raise Undecided('the largest shapes are not matched in parameters')
  return tables.at_highest(best, 'parameters').mean()


def _width_minus_depth(e: Evidence) -> pd.Series:
  return _best_at_largest(e, 'width') - _best_at_largest(e, 'depth')


def _others_minus_both(e: Evidence) -> pd.Series:
  wide, deep, both = (_best_at_largest(e, way) for way in ('width', 'depth', 'both'))
  return np.fmin(wide, deep) - both


def _extrapolation_error(e: Evidence, way: str) -> pd.Series:
  """The error (nats) of the largest shape's loss, predicted by a power law through smaller ones."""
  best = np.log(scaled_in(e, way).best_loss())
  sizes = best.index.get_level_values('parameters')
  smaller = best[sizes < sizes.max()]
  largest = tables.at_highest(best, 'parameters').mean()
  slope = tables.slopes(smaller, 'parameters', e.results.sizes).mean()
  x = np.log(smaller.index.get_level_values('parameters').to_numpy(float))
  predicted = smaller.mean() + slope * (np.log(sizes.max()) - x.mean())
  return (np.exp(predicted) - np.exp(largest)).abs()


def _others_minus_both_in_error(e: Evidence) -> pd.Series:
  wide, deep, both = (_extrapolation_error(e, way) for way in ('width', 'depth', 'both'))
  return np.fmin(wide, deep) - both


def _increase_in_unstable_logits(e: Evidence, way: str) -> pd.Series:
  e = scaled_in(e, way)
  unstable = e.unstable().astype(bool) & (e.max_over_training(LOGIT) > UNSTABLE_LOGIT)
  shares = e.mean(unstable.astype(float))
  largest = tables.at_highest(shares, 'parameters')
  smallest = tables.at_lowest(shares, 'parameters')
  rates = [set(shares.index.get_level_values('learning_rate')) for shares in (largest, smallest)]
  if rates[0] != rates[1]:
    raise Undecided('the smallest and the largest size have different learning rates')
  return largest.mean() - smallest.mean()


def _lower_increase_in_unstable_logits(e: Evidence) -> pd.Series:
  wide, deep = (_increase_in_unstable_logits(e, way) for way in ('width', 'depth'))
  return np.fmin(wide, deep)


def _shift_of_optimum(e: Evidence, field: str, value: str, base: str) -> pd.Series:
  """The shift (decades) of the optimal LR from the smallest to the largest size at a field's value.

  Raises Undecided if there is no shift at the base value either: the field then shows no effect.
  """
  shift, base_shift = (_shift(e.only(e.runs[field] == each)) for each in (value, base))
  if _FACTOR_2.is_met(shift[0]) and _FACTOR_2.is_met(base_shift[0]):
    raise Undecided(
        f'with {field} = {base} it does not change either: by {base_shift[0]:.2f} decades'
    )
  return shift


def _shift(e: Evidence) -> pd.Series:
  rates = e.best_learning_rate()
  smallest, largest = tables.at_lowest(rates, 'parameters'), tables.at_highest(rates, 'parameters')
  return (largest.mean() - smallest.mean()).abs()


def _muparam_over_standard(e: Evidence) -> pd.Series:
  return np.exp(tables.log_ratios(e.lr_sensitivity(), NAME, 'standard').mean())


def _gain(e: Evidence, base: str) -> pd.Series:
  """The best loss of the base minus that of the other parameterization, at the largest size."""
  best = tables.at_highest(e.best_loss(), 'parameters')
  return -tables.differences(best, NAME, base).mean()


def _divergence_of_full_at_one(e: Evidence) -> pd.Series:
  diverged, high = e.runs['status'] == 'diverged', e.runs['learning_rate'] >= 1
  full = (e.runs[NAME] == 'muparam_full') & e.runs[QK_NORM].isin(QK_NORMS.members)
  if not (diverged & high).any():
    raise Undecided('no run diverged at a learning rate of 1 or more')
  return e.fraction(diverged, high & full)


def _require_rate_of_one(e: Evidence) -> None:
  if not (e.runs['learning_rate'] >= 1).any():
    raise NotApplicable('the sweep has no learning rate of 1 or more')


_SHAPES = {WIDTH: MIN_SHAPES, DEPTH: MIN_SHAPES, 'learning_rate': 3}
_SIZES = {'parameters': 2, 'learning_rate': 3}
_SHIFT = 'decades between the optimal learning rates of the smallest and the largest size'
_FACTOR_2 = AtMost(0.3)

CLAIMS = (
    Claim(
        '7',
        'LR sensitivity increases faster with depth than with width.',
        'slope of ln(LR sensitivity) on ln(parameters), depth minus width',
        AtLeast(0.05),
        lambda e: _sensitivity_slope(e, 'depth') - _sensitivity_slope(e, 'width'),
        min_unique=_SHAPES,
        precondition=require_shapes('width', 'depth'),
    ),
    Claim(
        '7',
        'At the largest size, scaling depth alone gives a lower loss than scaling width alone.',
        'best loss, width minus depth (nats)',
        MoreThan(0.0),
        _width_minus_depth,
        min_unique=_SHAPES,
        precondition=require_shapes('width', 'depth'),
    ),
    Claim(
        'E.2',
        'Without qk-layernorm, attention logits make more runs unstable at larger sizes, scaled in'
        ' width or in depth.',
        'fraction of runs that are unstable with logits above 1e4, largest minus smallest size,'
        ' lower of the two',
        AtLeast(0.1),  # less than one of seven learning rates
        _lower_increase_in_unstable_logits,
        where={QK_NORM: ('none',)},
        min_unique=_SHAPES,
        precondition=require_shapes('width', 'depth'),
        probes=(LOGIT,),
    ),
    Claim(
        'E.3',
        'At the largest size, scaling width and depth together gives the lowest loss.',
        'best loss, lower of width and depth alone minus both together (nats)',
        MoreThan(0.0),
        _others_minus_both,
        min_unique=_SHAPES,
        precondition=require_shapes('width', 'depth', 'both'),
    ),
    Claim(
        'E.3',
        'The loss of the largest size is predicted best when width and depth are scaled together.',
        'error of a power law through the smaller shapes, lower of width and depth alone minus'
        ' both together (nats)',
        MoreThan(0.0),
        _others_minus_both_in_error,
        where={QK_NORM: (QK_NORMS,)},
        min_unique=_SHAPES,
        precondition=require_shapes('width', 'depth', 'both'),
    ),
    Claim(
        '8',
        'With muParam, the optimal learning rate does not change with size.',
        _SHIFT,
        _FACTOR_2,
        lambda e: _shift_of_optimum(e, NAME, 'muparam_simple', 'standard'),
        requires={NAME: ('standard', 'muparam_simple')},
        min_unique=_SIZES,
    ),
    Claim(
        '8',
        'muParam does not lower LR sensitivity.',
        'ratio of LR sensitivity, muParam / standard, geometric mean over sizes',
        AtLeast(0.9),
        _muparam_over_standard,
        is_ratio=True,
        requires={NAME: ('standard', 'muparam_simple')},
        min_unique=_SIZES,
    ),
    Claim(
        '8',
        'muParam does not lower the best loss of the largest size.',
        'best loss, standard minus muParam (nats)',
        AtMost(0.02),
        lambda e: _gain(e, 'standard'),
        requires={NAME: ('standard', 'muparam_simple')},
        min_unique=_SIZES,
    ),
    Claim(
        'E.4',
        'With muParam, LR sensitivity is higher without qk-layernorm than with it at every size.',
        'lowest ratio of LR sensitivity, without / with qk-layernorm, over sizes',
        AtLeast(1.1),
        benefit_of_qk_norm,
        is_ratio=True,
        requires={QK_NORM: ('none', QK_NORMS)},
        where={NAME: ('muparam_simple',)},
        min_unique={'learning_rate': 3},
    ),
    Claim(
        'E.4',
        'With muParam and without qk-layernorm, the optimal learning rate does not change with'
        ' size.',
        _SHIFT,
        _FACTOR_2,
        lambda e: _shift_of_optimum(e, NAME, 'muparam_simple', 'standard'),
        requires={NAME: ('standard', 'muparam_simple')},
        where={QK_NORM: ('none',)},
        min_unique=_SIZES,
    ),
    Claim(
        'E.5',
        'Full muParam with qk-layernorm trains without diverging at a learning rate of 1.',
        'fraction of its runs at a learning rate of 1 or more that diverged',
        AtMost(0.0),
        _divergence_of_full_at_one,
        requires={NAME: ('muparam_full', 'standard')},
        where={QK_NORM: (QK_NORMS, 'none')},
        precondition=_require_rate_of_one,
    ),
    Claim(
        'E.5',
        'Compared with simple muParam, full muParam does not lower the best loss of the largest'
        ' size.',
        'best loss, simple minus full (nats)',
        AtMost(0.02),
        lambda e: _gain(e, 'muparam_simple'),
        requires={NAME: ('muparam_simple', 'muparam_full')},
        min_unique=_SIZES,
    ),
    Claim(
        'E.14',
        "With learning rates scaled by the parameters' RMS, the optimal learning rate does not"
        ' change with size.',
        _SHIFT,
        _FACTOR_2,
        lambda e: _shift_of_optimum(e, RATE_SCALE, 'parameter_rms', 'none'),
        requires={RATE_SCALE: ('none', 'parameter_rms')},
        min_unique=_SIZES,
    ),
)
