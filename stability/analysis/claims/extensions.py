"""Claims of experiments that the paper does not have, from the papers of what they try.

Thresholds are by the rules of the paper's claims: 1.1 for a higher LR sensitivity, 1.25 for none
that differs, a factor of 2 for an optimum that stays. Those on schedules, parameterizations and
sequence length were written before these were run; one seed of the others was known.
"""

import numpy as np
import pandas as pd

from stability.analysis.claims import evidence as ev
from stability.analysis.claims import recipe
from stability.analysis.claims.claim import BEYOND, AtLeast, AtMost, Claim, MoreThan, above_zero
from stability.analysis.claims.evidence import Evidence, NotAbout

SHAPE, OPTIMIZER = 'schedule.shape', 'optimizer.name'
NAME, EXPONENTS = 'parameterization.name', 'parameterization.exponents'
QK_NORM, LENGTH = 'model.qk_norm', 'data.sequence_length'
FULL, NONE = 'full_alignment', 'no_alignment'


def _times(e: Evidence, field: str, base: object) -> pd.DataFrame:
  """Ln of LR sensitivity over that of the base, a row for each other value: mean over the rest."""
  ratios = np.log(ev.ratios(e.lr_sensitivity(), field, base))
  return ratios.groupby(level=field).mean()


def _largest_change(e: Evidence, field: str, base: object) -> pd.Series:
  """Either way, at any size."""
  return np.exp(np.log(ev.ratios(e.lr_sensitivity(), field, base)).abs().max())


def _largest_shift(e: Evidence) -> pd.Series:
  """Of the optimal learning rate from the smallest to the largest size, in decades."""
  rates = e.best_learning_rate()
  shape = ['parameters', *e.results.sizes]
  smallest = ev.at_lowest(rates, 'parameters').droplevel(shape)
  largest = ev.at_highest(rates, 'parameters').droplevel(shape)
  return (largest - smallest).abs().max()


def _mup_minus_standard(e: Evidence) -> pd.Series:
  best = ev.at_highest(e.best_loss(), 'parameters')
  return ev.differences(best, NAME, 'standard').mean()


def _has_as_many_tokens_a_step(e: Evidence) -> None:
  if (e.runs[LENGTH] * e.runs[recipe.BATCH]).nunique() > 1:
    raise NotAbout('the tokens of a step differ with the sequence length')


def _lowers(statement: str, field: str, without: object, value: object, name: str) -> Claim:
  """Without qk-layernorm, an intervention lowers LR sensitivity."""
  return Claim(
      BEYOND,
      statement,
      f'ratio of LR sensitivity, without {name} / with, geometric mean over sizes',
      AtLeast(1.1),
      lambda e: np.exp(-_times(e, field, without).mean()),
      arms={field: (without, value)},
      where={QK_NORM: ('none',)},
      several={'learning_rate': 3},
  )


_THREE = {'learning_rate': 3}
_PER_LAYER = {NAME: ('standard', 'ntk', 'mup', 'mean_field'), EXPONENTS: (FULL, NONE)}

CLAIMS = (
    _lowers(
        'Without qk-layernorm, a soft cap on attention logits lowers LR sensitivity.',
        'model.attention_soft_cap',
        0.0,
        above_zero,
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
        BEYOND,
        'With RMSNorm in the place of LayerNorm, LR sensitivity is about the same.',
        'highest ratio of LR sensitivity between the two, either way, over sizes',
        AtMost(1.25),
        lambda e: _largest_change(e, 'model.norm', 'layernorm'),
        arms={'model.norm': ('layernorm', 'rmsnorm')},
        several=_THREE,
    ),
    Claim(
        BEYOND,
        'With queries and keys by RMS or L2 in the place of LayerNorm, LR sensitivity is about the'
        ' same.',
        'highest ratio of LR sensitivity to that with LayerNorm, either way, over sizes',
        AtMost(1.25),
        lambda e: _largest_change(e, QK_NORM, 'layernorm'),
        arms={QK_NORM: ('layernorm', 'rmsnorm', 'l2')},
        several=_THREE,
    ),
    Claim(
        BEYOND,
        'Adam-atan2, StableAdamW and Muon have about the LR sensitivity of AdamW.',
        'highest ratio of LR sensitivity to that of AdamW, either way, over sizes',
        AtMost(1.25),
        lambda e: _largest_change(e, OPTIMIZER, 'adamw'),
        arms={OPTIMIZER: ('adamw', 'adam_atan2', 'stable_adamw', 'muon')},
        several=_THREE,
    ),
    Claim(
        BEYOND,
        'Lion and Adafactor have a higher LR sensitivity than AdamW.',
        'lower ratio of LR sensitivity to that of AdamW, geometric means over sizes',
        AtLeast(1.1),
        lambda e: np.exp(_times(e, OPTIMIZER, 'adamw').min()),
        arms={OPTIMIZER: ('adamw', 'lion', 'adafactor')},
        several=_THREE,
    ),
    Claim(
        BEYOND,
        'Of cosine, WSD and rsqrt, WSD has the highest LR sensitivity.',
        'ratio of LR sensitivity, WSD / other, geometric mean over sizes, lower of both',
        AtLeast(1.1),
        lambda e: np.exp(-_times(e, SHAPE, 'wsd').max()),
        arms={SHAPE: ('cosine', 'wsd', 'rsqrt')},
        several=_THREE,
    ),
    Claim(
        BEYOND,
        'With learning rates per layer, all four parameterizations keep the optimal learning rate.',
        'decades between those of the smallest and the largest size, highest of all',
        AtMost(0.3),  # a factor of 2
        _largest_shift,
        arms=_PER_LAYER,
        several=_THREE | {'parameters': 2},
    ),
    Claim(
        BEYOND,
        'Exponents of full alignment have a higher LR sensitivity than those of none.',
        'ratio of LR sensitivity, full / none, geometric mean over parameterizations and sizes',
        AtLeast(1.1),
        lambda e: np.exp(_times(e, EXPONENTS, NONE).mean()),
        arms=_PER_LAYER,
        several=_THREE | {'parameters': 2},
    ),
    Claim(
        BEYOND,
        'With learning rates per layer, the standard parameterization beats muP.',
        'best loss of the largest size, muP minus standard, mean over exponents (nats)',
        MoreThan(0.0),
        _mup_minus_standard,
        arms={NAME: ('standard', 'mup'), EXPONENTS: (FULL, NONE)},
        several=_THREE | {'parameters': 2},
    ),
    Claim(
        BEYOND,
        'With as many tokens a step, the sequence length does not change LR sensitivity to speak'
        ' of.',
        'highest ratio of LR sensitivity between two lengths at one size',
        AtMost(1.25),
        lambda e: recipe.largest_change(e, LENGTH, (recipe.BATCH,)),
        several={LENGTH: 2} | _THREE,
        along=(recipe.BATCH,),
        suits=_has_as_many_tokens_a_step,
    ),
)
