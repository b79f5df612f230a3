"""Claims on output logits, z-loss and weight decay (section 3.1.2; Figures 3 and 4)."""

import numpy as np
import pandas as pd

from stability.analysis.claims import tables
from stability.analysis.claims.claim import AtLeast, AtMost, Claim, positive
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.undecided import Undecided

Z_LOSS, WEIGHT_DECAY = 'objective.z_loss', 'optimizer.weight_decay'
OUTPUT_MEAN, LOG_Z = 'output_logit_mean', 'log_z'


def _without_over_with(table: pd.DataFrame, field: str) -> pd.DataFrame:
  return np.exp(-tables.log_ratios(table, field, 0.0))


def _without_z_loss(e: Evidence) -> Evidence:
  return e.only(e.runs[Z_LOSS] == 0)


def _drop_in_mean_logit(e: Evidence) -> pd.Series:
  e = e.at_highest_rate()
  return tables.differences(e.mean(e.at_end(OUTPUT_MEAN)), Z_LOSS, 0.0).mean()


def _drift_of_log_z(e: Evidence) -> pd.Series:
  e = e.at_highest_rate()
  magnitudes = e.mean(np.log(e.at_end(LOG_Z).abs()))
  return np.exp(-tables.differences(magnitudes, Z_LOSS, 0.0).mean())


def _onset(e: Evidence) -> pd.Series:
  """The mean onset of unstable runs without z-loss whose counterparts with z-loss are stable."""
  others = [name for name in (*e.keys, 'learning_rate', 'seed') if name != Z_LOSS]
  unstable = e.unstable()
  with_z_loss = e.runs[e.runs[Z_LOSS] > 0].groupby(others, dropna=False)['unstable'].any()
  e = _without_z_loss(e)
  joined = e.runs.join(with_z_loss.rename('unstable_with_z_loss'), on=others)
  is_cured = unstable[e.runs.index] & ~joined['unstable_with_z_loss'].astype('boolean')
  onsets = e.onsets()[is_cured.fillna(False).astype(bool)]
  if onsets.isna().all():
    raise Undecided('no run without z-loss and weight decay is unstable where z-loss cures it')
  return e.average(onsets.reindex(e.runs.index))


_WITH_AND_WITHOUT = {Z_LOSS: (0.0, positive)}
_NO_DECAY = {WEIGHT_DECAY: (0.0,)}
_THREE = {'learning_rate': 3}

CLAIMS = (
    Claim(
        '3',
        'Without weight decay, z-loss lowers LR sensitivity at every size.',
        'lowest ratio of LR sensitivity, without / with z-loss, over sizes',
        AtLeast(1.1),
        lambda e: _without_over_with(e.lr_sensitivity(), Z_LOSS).min(),
        is_ratio=True,
        requires=_WITH_AND_WITHOUT,
        where=_NO_DECAY,
        min_unique=_THREE,
    ),
    Claim(
        '3',
        'Without weight decay and z-loss, runs at the highest learning rate are unstable at every'
        ' size.',
        'fraction of these runs that are unstable',
        AtLeast(1.0),
        lambda e: _without_z_loss(e).at_highest_rate().unstable_fraction(),
        requires=_WITH_AND_WITHOUT,
        where=_NO_DECAY,
        min_unique=_THREE,
    ),
    Claim(
        '3',
        'Without weight decay but with z-loss, runs at the highest learning rate are stable at'
        ' every size.',
        'fraction of these runs that are unstable',
        AtMost(0.0),
        lambda e: e.only(e.runs[Z_LOSS] > 0).at_highest_rate().unstable_fraction(),
        requires=_WITH_AND_WITHOUT,
        where=_NO_DECAY,
        min_unique=_THREE,
    ),
    Claim(
        '3',
        'Without z-loss, weight decay lowers LR sensitivity at the largest size.',
        'ratio of LR sensitivity, without / with weight decay',
        AtLeast(1.1),
        lambda e: _without_over_with(
            tables.at_highest(e.lr_sensitivity(), 'parameters'), WEIGHT_DECAY
        ).mean(),
        is_ratio=True,
        requires={WEIGHT_DECAY: (0.0, positive)},
        where={Z_LOSS: (0.0,)},
        min_unique=_THREE,
    ),
    Claim(
        '4',
        'Without z-loss and weight decay, output logits become very negative at the highest'
        ' learning rate.',
        'mean output logit at the end, with z-loss minus without, mean over sizes',
        AtLeast(10.0),
        _drop_in_mean_logit,
        requires=_WITH_AND_WITHOUT,
        where=_NO_DECAY,
        probes=(OUTPUT_MEAN,),
    ),
    Claim(
        '4',
        'Without z-loss and weight decay, log Z drifts at the highest learning rate.',
        'ratio of |log Z| at the end, without / with z-loss, geometric mean over sizes',
        AtLeast(2.0),
        _drift_of_log_z,
        is_ratio=True,
        requires=_WITH_AND_WITHOUT,
        where=_NO_DECAY,
        probes=(LOG_Z,),
    ),
    Claim(
        '4',
        'Output logits make the loss diverge late in training, unlike attention logits.',
        'onset of instability without z-loss and weight decay, as a fraction of the steps, mean'
        ' over runs that z-loss cures',
        AtLeast(0.25),  # attention logits diverge in the first few percent (section 3.3)
        _onset,
        requires=_WITH_AND_WITHOUT,
        where=_NO_DECAY,
        min_unique=_THREE,
    ),
)
