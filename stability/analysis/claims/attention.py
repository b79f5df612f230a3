"""Claims on attention logits and qk-layernorm (sections 3.1.1, 3.3; Figures 1, 2, 9, 10, E.1)."""

import numpy as np
import pandas as pd

from stability.analysis import instability, lr_sensitivity
from stability.analysis.claims import tables
from stability.analysis.claims.claim import (
  AtLeast,
  AtMost,
  Claim,
  MoreThan,
  require_one_way_of_scaling,
)
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.families import QK_NORMS
from stability.analysis.claims.undecided import Undecided
from stability.analysis.instability import UNSTABLE_LOGIT
from stability.analysis.results import LOGIT

QK_NORM = 'model.qk_norm'
QUERY_NORM, KEY_NORM = 'block_0/query_norm', 'block_0/key_norm'
COSINE = 'block_0/query_key_cosine'
ENTROPY = 'block_0/attention_entropy'


def benefit_of_qk_norm(e: Evidence) -> pd.Series:
  """The lowest ratio over sizes of LR sensitivity without qk-layernorm to that with it."""
  return tables.ratios(e.lr_sensitivity(), QK_NORM, e.variants[QK_NORM]).min()


def _slope_on_size(e: Evidence) -> pd.Series:
  table = np.log(tables.positive(e.lr_sensitivity(across_sizes=True)))
  return tables.slopes(table, 'parameters', e.results.sizes).min()


def _drop_of_lowest_unstable_rate(e: Evidence) -> pd.Series:
  e = e.with_learning_rates()
  unstable = e.unstable()
  if not unstable.any():
    raise Undecided('no run is unstable')
  rates = np.log10(e.runs['learning_rate'])
  keys = [e.runs[key] for key in (*e.keys, 'seed')]
  lowest = rates.where(unstable).groupby(keys, dropna=False).transform('min')
  is_censored = lowest.isna()
  # Where no run is unstable, assume that the next learning rate of the paper's grid would be.
  lowest = lowest.fillna(rates.groupby(keys, dropna=False).transform('max') + 0.5)
  lowest = e.mean(lowest).groupby(level=e.keys, dropna=False).first()
  smallest = tables.at_lowest(lowest, 'parameters')
  largest = tables.at_highest(lowest, 'parameters')
  drop = smallest.mean() - largest.mean()
  # The rate of a size without unstable runs may be any higher one: it bounds one side alone.
  parameters = e.runs['parameters']
  end, name = (
      (parameters.max(), 'largest') if _LOWER.is_met(drop[0]) else (parameters.min(), 'smallest')
  )
  if is_censored[parameters == end].any():
    raise Undecided(f'the {name} size is stable at every learning rate of its grid')
  return drop


def _largest_unstable_with_qk_norm(e: Evidence) -> pd.Series:
  e = e.only_variant(QK_NORM).at_highest_rate()
  return e.only(e.runs['parameters'] == e.runs['parameters'].max()).unstable_fraction()


def _block_0_is_highest(e: Evidence) -> pd.Series:
  e.require('model.depth')
  e = e.only((e.runs['model.depth'] > 1) & e.unstable())
  if e.runs.empty:
    raise Undecided('no run with two or more blocks is unstable')
  first = e.max_over_training(LOGIT)
  highest = first.copy()
  for depth, rows in e.runs.groupby('model.depth'):
    of_depth = e.only(e.runs.index.isin(rows.index))
    for block in range(1, depth):
      others = of_depth.max_over_training(f'block_{block}/attention_logit_max')
      highest = highest.combine(others.reindex(highest.index), np.fmax)
  return e.fraction(first >= highest, first.notna())


def _only_past_1e4(e: Evidence) -> Evidence:
  past = e.only(e.max_over_training(LOGIT) > UNSTABLE_LOGIT)
  if past.runs.empty:
    raise Undecided("no run's attention logits exceeded 1e4")
  return past


