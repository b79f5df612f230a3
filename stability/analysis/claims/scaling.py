"""Width, depth and parameterization (sections 3.2.3, 3.2.4, Figures 7, 8, E.2 ... E.5, E.14)."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from stability.analysis.claims import evidence as ev
from stability.analysis.claims.claim import AtLeast, AtMost, Claim, MoreThan
from stability.analysis.claims.evidence import Evidence, NotAbout, Undecided
from stability.analysis.results import LOGIT

WIDTH, DEPTH = 'model.width', 'model.depth'
QK_NORM = 'model.qk_norm'
NAME, RATE_SCALE = 'parameterization.name', 'optimizer.learning_rate_scale'
SHAPES = 3  # that a way of growing needs
ALIKE = 1.25  # as many parameters, up to this factor


def has_ways(*ways: str) -> Callable[[Evidence], None]:
  """Refuses a sweep without enough shapes that grow in each of these ways."""

  def check(e: Evidence) -> None:
    for way in ways:
      if len(grown(e, way).runs[[WIDTH, DEPTH]].drop_duplicates()) < SHAPES:
        raise NotAbout(f'the sweep has fewer than {SHAPES} shapes that grow in {way}')

  return check


def grown(e: Evidence, way: str) -> Evidence:
  """The shapes of a sweep that grow in one way: width, depth or both.

  Width alone: of the depth that most widths share; depth alone: of the width that most depths
  share; both: the shapes of neither, and the one that belongs to all.
  """
  shapes = e.runs[[WIDTH, DEPTH]].drop_duplicates()
  depth = shapes.groupby(DEPTH)[WIDTH].nunique().idxmax()
  width = shapes.groupby(WIDTH)[DEPTH].nunique().idxmax()
  is_wide, is_deep = e.runs[DEPTH] == depth, e.runs[WIDTH] == width
  return e.only({'width': is_wide, 'depth': is_deep, 'both': is_wide == is_deep}[way])


def _rise(e: Evidence, way: str) -> pd.Series:
  table = np.log(grown(e, way).lr_sensitivity())
  return ev.slopes(table, 'parameters', e.results.sizes).mean()


def _best_at_the_largest(e: Evidence, way: str) -> pd.Series:
  best = grown(e, way).best_loss()
  of_others = [grown(e, other).runs['parameters'].max() for other in ('width', 'depth')]
  largest = best.index.get_level_values('parameters').max()
  if not all(1 / ALIKE <= largest / other <= ALIKE for other in of_others):
    raise Undecided('the largest shapes differ in their parameters')
  return ev.at_highest(best, 'parameters').mean()


def _width_minus_depth(e: Evidence) -> pd.Series:
  return _best_at_the_largest(e, 'width') - _best_at_the_largest(e, 'depth')


def _others_minus_both(e: Evidence) -> pd.Series:
  wide, deep, both = (_best_at_the_largest(e, way) for way in ('width', 'depth', 'both'))
  return np.fmin(wide, deep) - both


def _miss_of_the_largest(e: Evidence, way: str) -> pd.Series:
  """Of a power law through the best losses of the smaller shapes, nats."""
  best = np.log(grown(e, way).best_loss())
  sizes = best.index.get_level_values('parameters')
  smaller = best[sizes < sizes.max()]
  largest = ev.at_highest(best, 'parameters').mean()
  slope = ev.slopes(smaller, 'parameters', e.results.sizes).mean()
  x = np.log(smaller.index.get_level_values('parameters').to_numpy(float))
  foretold = smaller.mean() + slope * (np.log(sizes.max()) - x.mean())
  return (np.exp(foretold) - np.exp(largest)).abs()


def _misses_minus_that_of_both(e: Evidence) -> pd.Series:
  wide, deep, both = (_miss_of_the_largest(e, way) for way in ('width', 'depth', 'both'))
  return np.fmin(wide, deep) - both


def _rise_of_logit_growth(e: Evidence, way: str) -> pd.Series:
  e = grown(e, way)
  unstable = e.runs['unstable'].astype(bool) & (e.over_training(LOGIT) > 1e4)
  shares = e.mean(unstable.astype(float))
  return (
      ev.at_highest(shares, 'parameters').mean() - ev.at_lowest(shares, 'parameters').mean()
  )


def _shift_of_the_optimum(e: Evidence, field: str, value: str, base: str) -> pd.Series:
  """With the value; undecided if it stays with the base too, for then nothing was kept by it."""
  kept, other = (_shift(e.only(e.runs[field] == of)) for of in (value, base))
  if _FACTOR_2.met(kept[0]) and _FACTOR_2.met(other[0]):
    raise Undecided(f'with {field} = {base} it does not change either: by {other[0]:.2f} decades')
  return kept


def _shift(e: Evidence) -> pd.Series:
  rates = e.best_learning_rate()
  smallest, largest = ev.at_lowest(rates, 'parameters'), ev.at_highest(rates, 'parameters')
  return (largest.mean() - smallest.mean()).abs()


def _muparam_over_standard(e: Evidence) -> pd.Series:
  return np.exp(np.log(ev.ratios(e.lr_sensitivity(), NAME, 'standard')).mean())


def _gain(e: Evidence, base: str) -> pd.Series:
  """How far the other parameterization's best loss is below the base's at the largest size."""
  best = ev.at_highest(e.best_loss(), 'parameters')
  return -ev.differences(best, NAME, base).mean()


def _full_diverged_at_one(e: Evidence) -> pd.Series:
  diverged, high = e.runs['status'] == 'diverged', e.runs['learning_rate'] >= 1
  full = (e.runs[NAME] == 'muparam_full') & (e.runs[QK_NORM] == 'layernorm')
  if not (diverged & high).any():
    raise Undecided('no run at all diverged at a learning rate of 1 or more')
  return e.share(diverged, high & full)


def _has_a_rate_of_one(e: Evidence) -> None:
  if not (e.runs['learning_rate'] >= 1).any():
    raise NotAbout('the sweep has no learning rate of 1 or more')


_SHAPES = {WIDTH: SHAPES, DEPTH: SHAPES, 'learning_rate': 3}
_SIZES = {'parameters': 2, 'learning_rate': 3}
_SHIFT = 'decades between the optimal learning rates of the smallest and the largest size'
_FACTOR_2 = AtMost(0.3)

CLAIMS = (
    Claim(
        '7',
        'Depth raises LR sensitivity faster than width does.',
        'slope of ln(LR sensitivity) on ln(parameters), depth minus width',
        AtLeast(0.05),
        lambda e: _rise(e, 'depth') - _rise(e, 'width'),
        several=_SHAPES,
        suits=has_ways('width', 'depth'),
    ),
    Claim(
        '7',
        'At the largest size, depth alone has a lower loss than width alone.',
        'best loss, width minus depth (nats)',
        MoreThan(0.0),
        _width_minus_depth,
        several=_SHAPES,
        suits=has_ways('width', 'depth'),
    ),
    Claim(
        'E.2',
        'Without qk-layernorm, attention logits make more runs unstable the larger the size, grown'
        ' in width or in depth.',
        'share of runs unstable with logits past 1e4, largest size minus smallest, lower of both',
        AtLeast(0.1),  # less than one of seven learning rates
        lambda e: np.fmin(_rise_of_logit_growth(e, 'width'), _rise_of_logit_growth(e, 'depth')),
        where={QK_NORM: ('none',)},
        several=_SHAPES,
        suits=has_ways('width', 'depth'),
        probes=(LOGIT,),
    ),
    Claim(
        'E.3',
        'At the largest size, growing in width and depth has the lowest loss.',
        'best loss, lower of width and depth alone minus both (nats)',
        MoreThan(0.0),
        _others_minus_both,
        several=_SHAPES,
        suits=has_ways('width', 'depth', 'both'),
    ),
    Claim(
        'E.3',
        'Growing in width and depth, the loss of the largest size is foretold best.',
        'miss of a power law through the smaller shapes, lower of width and depth alone minus both'
        ' (nats)',
        MoreThan(0.0),
        _misses_minus_that_of_both,
        where={QK_NORM: ('layernorm',)},
        several=_SHAPES,
        suits=has_ways('width', 'depth', 'both'),
    ),
    Claim(
        '8',
        'With muParam, the optimal learning rate does not change with size.',
        _SHIFT,
        _FACTOR_2,
        lambda e: _shift_of_the_optimum(e, NAME, 'muparam_simple', 'standard'),
        arms={NAME: ('standard', 'muparam_simple')},
        several=_SIZES,
    ),
    Claim(
        '8',
        'muParam does not lower LR sensitivity.',
        'ratio of LR sensitivity, muParam / standard, geometric mean over sizes',
        AtLeast(0.9),
        _muparam_over_standard,
        arms={NAME: ('standard', 'muparam_simple')},
        several=_SIZES,
    ),
    Claim(
        '8',
        'muParam does not lower the best loss of the largest size.',
        'best loss, standard minus muParam (nats)',
        AtMost(0.02),
        lambda e: _gain(e, 'standard'),
        arms={NAME: ('standard', 'muparam_simple')},
        several=_SIZES,
    ),
    Claim(
        'E.4',
        'With muParam, LR sensitivity is higher without qk-layernorm than with it at every size.',
        'lowest ratio of LR sensitivity over sizes, without qk-layernorm / with',
        AtLeast(1.1),
        lambda e: ev.ratios(e.lr_sensitivity(), QK_NORM, 'layernorm').min(),
        arms={QK_NORM: ('none', 'layernorm')},
        where={NAME: ('muparam_simple',)},
        several={'learning_rate': 3},
    ),
    Claim(
        'E.4',
        'With muParam and without qk-layernorm, the optimal learning rate does not change with'
        ' size.',
        _SHIFT,
        _FACTOR_2,
        lambda e: _shift_of_the_optimum(e, NAME, 'muparam_simple', 'standard'),
        arms={NAME: ('standard', 'muparam_simple')},
        where={QK_NORM: ('none',)},
        several=_SIZES,
    ),
    Claim(
        'E.5',
        'Full muParam with qk-layernorm trains without diverging at a learning rate of 1.',
        'share of its runs at a learning rate of 1 or more that diverged',
        AtMost(0.0),
        _full_diverged_at_one,
        arms={NAME: ('muparam_full', 'standard')},
        where={QK_NORM: ('layernorm', 'none')},
        suits=_has_a_rate_of_one,
    ),
    Claim(
        'E.5',
        'Full muParam does not lower the best loss of the largest size against simple muParam.',
        'best loss, simple minus full (nats)',
        AtMost(0.02),
        lambda e: _gain(e, 'muparam_simple'),
        arms={NAME: ('muparam_simple', 'muparam_full')},
        several=_SIZES,
    ),
    Claim(
        'E.14',
        "With learning rates relative to the parameters' RMS, the optimal learning rate does not"
        ' change with size.',
        _SHIFT,
        _FACTOR_2,
        lambda e: _shift_of_the_optimum(e, RATE_SCALE, 'parameter_rms', 'none'),
        arms={RATE_SCALE: ('none', 'parameter_rms')},
        several=_SIZES,
    ),
)
