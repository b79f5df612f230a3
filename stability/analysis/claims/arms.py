"""Claims of the literature on arms of the leaderboard (configs/leaderboard.py), and its controls.

They were written before the leaderboard was run. Differences of loss are held against the band of
the leaderboard, 0.02 nats, below which they do not matter; a range of learning rates is wider if it
is so by half a step of the grid, 0.25 decades, which interpolation resolves.
"""

import numpy as np
import pandas as pd

from stability.analysis.claims import tables
from stability.analysis.claims.claim import EXTENSION, AtLeast, AtMost, Claim, positive
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.undecided import NotApplicable, Undecided
from stability.analysis.leaderboard.front import LOSS_BAND

OPTIMIZER, PARAMETERIZATION = 'optimizer.name', 'parameterization.name'
EMBEDDING_RATE, BETA2, UPDATE_CLIP = (
    'optimizer.embedding_rate', 'optimizer.beta2', 'optimizer.update_clip'
)  # fmt: skip
OUTPUT_CAP, ATTENTION_CAP = 'model.output_soft_cap', 'model.attention_soft_cap'
CLIP_NORM = 'optimizer.clip_norm'
CLIPPING = {  # kind -> its value in the baseline
    CLIP_NORM: 1.0,
    'optimizer.adaptive_clip': 0.0,
    'optimizer.zclip': 0.0,
    'optimizer.adagc': 0.0,
    UPDATE_CLIP: 0.0,
    'optimizer.skip_step': 0.0,
}
WIDER = 0.25  # decades
MIN_KINDS = 3  # of clipping, for a claim on any kind
NORM = 'gradient_norm'


def _wider(e: Evidence) -> pd.Series:
  widths, is_exact = e.width(0.05)
  is_base = widths.index.get_level_values(OPTIMIZER) == 'adamw'
  if not is_exact[is_base].all():
    raise Undecided('the range of AdamW leaves the grid')
  wider = tables.differences(widths, OPTIMIZER, 'adamw').mean()
  if wider[0] < WIDER and not is_exact.all():
    raise Undecided('the range of Hyperball leaves the grid')  # it may be as wide as claimed
  return wider


def _share_of_gain(e: Evidence) -> pd.Series:
  """The gain of the embedding's rate over that of muParam, at the largest size."""
  best = tables.at_highest(e.best_loss(), 'parameters')

  def of(parameterization: str, rate: str) -> pd.Series:
    of_name = tables.at(best, PARAMETERIZATION, parameterization)
    return tables.at(of_name, EMBEDDING_RATE, rate).mean()

  standard = of('standard', 'none')
  gain = standard - of('muparam_simple', 'none')
  if gain.iloc[0] < LOSS_BAND:
    raise Undecided(f'muParam lowers the loss by less than {LOSS_BAND:g} nats')
  return (standard - of('standard', 'width')) / gain.where(gain > 0)


def _kinds(e: Evidence) -> list[str]:
  """The kinds of clipping that the runs vary."""
  return [field for field in CLIPPING if field in e.runs and e.runs[field].nunique() > 1]


def _that_may_be_inert(e: Evidence) -> Evidence:
  """The runs without clipping to a norm below 1, which acts on norms below 1 by definition."""
  if CLIP_NORM not in e.runs:
    return e
  return e.only(~e.runs[CLIP_NORM].between(0, 1, inclusive='neither'))


def _require_kinds(e: Evidence) -> None:
  kinds = _kinds(_that_may_be_inert(e))
  if len(kinds) < MIN_KINDS:
    raise NotApplicable(f'the sweep varies {len(kinds)} kinds of clipping')


def _effect_of_clipping(e: Evidence) -> pd.Series:
  """The largest difference from the baseline at rates at which its gradient norm is below 1."""
  e = _that_may_be_inert(e)
  kinds = _kinds(e)
  table = e.mean(e.runs['loss'])
  norms = e.mean(e.max_after_warmup(NORM))[0]

  def is_baseline(index: pd.MultiIndex) -> np.ndarray:
    return np.all([index.get_level_values(kind) == CLIPPING[kind] for kind in kinds], axis=0)

  base = table[is_baseline(table.index)].droplevel(kinds)
  norms = norms[is_baseline(norms.index)].droplevel(kinds)
  others = table[~is_baseline(table.index)]
  keys = others.index.droplevel(kinds)
  is_quiet = keys.isin(norms.index[norms < 1])
  if not is_quiet.any():
    raise Undecided('the gradient norm of the baseline stays below 1 at no learning rate')
  matched = base.reindex(keys[is_quiet]).set_axis(others.index[is_quiet])
  return (others[is_quiet] - matched).abs().max()


def _cost(e: Evidence, field: str, base: object) -> pd.Series:
  """The best loss with another value of a field minus that with `base`, mean over sizes."""
  return tables.differences(e.best_loss(), field, base).mean()


_THREE = {'learning_rate': 3}

CLAIMS = (
    Claim(
        EXTENSION,
        'Hyperball widens the range of good learning rates.',
        'decades within 0.05 nats of the own best loss, Hyperball minus AdamW, mean over sizes',
        AtLeast(WIDER),
        _wider,
        requires={OPTIMIZER: ('adamw', 'hyperball')},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        "The embedding's learning rate alone explains most of muParam's gain.",
        "share of muParam's gain in best loss that the embedding's rate times width has, at the"
        ' largest size',
        AtLeast(0.5),  # most of it
        _share_of_gain,
        requires={
            PARAMETERIZATION: ('standard', 'muparam_simple'),
            EMBEDDING_RATE: ('none', 'width'),
        },
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'Where gradient norms stay below 1, clipping of any kind is inert.',
        'highest difference in loss between any kind of clipping, other than to a norm below 1, and'
        ' the baseline, over learning rates at which its gradient norm is below 1 after the warm-up'
        ' (nats)',
        AtMost(LOSS_BAND),
        _effect_of_clipping,
        covaries=tuple(CLIPPING),
        min_unique=_THREE,
        precondition=_require_kinds,
        probes=(NORM,),
    ),
    Claim(
        EXTENSION,
        'Without z-loss, a soft cap on output logits costs loss.',
        'best loss with minus without the cap, mean over sizes (nats)',
        AtLeast(LOSS_BAND),
        lambda e: _cost(e, OUTPUT_CAP, 0.0),
        requires={OUTPUT_CAP: (0.0, positive)},
        where={'objective.z_loss': (0.0,)},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'Without qk-layernorm, a soft cap on attention logits costs loss.',
        'best loss with minus without the cap, mean over sizes (nats)',
        AtLeast(LOSS_BAND),
        lambda e: _cost(e, ATTENTION_CAP, 0.0),
        requires={ATTENTION_CAP: (0.0, positive)},
        where={'model.qk_norm': ('none',)},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'Control: a beta2 of 0.9999, known to be bad, costs loss.',
        'best loss with minus that with 0.95, mean over sizes (nats)',
        AtLeast(LOSS_BAND),
        lambda e: _cost(e, BETA2, 0.95),
        requires={BETA2: (0.95, 0.9999)},
        min_unique=_THREE,
    ),
    Claim(
        EXTENSION,
        'Control: clipping that never acts changes nothing.',
        'difference in best loss, mean over sizes (nats)',
        AtMost(LOSS_BAND),
        lambda e: _cost(e, UPDATE_CLIP, 0.0).abs(),
        requires={UPDATE_CLIP: (0.0, 1e9)},
        min_unique=_THREE,
    ),
)