def _remaining_entropy(e: Evidence) -> pd.Series:
  return e.average(e.at_end(ENTROPY) / e.at_start(ENTROPY))


def _remaining_entropy_with_qk_norm(e: Evidence) -> pd.Series:
  return _remaining_entropy(e.only_variant(QK_NORM).at_highest_rate())


def _unstable_past_1e4(e: Evidence) -> pd.Series:
  past = _only_past_1e4(e)
  return past.unstable_fraction()


def _highest_logit_with_qk_norm(e: Evidence) -> pd.Series:
  e = e.only_variant(QK_NORM)
  return e.maximum(e.max_over_training(LOGIT))


def _predicted_logits(e: Evidence) -> pd.DataFrame:
  """Predictions of log10(logit) of the largest size after the warm-up, a row per learning rate.

  They come from quadratics in ln(parameters) that are fitted to the other sizes.
  """
  logits = e.mean(np.log10(e.after_warmup(LOGIT)))
  largest = np.log(e.runs['parameters'].max())
  found = {}
  for rate, line in logits.groupby(level='learning_rate'):
    x = np.log(line.index.get_level_values('parameters').to_numpy(float)) - largest
    smaller = x < 0
    if len(set(x[smaller])) >= 3:
      fit = np.polynomial.polynomial.polyfit(x[smaller], line.to_numpy()[smaller], 2)
      found[rate] = fit[0]  # the prediction, since x is 0 at the largest size
  if not found:
    raise Undecided('no learning rate has three sizes beside the largest')
  return pd.DataFrame(found).T.rename_axis('learning_rate')


def _extrapolation_error(e: Evidence) -> pd.Series:
  predicted = _predicted_logits(e)
  largest = e.only(e.runs['parameters'] == e.runs['parameters'].max())
  logits = largest.mean(np.log10(largest.after_warmup(LOGIT)))
  rates = logits.index.get_level_values('learning_rate')
  errors = [
      (logits[rates == rate] - predicted.loc[rate]).abs().max()
      for rate in predicted.index.intersection(rates)
  ]
  if not errors:
    raise Undecided('the logits of the largest size were not measured after the warm-up')
  return pd.DataFrame(errors).median()


def _unstable_where_predicted(e: Evidence) -> pd.Series:
  """The fraction of the largest size's runs that are unstable where instability is predicted.

  It is predicted at the learning rates at which the quadratics put the attention logits of the
  largest size above 1e4, and no smaller size was measured above it.
  """
  is_largest = e.runs['parameters'] == e.runs['parameters'].max()
  fitted = e.only(~is_largest)
  measured = fitted.mean(np.log10(fitted.after_warmup(LOGIT))).groupby('learning_rate').max()
  predicted = _predicted_logits(e)
  limit = np.log10(UNSTABLE_LOGIT)
  past = (predicted > limit) & (measured.reindex(predicted.index) <= limit)
  if not past[0].any():
    raise Undecided('at no learning rate is the largest size predicted to be the first past 1e4')
  largest = e.only(is_largest)
  unstable = largest.mean(largest.unstable().astype(float)).groupby('learning_rate').mean()
  return unstable.reindex(past.index).where(past).mean()


def _critical_logit_scale(e: Evidence) -> pd.Series:
  """Decades between 1e3 and the logit scale at which the loss exceeds the best by the MARGIN."""
  e.require('model.depth')
  e = e.only(e.runs['model.depth'] > 0)
  if not lr_sensitivity.trains(e.runs):
    raise Undecided('no run trains')
  losses = e.mean(e.runs['loss']).groupby(level='model.logit_scale').mean().sort_index()
  scales = np.log10(losses.index.to_numpy(float))
  best_D = losses.min().to_numpy()
  limit_D = best_D + instability.MARGIN * (e.runs['initial_loss'].mean() - best_D)
  critical_D = np.full(len(limit_D), scales[-1] + 0.5)  # a step above the highest, if not reached
  for draw, limit in enumerate(limit_D):
    loss_K = losses[draw].to_numpy()
    within = np.flatnonzero(loss_K <= limit)[-1]
    if within + 1 < len(scales):
      share = (limit - loss_K[within]) / (loss_K[within + 1] - loss_K[within])
      critical_D[draw] = scales[within] + share * (scales[within + 1] - scales[within])
  return pd.Series(np.abs(critical_D - 3))


