"""Other attention: its scale, its norms, no softmax (Figures E.6, E.8, E.11)."""

import numpy as np
import pandas as pd

from stability.analysis.claims import evidence as ev
from stability.analysis.claims.attention import QK_NORM, need_for_qk_norm
from stability.analysis.claims.claim import AtLeast, Claim, MoreThan
from stability.analysis.claims.evidence import Evidence
from stability.analysis.results import LOGIT

SCALE, ATTENTION = 'model.attention_scale', 'model.attention'


def _inverse_scale_with_size(e: Evidence) -> pd.Series:
  ratios = np.log(ev.ratios(e.lr_sensitivity(), SCALE, 'inverse_sqrt'))
  smallest, largest = ev.at_lowest(ratios, 'parameters'), ev.at_highest(ratios, 'parameters')
  return np.exp(largest.mean() - smallest.mean())


def _gain_and_loss_of_the_inverse(e: Evidence) -> pd.Series:
  higher = ev.differences(e.best_loss(), SCALE, 'inverse_sqrt')
  smallest, largest = ev.at_lowest(higher, 'parameters'), ev.at_highest(higher, 'parameters')
  return np.fmin(-smallest.mean(), largest.mean())


def _loss_over_the_model_dimension(e: Evidence) -> pd.Series:
  return ev.differences(e.mean(e.runs['loss']), QK_NORM, 'layernorm').mean()


def _growth_with_pointwise_attention(e: Evidence) -> pd.Series:
  e = e.only(e.runs[ATTENTION] == 'squared_relu')
  e = e.only(e.runs['learning_rate'] == e.runs['learning_rate'].max())
  return np.exp(e.average(np.log(e.over_training(LOGIT) / e.at_start(LOGIT))))


_BOTH = {QK_NORM: ('none', 'layernorm')}
_WITHOUT = {QK_NORM: ('none',)}

CLAIMS = (
    Claim(
        'E.6',
        'Dividing attention logits by the head dimension does not remove the need for'
        ' qk-layernorm.',
        'lowest ratio of LR sensitivity over sizes, without qk-layernorm / with',
        AtLeast(1.1),
        need_for_qk_norm,
        arms=_BOTH,
        where={SCALE: ('inverse',)},
        several={'learning_rate': 3},
    ),
    Claim(
        'E.6',
        'Against its square root, the head dimension as divisor does worse the larger the size.',
        'ratio of LR sensitivity, head dimension / square root, at the largest size over that at'
        ' the smallest',
        AtLeast(1.05),
        _inverse_scale_with_size,
        arms={SCALE: ('inverse', 'inverse_sqrt')},
        where={QK_NORM: ('none', 'layernorm')},
        several={'learning_rate': 3, 'parameters': 2},
    ),
    Claim(
        'E.6',
        'Against its square root, the head dimension as divisor has a lower best loss at the'
        ' smallest size and a higher one at the largest.',
        'how much lower and how much higher, the smaller of both (nats)',
        MoreThan(0.0),
        _gain_and_loss_of_the_inverse,
        arms={SCALE: ('inverse', 'inverse_sqrt')},
        where={QK_NORM: ('none', 'layernorm')},
        several={'learning_rate': 3, 'parameters': 2},
    ),
    Claim(
        'E.8',
        'qk-layernorm of each head by itself is slightly better than over all heads at once.',
        'loss over all heads minus loss of each head, mean over sizes and learning rates (nats)',
        MoreThan(0.0),
        _loss_over_the_model_dimension,
        arms={QK_NORM: ('layernorm', 'layernorm_model')},
    ),
    Claim(
        'E.11',
        'Attention logits grow with pointwise squared-ReLU attention as well.',
        'growth of the highest logit over training at the highest learning rate, factor',
        AtLeast(10.0),
        _growth_with_pointwise_attention,
        arms={ATTENTION: ('squared_relu', 'softmax')},
        where=_WITHOUT,
        several={'learning_rate': 3},
        probes=(LOGIT,),
    ),
)
