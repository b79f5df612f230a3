"""Claims on variants of attention: its scale, norms and softmax (Figures E.6, E.8, E.11)."""

import numpy as np
import pandas as pd

from stability.analysis.claims import tables
from stability.analysis.claims.attention import QK_NORM, benefit_of_qk_norm
from stability.analysis.claims.claim import AtLeast, Claim, MoreThan
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.families import QK_NORMS
from stability.analysis.results import LOGIT

SCALE, ATTENTION = 'model.attention_scale', 'model.attention'


def _inverse_scale_at_larger_sizes(e: Evidence) -> pd.Series:
  table = e.lr_sensitivity()
  smallest, largest = (
      tables.log_ratios(at(table, 'parameters'), SCALE, 'inverse_sqrt').mean()
      for at in (tables.at_lowest, tables.at_highest)
  )
  return np.exp(largest - smallest)


def _gain_then_loss_from_inverse_scale(e: Evidence) -> pd.Series:
  higher = tables.differences(e.best_loss(), SCALE, 'inverse_sqrt')
  smallest = tables.at_lowest(higher, 'parameters')
  largest = tables.at_highest(higher, 'parameters')
  return np.fmin(-smallest.mean(), largest.mean())


def _excess_of_norm_over_all_heads(e: Evidence) -> pd.Series:
  return tables.differences(e.mean(e.runs['loss']), QK_NORM, 'layernorm').mean()


def _growth_with_pointwise_attention(e: Evidence) -> pd.Series:
  e = e.only(e.runs[ATTENTION] == 'squared_relu').at_highest_rate()
  return np.exp(e.average(np.log(e.max_over_training(LOGIT) / e.at_start(LOGIT))))


_BOTH = {QK_NORM: ('none', QK_NORMS)}
_WITHOUT = {QK_NORM: ('none',)}

CLAIMS = (
    Claim(
        'E.6',
        'Dividing attention logits by the head dimension does not remove the need for'
        ' qk-layernorm.',
        'lowest ratio of LR sensitivity, without / with qk-layernorm, over sizes',
        AtLeast(1.1),
        benefit_of_qk_norm,
        is_ratio=True,
        requires=_BOTH,
        where={SCALE: ('inverse',)},
        min_unique={'learning_rate': 3},
    ),
    Claim(
        'E.6',
        'Dividing attention logits by the head dimension instead of its square root gets worse as'
        ' size increases.',
        'ratio of LR sensitivity, head dimension / square root, at the largest size over that at'
        ' the smallest',
        AtLeast(1.05),
        _inverse_scale_at_larger_sizes,
        is_ratio=True,
        requires={SCALE: ('inverse', 'inverse_sqrt')},
        where={QK_NORM: ('none', QK_NORMS)},
        min_unique={'learning_rate': 3, 'parameters': 2},
    ),
    Claim(
        'E.6',
        'Dividing attention logits by the head dimension instead of its square root lowers the'
        ' best loss of the smallest size and raises that of the largest.',
        'decrease and increase of the best loss, the smaller of the two (nats)',
        MoreThan(0.0),
        _gain_then_loss_from_inverse_scale,
        requires={SCALE: ('inverse', 'inverse_sqrt')},
        where={QK_NORM: ('none', QK_NORMS)},
        min_unique={'learning_rate': 3, 'parameters': 2},
    ),
    Claim(
        'E.8',
        'qk-layernorm per head is slightly better than over all heads at once.',
        'loss over all heads minus loss per head, mean over sizes and learning rates (nats)',
        MoreThan(0.0),
        _excess_of_norm_over_all_heads,
        requires={QK_NORM: ('layernorm', 'layernorm_model')},
    ),
    Claim(
        'E.11',
        'Attention logits grow with pointwise squared-ReLU attention as well.',
        'factor by which the highest logit grows over training at the highest learning rate',
        AtLeast(10.0),
        _growth_with_pointwise_attention,
        is_ratio=True,
        requires={ATTENTION: ('squared_relu', 'softmax')},
        where=_WITHOUT,
        min_unique={'learning_rate': 3},
        probes=(LOGIT,),
    ),
)
