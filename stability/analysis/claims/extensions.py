"""Claims beyond the paper: interventions that it does not study, from the papers that propose them.

Thresholds follow the same rules as those of the paper's claims: a ratio of at least 1.1 for a
higher LR sensitivity, at most 1.25 for an equal one, a factor of 2 for an unchanged optimum. The
claims on schedules, parameterizations and sequence length were written before their experiments
were run; the others were written when the results of one seed were known.
"""

import numpy as np
import pandas as pd

from stability.analysis.claims import recipe, tables
from stability.analysis.claims.claim import EXTENSION, AtLeast, AtMost, Claim, MoreThan, positive
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.undecided import NotApplicable

SHAPE, OPTIMIZER = 'schedule.shape', 'optimizer.name'
NAME, EXPONENTS = 'parameterization.name', 'parameterization.exponents'
QK_NORM, SEQUENCE_LENGTH = 'model.qk_norm', 'data.sequence_length'
FULL, NONE = 'full_alignment', 'no_alignment'


def _log_ratios(e: Evidence, field: str, base: object) -> pd.DataFrame:
  """The mean of ln(LR sensitivity / that with `base`): a row for each other value of the field."""
  return tables.log_ratios(e.lr_sensitivity(), field, base).groupby(level=field).mean()


def _largest_ratio(e: Evidence, field: str, base: object) -> pd.Series:
  """The largest ratio of LR sensitivity to that with `base`, or its inverse, over all rows."""
  return np.exp(tables.log_ratios(e.lr_sensitivity(), field, base).abs().max())


def _largest_shift(e: Evidence) -> pd.Series:
  """The largest shift (decades) of the optimal LR from the smallest to the largest size."""
  rates = e.best_learning_rate()
  shape = ['parameters', *e.results.sizes]
  smallest = tables.at_lowest(rates, 'parameters').droplevel(shape)
  largest = tables.at_highest(rates, 'parameters').droplevel(shape)
  return (largest - smallest).abs().max(skipna=False)


def _mup_minus_standard(e: Evidence) -> pd.Series:
  best = tables.at_highest(e.best_loss(), 'parameters')
  return tables.differences(best, NAME, 'standard').mean()


def _require_constant_tokens_per_step(e: Evidence) -> None:
  if (e.runs[SEQUENCE_LENGTH] * e.runs[recipe.BATCH]).nunique() > 1:
    raise NotApplicable('the tokens per step change with the sequence length')


def _lowers(statement: str, field: str, without: object, value: object, name: str) -> Claim:
  """The claim that an intervention lowers LR sensitivity without qk-layernorm."""
  return Claim(
      EXTENSION,
      statement,
      f'ratio of LR sensitivity, without / with {name}, geometric mean over sizes',
      AtLeast(1.1),
      lambda e: np.exp(-_log_ratios(e, field, without).mean()),
      is_ratio=True,
      requires={field: (without, value)},
      where={QK_NORM: ('none',)},
      min_unique={'learning_rate': 3},
  )


_THREE = {'learning_rate': 3}
_PER_LAYER = {NAME: ('standard', 'ntk', 'mup', 'mean_field'), EXPONENTS: (FULL, NONE)}

CLAIMS = (
    _lowers(
        'Without qk-layernorm, a soft cap on attention logits lowers LR sensitivity.',
        'model.attention_soft_cap',
        0.0,
        positive,
        'the cap',
    ),
    _lowers(
        'Without qk-layernorm, peri-LN lowers LR sensitivity.',
        'model.norm_position',
        'pre',
        'peri',
        'peri-LN',
    ),
    _lowers(
        'Without qk-layernorm, gated attention lowers LR sensitivity.',
        'model.attention_gate',
        'none',
        'sigmoid',
        'the gate',
    ),
    Claim(
        EXTENSION,
        'With RMSNorm instead of LayerNorm, LR sensitivity is about the same.',
        'highest ratio of LR sensitivity between the two, in either direction, over sizes',
        AtMost(1.25),
        lambda e: _largest_ratio(e, 'model.norm', 'layernorm'),
        is_ratio=True,
        requires={'model.norm': ('layernorm', 'rmsnorm')},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'With RMS or L2 normalisation of queries and keys instead of LayerNorm, LR sensitivity is'
        ' about the same.',
        'highest ratio of LR sensitivity between either and LayerNorm, in either direction, over'
        ' sizes',
        AtMost(1.25),
        lambda e: _largest_ratio(e, QK_NORM, 'layernorm'),
        is_ratio=True,
        requires={QK_NORM: ('layernorm', 'rmsnorm', 'l2')},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'Adam-atan2, StableAdamW and Muon have about the LR sensitivity of AdamW.',
        'highest ratio of LR sensitivity between any and AdamW, in either direction, over sizes',
        AtMost(1.25),
        lambda e: _largest_ratio(e, OPTIMIZER, 'adamw'),
        is_ratio=True,
        requires={OPTIMIZER: ('adamw', 'adam_atan2', 'stable_adamw', 'muon')},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'Lion and Adafactor have a higher LR sensitivity than AdamW.',
        'ratio of LR sensitivity to that of AdamW, geometric mean over sizes, lower of the two',
        AtLeast(1.1),
        lambda e: np.exp(_log_ratios(e, OPTIMIZER, 'adamw').min()),
        is_ratio=True,
        requires={OPTIMIZER: ('adamw', 'lion', 'adafactor')},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'Of cosine, WSD and rsqrt, WSD has the highest LR sensitivity.',
        'ratio of LR sensitivity, WSD / other, geometric mean over sizes, lower of the two',
        AtLeast(1.1),
        lambda e: np.exp(-_log_ratios(e, SHAPE, 'wsd').max()),
        is_ratio=True,
        requires={SHAPE: ('cosine', 'wsd', 'rsqrt')},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'With per-layer learning rates, all four parameterizations keep the optimal learning rate.',
        'decades between the optima of the smallest and the largest size, highest of all',
        AtMost(0.3),  # a factor of 2
        _largest_shift,
        requires=_PER_LAYER,
        min_unique=_THREE | {'parameters': 2},
    ),
    Claim(
        EXTENSION,
        'Full-alignment exponents have a higher LR sensitivity than no-alignment exponents.',
        'ratio of LR sensitivity, full / no alignment, geometric mean over parameterizations and'
        ' sizes',
        AtLeast(1.1),
        lambda e: np.exp(_log_ratios(e, EXPONENTS, NONE).mean()),
        is_ratio=True,
        requires=_PER_LAYER,
        min_unique=_THREE | {'parameters': 2},
    ),
    Claim(
        EXTENSION,
        'With per-layer learning rates, the standard parameterization beats muP.',
        'best loss of the largest size, muP minus standard, mean over exponents (nats)',
        MoreThan(0.0),
        _mup_minus_standard,
        requires={NAME: ('standard', 'mup'), EXPONENTS: (FULL, NONE)},
        min_unique=_THREE | {'parameters': 2},
    ),
    Claim(
        EXTENSION,
        'At a constant number of tokens per step, the sequence length barely changes LR'
        ' sensitivity.',
        'highest ratio of LR sensitivity between two lengths at the same size',
        AtMost(1.25),
        lambda e: recipe.largest_ratio(e, SEQUENCE_LENGTH, (recipe.BATCH,)),
        is_ratio=True,
        min_unique={SEQUENCE_LENGTH: 2} | _THREE,
        covaries=(recipe.BATCH,),
        precondition=_require_constant_tokens_per_step,
    ),
)