def _excess_over_bigram_model(e: Evidence) -> pd.Series:
  blocks = e.only((e.runs['model.depth'] > 0) & (e.runs['model.logit_scale'] == 1e4))
  bigram = e.only(e.runs['model.depth'] == 0)
  if blocks.runs.empty or bigram.runs.empty:
    raise Undecided('needs a model with a logit scale of 1e4 and one without blocks')
  return blocks.average(blocks.runs['loss']) - bigram.average(bigram.runs['loss'])


def _growth_from_norms(e: Evidence) -> pd.Series:
  past = _only_past_1e4(e)
  norms = sum(np.log(past.at_end(norm) / past.at_start(norm)) for norm in (QUERY_NORM, KEY_NORM))
  return past.average(norms / np.log(past.at_end(LOGIT) / past.at_start(LOGIT)))


def _growth_from_alignment(e: Evidence) -> pd.Series:
  past = _only_past_1e4(e)
  cosines = np.log(past.at_end(COSINE) / past.at_start(COSINE))
  return past.average(cosines / np.log(past.at_end(LOGIT) / past.at_start(LOGIT)))


_BOTH = {QK_NORM: ('none', QK_NORMS)}
_WITHOUT = {QK_NORM: ('none',)}
_LOWER = AtLeast(0.25)  # decades; half a step of the paper's grid

