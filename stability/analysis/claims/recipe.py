"""Claims on warm-up, weight decay, steps and batch size.

Sections 3.2.1 and 3.2.2; Figures 5, 6, E.7, E.9 and E.10.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from stability.analysis.claims import tables
from stability.analysis.claims.claim import AtLeast, AtMost, Claim, MoreThan, positive
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.undecided import NotApplicable, Undecided

WARMUP, STEPS, BATCH = 'schedule.warmup_steps', 'schedule.steps', 'data.batch_size'
DEFAULT_WARMUP = 0.05  # as a fraction of the steps
DECAY, DECAY_KIND = 'optimizer.weight_decay', 'optimizer.weight_decay_kind'


def _shortest_over_longest_warmup(table: pd.DataFrame) -> pd.DataFrame:
  """ln(LR sensitivity with the shortest warm-up / that with the longest), a row per size."""
  longest = table.index.get_level_values(WARMUP).max()
  extremes = pd.concat([tables.at_lowest(table, WARMUP), tables.at_highest(table, WARMUP)])
  return tables.log_ratios(extremes, WARMUP, longest)


def _default_over_longest_warmup(e: Evidence) -> pd.Series:
  e.require(STEPS)
  table = e.lr_sensitivity()
  default_steps = round(DEFAULT_WARMUP * e.runs[STEPS].max())
  longest_steps = table.index.get_level_values(WARMUP).max()
  if not longest_steps > default_steps:
    raise Undecided('no warm-up is longer than 5 % of the steps')
  default, longest = (
      np.log(tables.positive(tables.at(table, WARMUP, steps))).mean()
      for steps in (default_steps, longest_steps)
  )
  return np.exp(default - longest)


def _warmup_ratio_with_size(e: Evidence) -> pd.Series:
  table = e.lr_sensitivity()
  smallest, largest = (
      _shortest_over_longest_warmup(at(table, 'parameters')).mean()
      for at in (tables.at_lowest, tables.at_highest)
  )
  return np.exp(largest - smallest)


def _shortest_minus_longest_warmup(values: pd.DataFrame) -> pd.Series:
  return tables.at_lowest(values, WARMUP).mean() - tables.at_highest(values, WARMUP).mean()


def _stabilised_by_warmup(e: Evidence) -> pd.Series:
  e = e.at_highest_rate()
  e = e.only(e.runs['parameters'] == e.runs['parameters'].max())
  return _shortest_minus_longest_warmup(e.mean(e.unstable().astype(float)))


def _coupled_over_independent(e: Evidence) -> pd.Series:
  return np.exp(
      tables.log_ratios(e.lr_sensitivity(), DECAY_KIND, 'independent', [DECAY]).mean()
  )


def require_determined(field: str, others: tuple[str, ...]) -> Callable[[Evidence], None]:
  """The precondition that the other fields have one value for each value of `field`."""

  def check(e: Evidence) -> None:
    for other in others:
      if other in e.runs and e.runs.groupby(field)[other].nunique().max() > 1:
        raise NotApplicable(f'the sweep varies {other} as well')

  return check


def largest_ratio(e: Evidence, field: str, covaries: tuple[str, ...]) -> pd.Series:
  """The highest ratio of LR sensitivity between two values of a field at the same size."""
  table = np.log(tables.positive(e.lr_sensitivity()))
  table = table.droplevel([level for level in covaries if level in table.index.names])
  others = [level for level in table.index.names if level != field]
  groups = table.groupby(level=others, dropna=False)
  return np.exp((groups.max() - groups.min()).max())


def _shift_of_optimum(e: Evidence) -> pd.Series:
  return tables.slopes(e.best_learning_rate(), DECAY).mean() * math.log(10)


_THREE = {'learning_rate': 3}
_WITH_STEPS = (WARMUP, 'schedule.decay_steps')
_WITH_BATCH = (STEPS, *_WITH_STEPS, 'data.validation_batches')

CLAIMS = (
    Claim(
        '5',
        'A longer warm-up lowers LR sensitivity.',
        'ratio of LR sensitivity, shortest / longest warm-up, geometric mean over sizes',
        AtLeast(1.1),
        lambda e: np.exp(_shortest_over_longest_warmup(e.lr_sensitivity()).mean()),
        is_ratio=True,
        min_unique={WARMUP: 2} | _THREE,
        constant=(STEPS, BATCH),
    ),
    Claim(
        '5',
        'A longer warm-up lowers LR sensitivity more for larger models.',
        'ratio of LR sensitivity, shortest / longest warm-up, at the largest size over that at the'
        ' smallest',
        AtLeast(1.05),
        _warmup_ratio_with_size,
        is_ratio=True,
        min_unique={WARMUP: 2, 'parameters': 2} | _THREE,
        constant=(STEPS, BATCH),
    ),
    Claim(
        '5',
        'A longer warm-up lowers the loss.',
        'best loss, shortest minus longest warm-up, mean over sizes (nats)',
        MoreThan(0.0),
        lambda e: _shortest_minus_longest_warmup(e.best_loss()),
        min_unique={WARMUP: 2} | _THREE,
        constant=(STEPS, BATCH),
    ),
    Claim(
        '5',
        'The largest size is unstable at the highest learning rate without a long warm-up.',
        'fraction of these runs that are unstable, shortest minus longest warm-up',
        AtLeast(0.5),  # most of them
        _stabilised_by_warmup,
        min_unique={WARMUP: 2} | _THREE,
        constant=(STEPS, BATCH),
    ),
    Claim(
        '5',
        'A warm-up beyond the usual 5 % of the steps lowers LR sensitivity further.',
        'ratio of LR sensitivity, 5 % / longest warm-up, geometric mean over sizes',
        AtLeast(1.1),
        _default_over_longest_warmup,
        is_ratio=True,
        min_unique={WARMUP: 2} | _THREE,
        constant=(STEPS, BATCH),
    ),
    Claim(
        '6',
        'Independent weight decay has a lower LR sensitivity than weight decay coupled to the'
        ' learning rate.',
        'ratio of LR sensitivity, coupled / independent, geometric mean over sizes',
        AtLeast(1.1),
        _coupled_over_independent,
        is_ratio=True,
        requires={DECAY_KIND: ('coupled', 'independent')},
        min_unique=_THREE,
        covaries=(DECAY,),
    ),
    Claim(
        'E.7',
        'The number of training steps barely changes LR sensitivity.',
        'highest ratio of LR sensitivity between two numbers of steps at the same size',
        AtMost(1.25),
        lambda e: largest_ratio(e, STEPS, _WITH_STEPS),
        is_ratio=True,
        min_unique={STEPS: 2} | _THREE,
        covaries=_WITH_STEPS,
        constant=(BATCH,),
        precondition=require_determined(STEPS, _WITH_STEPS),
    ),
    Claim(
        'E.9',
        'The batch size barely changes LR sensitivity.',
        'highest ratio of LR sensitivity between two batch sizes at the same size',
        AtMost(1.25),
        lambda e: largest_ratio(e, BATCH, _WITH_BATCH),
        is_ratio=True,
        min_unique={BATCH: 2} | _THREE,
        covaries=_WITH_BATCH,
        constant=('data.sequence_length',),
        precondition=require_determined(BATCH, _WITH_BATCH),
    ),
    Claim(
        'E.10',
        'More weight decay shifts the optimal learning rate upwards.',
        'decades of optimal learning rate per decade of weight decay, mean over sizes',
        AtLeast(0.05),
        _shift_of_optimum,
        where={DECAY: (positive,)},
        min_unique={DECAY: 2} | _THREE,
    ),
)
