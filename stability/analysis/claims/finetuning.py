"""Claims on fine-tuning (configs/finetuning.py). They were written before it was run.

The best learning rate is that of the grid, whose steps are half a decade.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from stability.analysis.claims import tables
from stability.analysis.claims.claim import EXTENSION, AtLeast, AtMost, Claim
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.undecided import NotApplicable, Undecided

PARENT, KIND, RANK, SCALE = 'init.parent', 'adapter.kind', 'adapter.rank', 'adapter.scale'
RATIO, ALPHA = 'adapter.rate_ratio', 'adapter.alpha'
RANKS = (1, 4, 16)
BEST, HOT = 'best', '10x'  # parents, by the rate at which they were trained
_LOG_3 = np.log10(3)


def _of(table: pd.DataFrame, rank: int | None, scale: str = 'rank') -> pd.DataFrame:
  """The rows of LoRA of a rank, or of full fine-tuning if it is None: one for each size."""
  wanted = {KIND: 'none'}
  if rank is not None:
    wanted = {KIND: 'lora', RANK: rank, SCALE: scale, RATIO: 1.0}
  for level, value in wanted.items():
    if level in table.index.names:
      table = tables.at(table, level, value)
  return table.droplevel([name for name in table.index.names if name != 'parameters'])


def _with_lora(*arms: tuple[int, str]) -> Callable[[Evidence], None]:
  """A precondition: the sweep has LoRA of these ranks and scales."""

  def check(e: Evidence) -> None:
    for rank, scale in arms:
      is_arm = (e.runs[KIND] == 'lora') & (e.runs[RANK] == rank) & (e.runs[SCALE] == scale)
      if not is_arm.any():
        raise NotApplicable(f'the sweep has no LoRA of {RANK}={rank} with {SCALE}={scale}')

  return check


def _best_rate(e: Evidence, rank: int | None) -> pd.DataFrame:
  """log10 of the best rates of `_of`; raises Undecided if one is at an end of its grid."""
  rates, is_inside = e.best_grid_rate()
  if not _of(is_inside.to_frame(), rank).all(axis=None):
    name = 'full fine-tuning' if rank is None else f'LoRA of {RANK}={rank}'
    raise Undecided(f'the best learning rate of {name} is the first or the last one of its row')
  return _of(rates, rank)


def _distance_from_tenfold(e: Evidence) -> pd.Series:
  ratio = (_best_rate(e, 4) - _best_rate(e, None)).mean()
  return np.maximum(np.maximum(_LOG_3 - ratio, ratio - (1 + _LOG_3)), 0.0)


def _spread_over_ranks(e: Evidence) -> pd.Series:
  rates = pd.concat([_best_rate(e, rank) for rank in RANKS]).groupby('parameters')
  return 10 ** (rates.max() - rates.min()).max()


def _gain_of_rslora(e: Evidence) -> pd.Series:
  losses = e.best_loss()
  return (_of(losses, RANKS[-1]) - _of(losses, RANKS[-1], 'sqrt_rank')).mean()


def _loss_of_headroom(e: Evidence) -> pd.Series:
  headroom, is_exact = e.headroom()
  if not is_exact.all():
    raise Undecided('the critical learning rate is above the grid')
  parents = headroom.index.get_level_values(PARENT)
  best, hot = (_of(headroom[parents == parent], None) for parent in (BEST, HOT))
  return 10 ** (best - hot).mean()


def _ratio_of_sensitivities(e: Evidence) -> pd.Series:
  table = e.lr_sensitivity()
  full, lora = _of(table, None), _of(table, 4)
  shared = full.index.intersection(lora.index)
  return (tables.known(full.loc[shared]) / tables.positive(lora.loc[shared])).mean()


_OF_LORA = {
    'covaries': (RANK, SCALE, RATIO, ALPHA),
    'where': {PARENT: (BEST,)},
    'min_unique': {'learning_rate': 3},
}

CLAIMS = (
    Claim(
        EXTENSION,
        "LoRA's best learning rate is about ten times that of full fine-tuning.",
        'decades by which the ratio, geometric mean over sizes, is outside of 3 to 30; rank 4',
        AtMost(0.01),
        _distance_from_tenfold,
        requires={KIND: ('none', 'lora')},
        precondition=_with_lora((4, 'rank')),
        **_OF_LORA,
    ),
    Claim(
        EXTENSION,
        "With alpha / r, LoRA's best learning rate does not depend on the rank.",
        'highest over lowest best rate of ranks 1, 4 and 16, largest over sizes',
        AtMost(3.4),  # a step of the grid
        _spread_over_ranks,
        is_ratio=True,
        requires={KIND: ('lora',)},
        precondition=_with_lora(*((rank, 'rank') for rank in RANKS)),
        **_OF_LORA,
    ),
    Claim(
        EXTENSION,
        'rsLoRA keeps large ranks useful.',
        'best loss with alpha / r minus that with alpha / sqrt(r), rank 16, mean over sizes (nats)',
        AtLeast(0.005),
        _gain_of_rslora,
        requires={KIND: ('lora',)},
        precondition=_with_lora((RANKS[-1], 'rank'), (RANKS[-1], 'sqrt_rank')),
        **_OF_LORA,
    ),
    Claim(
        EXTENSION,
        'A parent trained at too high a learning rate narrows the range of full fine-tuning.',
        'critical over best rate, parent at the best rate over parent at 10 times that, geometric'
        ' mean over sizes',
        AtLeast(1.8),
        _loss_of_headroom,
        is_ratio=True,
        requires={PARENT: (BEST, HOT)},
        where={KIND: ('none',)},
        covaries=_OF_LORA['covaries'],
        min_unique=_OF_LORA['min_unique'],
    ),
    Claim(
        EXTENSION,
        'LoRA is less sensitive to the learning rate than full fine-tuning.',
        'LR sensitivity of full fine-tuning over that of LoRA, rank 4, mean over sizes',
        AtLeast(1.1),
        _ratio_of_sensitivities,
        is_ratio=True,
        requires={KIND: ('none', 'lora')},
        precondition=_with_lora((4, 'rank')),
        **_OF_LORA,
    ),
)