CLAIMS = (
    Claim(
        '1',
        'Without qk-layernorm, LR sensitivity is higher than with it at every size.',
        'lowest ratio of LR sensitivity, without / with qk-layernorm, over sizes',
        AtLeast(1.1),
        benefit_of_qk_norm,
        is_ratio=True,
        requires=_BOTH,
        min_unique={'learning_rate': 3},
    ),
    Claim(
        '1',
        'LR sensitivity increases with size, with and without qk-layernorm.',
        'slope of ln(LR sensitivity) on ln(parameters), the lower of the two',
        AtLeast(0.05),
        _slope_on_size,
        requires=_BOTH,
        min_unique={'learning_rate': 3, 'parameters': 2},
        precondition=require_one_way_of_scaling,
    ),
    Claim(
        '1',
        'Without qk-layernorm, the lowest unstable learning rate decreases with size.',
        'decades by which it is lower at the largest size than at the smallest',
        _LOWER,
        _drop_of_lowest_unstable_rate,
        where=_WITHOUT,
        min_unique={'learning_rate': 3, 'parameters': 2},
        precondition=require_one_way_of_scaling,
    ),
    Claim(
        '1',
        'With qk-layernorm, the largest size is stable at the highest learning rate.',
        'fraction of these runs that are unstable',
        AtMost(0.0),
        _largest_unstable_with_qk_norm,
        requires=_BOTH,
        min_unique={'learning_rate': 3, 'parameters': 2},
        precondition=require_one_way_of_scaling,
    ),
    Claim(
        '2',
        'Without qk-layernorm, runs at the highest learning rate are unstable at every size.',
        'fraction of these runs that are unstable',
        AtLeast(1.0),
        lambda e: e.at_highest_rate().unstable_fraction(),
        where=_WITHOUT,
        min_unique={'learning_rate': 3, 'parameters': 2},
    ),
    Claim(
        '2',
        'Of all blocks, the first has the highest attention logits.',
        'fraction of the unstable runs without qk-layernorm in which it has',
        AtLeast(0.5),
        _block_0_is_highest,
        where=_WITHOUT,
        min_unique={'learning_rate': 3},
        probes=('block_*/attention_logit_max',),
    ),
    Claim(
        '2',
        'Where attention logits exceed 1e4, attention collapses: its entropy falls towards zero.',
        "entropy of block 0 at the end as a fraction of its first value, mean over these runs",
        AtMost(0.25),
        lambda e: _remaining_entropy(_only_past_1e4(e)),
        is_ratio=True,
        where=_WITHOUT,
        min_unique={'learning_rate': 3},
        probes=(LOGIT, ENTROPY),
    ),
    Claim(
        '2',
        'With qk-layernorm, attention does not collapse at the highest learning rate.',
        "entropy of block 0 at the end as a fraction of its first value, mean over these runs",
        AtLeast(0.25),
        _remaining_entropy_with_qk_norm,
        is_ratio=True,
        requires=_BOTH,
        min_unique={'learning_rate': 3},
        probes=(ENTROPY,),
    ),
    Claim(
        '9',
        'Every run whose attention logits exceeded 1e4 is unstable.',
        'fraction of these runs that are unstable',
        AtLeast(1.0),
        _unstable_past_1e4,
        where=_WITHOUT,
        min_unique={'learning_rate': 3},
        probes=(LOGIT,),
    ),
    Claim(
        '9',
        'With qk-layernorm, attention logits stay below 1e4.',
        'highest attention logit of block 0 in any run',
        AtMost(UNSTABLE_LOGIT),
        _highest_logit_with_qk_norm,
        requires=_BOTH,
        min_unique={'learning_rate': 3},
        probes=(LOGIT,),
    ),
    Claim(
        '9',
        'Quadratics fitted to the logits of smaller sizes predict those of the largest.',
        'median absolute error over learning rates, at the end of the warm-up (decades)',
        AtMost(0.3),  # a factor of 2
        _extrapolation_error,
        where=_WITHOUT,
        min_unique={'parameters': 4},
        precondition=require_one_way_of_scaling,
        probes=(LOGIT,),
    ),
    Claim(
        '9',
        'Where the quadratics predict that the largest size is the first to exceed 1e4, it is'
        ' unstable.',
        'fraction of its runs at these learning rates that are unstable',
        AtLeast(1.0),
        _unstable_where_predicted,
        where=_WITHOUT,
        min_unique={'parameters': 4},
        precondition=require_one_way_of_scaling,
        probes=(LOGIT,),
    ),
    Claim(
        '10',
        'The loss deteriorates where attention logits reach about 1e3.',
        'decades between 1e3 and the logit scale at which 5 % of what was learned is lost',
        AtMost(0.5),
        _critical_logit_scale,
        where={QK_NORM: ('fixed',)},
        min_unique={'model.logit_scale': 4},
    ),
    Claim(
        '10',
        'At a logit scale of 1e4, the model is worse than one without blocks, a bigram model.',
        'loss minus that of the bigram model (nats)',
        MoreThan(0.0),
        _excess_over_bigram_model,
        where={QK_NORM: ('fixed',)},
        min_unique={'model.logit_scale': 2, 'model.depth': 2},
    ),
    Claim(
        'E.1',
        'Attention logits grow because the norms of queries and keys grow.',
        'fraction of the growth of ln(logit) that comes from the norms, mean over runs past 1e4',
        AtLeast(0.5),
        _growth_from_norms,
        where=_WITHOUT,
        min_unique={'learning_rate': 3},
        probes=(LOGIT, QUERY_NORM, KEY_NORM),
    ),
    Claim(
        'E.1',
        'Attention logits do not grow because queries and keys align.',
        'fraction of the growth of ln(logit) that comes from the cosine, mean over runs past 1e4',
        AtMost(0.25),
        _growth_from_alignment,
        where=_WITHOUT,
        min_unique={'learning_rate': 3},
        probes=(LOGIT, COSINE),
    ),
)
