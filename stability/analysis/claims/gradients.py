"""Claims on gradients, updates and eps (section 3.4; Figures 11 to 13, C.1, E.12, E.13, E.15)."""

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis import results as results_lib
from stability.analysis.claims import scaling, tables
from stability.analysis.claims.claim import (
  AtLeast,
  AtMost,
  Claim,
  MoreThan,
  positive,
  require_one_way_of_scaling,
)
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.families import QK_NORMS
from stability.analysis.claims.undecided import NotApplicable, Undecided
from stability.config import fields

EPS = 'optimizer.eps'
PAPER_EPS = fields.FIELDS[EPS].paper
NEAR_EPS = 10.0  # ratio of gradient RMS to eps up to which eps matters
UP, KEY = 'block_0/mlp/up', 'block_0/attention/key'  # the first MLP layer, the key projection
QK_NORM = 'model.qk_norm'


def _slopes(e: Evidence, probe: str, level: str) -> pd.DataFrame:
  """Slopes of ln(probe at the end of training) on ln(level); see evidence.slopes."""
  drop = e.results.sizes if level == 'parameters' else ()
  return tables.slopes(e.mean(np.log(e.at_end(probe))), level, drop)


def _block_output(e: Evidence) -> str:
  e.require('model.depth')
  return results_lib.output_probe(e.runs)


def _output_ratio_over_rates(e: Evidence) -> pd.Series:
  highest, lowest = (
      of_rate.mean(np.log(of_rate.at_end(_block_output(e)))).droplevel('learning_rate')
      for of_rate in (e.at_highest_rate(), e.at_lowest_rate())
  )
  return np.exp((highest - lowest).mean())


def _output_slope_on_depth(e: Evidence) -> pd.Series:
  e = scaling.scaled_in(e, 'depth').at_highest_rate()
  last = pd.Series(np.nan, e.runs.index)
  for depth, rows in e.runs.groupby('model.depth'):
    of_depth = e.only(e.runs.index.isin(rows.index))
    last[rows.index] = of_depth.at_end(f'block_{depth - 1}/output_rms')
  return tables.slopes(e.mean(np.log(last)), 'model.depth', ['parameters', 'model.width']).mean()


def _smallest_gradients(e: Evidence) -> Evidence:
  """The runs of the largest size at the highest learning rate, where gradients are smallest."""
  e = e.at_highest_rate()
  return e.only(e.runs['parameters'] == e.runs['parameters'].max())


def _excess_with_smaller_eps(e: Evidence) -> pd.Series:
  selected = _smallest_gradients(e.only(e.runs[EPS].isin([e.runs[EPS].min(), PAPER_EPS])))
  return tables.differences(selected.mean(selected.runs['loss']), EPS, PAPER_EPS).mean()


def _gradient_over_eps(e: Evidence) -> pd.Series:
  e = _smallest_gradients(e)
  return np.exp(e.average(np.log(e.at_end(f'gradient_over_eps/{UP}'))))


def _gradient_ratio_with_smaller_eps(e: Evidence) -> pd.Series:
  selected = _smallest_gradients(e.only(e.runs[EPS].isin([e.runs[EPS].min(), PAPER_EPS])))
  gradients = selected.mean(np.log(selected.at_end(f'gradient_rms/{UP}')))
  return np.exp(tables.differences(gradients, EPS, PAPER_EPS).mean())


def _require_smaller_eps(e: Evidence) -> None:
  if not e.runs[EPS].min() < PAPER_EPS:
    raise NotApplicable(f'the sweep has no eps below {PAPER_EPS:g}')


def _excess_with_larger_eps(e: Evidence) -> pd.Series:
  """Loss minus that with the smallest eps, as a fraction of the loss reduction with that eps.

  The mean over runs whose eps is at least ten times the gradient RMS with the smallest eps.
  """
  losses = e.mean(e.runs['loss'])
  gradients = e.mean(np.log(e.at_end(f'gradient_rms/{UP}')))
  smallest = e.runs[EPS].min()
  above, base = tables.pairs(losses, EPS, smallest)
  _, gradient = tables.pairs(gradients, EPS, smallest)
  large = above.index.get_level_values(EPS) >= 10 * np.exp(gradient[0].to_numpy())
  if not large.any():
    raise Undecided('no eps is ten times the gradient RMS')
  initial = e.runs['initial_loss'].mean()
  return ((above - base) / (initial - base))[large].mean()


def _remaining_update(e: Evidence) -> pd.Series:
  """Update RMS relative to that with the smallest eps, where the gradient RMS is below eps.

  It is computed for the first MLP layer of every block that all sizes have, as the geometric mean
  over runs. The highest of these means over blocks is returned.
  """
  e.require('model.depth')
  smallest = e.runs[EPS].min()
  by_block = []
  for block in range(int(e.runs['model.depth'].min())):
    layer = f'block_{block}/mlp/up'
    updates = e.mean(np.log(e.at_end(f'update_rms/{layer}')))
    gradients = e.mean(np.log(e.at_end(f'gradient_over_eps/{layer}')))
    log_ratios = tables.differences(updates, EPS, smallest)
    over_eps, _ = tables.pairs(gradients, EPS, smallest)
    below = over_eps[0].to_numpy() < 0
    if below.any():
      by_block.append(log_ratios[below].mean())
  if not by_block:
    raise Undecided('no gradient RMS is below eps')
  return np.exp(pd.concat(by_block, axis=1).max(axis=1))


def _update_near_eps(e: Evidence) -> pd.Series:
  """The ratio of update RMS between gradients near eps and gradients far above it."""
  over_eps = e.at_end(f'gradient_over_eps/{UP}')
  near, far = over_eps <= 3, over_eps >= 100
  if not near.any() or not far.any():
    raise Undecided(
        f'gradients are {over_eps.min():.0f} to {over_eps.max():.0f} times eps:'
        ' some must be at most 3 times and some at least 100 times'
    )
  updates = np.log(e.at_end(f'update_rms/{UP}'))
  return np.exp(e.average(updates.where(near)) - e.average(updates.where(far)))


def _update_of_smallest_gradients(e: Evidence) -> pd.Series:
  updates = np.log(e.at_end(f'update_rms/{UP}'))
  selected = _smallest_gradients(e)
  over_eps = selected.at_end(f'gradient_over_eps/{UP}').median()
  if over_eps > NEAR_EPS:
    raise Undecided(f'gradients are {over_eps:.0f} times eps there: too large for eps to matter')
  return np.exp(selected.average(updates[selected.runs.index]) - e.average(updates))


_WITH = {QK_NORM: (QK_NORMS,)}
_SIZES = {'parameters': 2, 'learning_rate': 3}
# Claims on size and learning rate alone apply to sweeps that vary nothing else but qk-layernorm.
_PLAIN = (QK_NORM,)


def _decreases(figure: str, layer: str, path: str) -> tuple[Claim, Claim]:
  """The claims that a layer's gradient RMS decreases with size and with the learning rate."""
  return tuple(
      Claim(
          figure,
          f'The gradient RMS of {layer} decreases with {words}.',
          f'slope of ln(gradient RMS at the end) on ln({name}), mean over {lines}',
          AtMost(-0.1),
          lambda e, level=level: _slopes(e, f'gradient_rms/{path}', level).mean(),
          where=_WITH,
          min_unique=_SIZES,
          only_varies=_PLAIN,
          precondition=require_one_way_of_scaling,
          probes=(f'gradient_rms/{path}',),
      )
      for level, words, name, lines in (
          ('parameters', 'size', 'parameters', 'learning rates'),
          ('learning_rate', 'the learning rate', 'learning rate', 'sizes'),
      )
  )


CLAIMS = (
    *_decreases('11', "block 0's first MLP layer", UP),
    Claim(
        '11',
        'At the largest size and the highest learning rate, gradients approach eps.',
        "gradient RMS of block 0's first MLP layer at the end of training, divided by eps",
        AtMost(NEAR_EPS),
        _gradient_over_eps,
        is_ratio=True,
        where=_WITH,
        min_unique=_SIZES,
        only_varies=_PLAIN,
        precondition=require_one_way_of_scaling,
        probes=(f'gradient_over_eps/{UP}',),
    ),
    *_decreases('E.12', "block 0's key projection", KEY),
    Claim(
        'C.1',
        "The RMS of a block's output is about the same at every size.",
        'absolute slope of ln(output RMS at the end) on ln(parameters), mean over learning rates',
        AtMost(0.1),
        lambda e: _slopes(e, _block_output(e), 'parameters').abs().mean(),
        where=_WITH,
        min_unique=_SIZES,
        only_varies=_PLAIN,
        precondition=require_one_way_of_scaling,
        probes=('block_*/output_rms',),
    ),
    Claim(
        'C.1',
        "The RMS of a block's output increases with the learning rate.",
        'ratio of output RMS at the end, highest / lowest learning rate, geometric mean over sizes',
        AtLeast(1.5),
        _output_ratio_over_rates,
        is_ratio=True,
        where=_WITH,
        min_unique=_SIZES,
        only_varies=_PLAIN,
        probes=('block_*/output_rms',),
    ),
    Claim(
        'C.1',
        "At the highest learning rate, the RMS of the last block's output increases with depth.",
        'slope of ln(output RMS at the end) on ln(depth)',
        AtLeast(0.1),
        _output_slope_on_depth,
        where=_WITH,
        min_unique={'model.depth': 3},
        only_varies=_PLAIN,
        precondition=scaling.require_shapes('depth'),
        probes=('block_*/output_rms',),
    ),
    Claim(
        '12',
        'At the largest size and the highest learning rate, an eps below 1e-8 does no harm.',
        'loss with the smallest eps minus loss with 1e-8 (nats)',
        AtMost(0.02),
        _excess_with_smaller_eps,
        requires={EPS: (PAPER_EPS, positive)},
        precondition=_require_smaller_eps,
    ),
    Claim(
        '12',
        'At the largest size and the highest learning rate, an eps below 1e-8 lowers the loss.',
        'loss with 1e-8 minus loss with the smallest eps (nats)',
        MoreThan(0.0),
        lambda e: -_excess_with_smaller_eps(e),
        requires={EPS: (PAPER_EPS, positive)},
        precondition=_require_smaller_eps,
    ),
    Claim(
        '12',
        'At the largest size and the highest learning rate, an eps below 1e-8 keeps the gradient'
        ' RMS from collapsing.',
        'gradient RMS at the end, smallest eps / 1e-8',
        AtLeast(2.0),
        _gradient_ratio_with_smaller_eps,
        is_ratio=True,
        requires={EPS: (PAPER_EPS, positive)},
        precondition=_require_smaller_eps,
        probes=(f'gradient_rms/{UP}',),
    ),
    Claim(
        'E.15',
        'An eps of ten times the gradient RMS or more (such as 1e-6 at 4.8B) makes runs unstable.',
        'loss minus that with the smallest eps, as a fraction of what is learned with the smallest,'
        ' mean over runs',
        AtLeast(instability.MARGIN),
        _excess_with_larger_eps,
        min_unique={EPS: 2},
        probes=(f'gradient_rms/{UP}',),
    ),
    Claim(
        '13',
        'Where the gradient RMS is below eps, the update RMS collapses, in every block.',
        'update RMS divided by that with the smallest eps, geometric mean over runs, highest over'
        ' blocks',
        AtMost(0.5),
        _remaining_update,
        is_ratio=True,
        min_unique={EPS: 2},
        probes=('update_rms/block_*/mlp/up', 'gradient_over_eps/block_*/mlp/up'),
    ),
    Claim(
        'E.13',
        'Updates shrink as gradients approach eps.',
        'update RMS where the gradient RMS is at most 3 times eps, divided by that where it is at'
        ' least 100 times eps, geometric means',
        AtMost(0.8),
        _update_near_eps,
        is_ratio=True,
        where=_WITH,
        min_unique=_SIZES,
        only_varies=_PLAIN,
        probes=(f'update_rms/{UP}', f'gradient_over_eps/{UP}'),
    ),
    Claim(
        'E.13',
        'The largest size at the highest learning rate has smaller updates than other runs.',
        "update RMS of block 0's first MLP layer at the end, divided by that of all runs, geometric"
        ' means',
        AtMost(0.8),
        _update_of_smallest_gradients,
        is_ratio=True,
        where=_WITH,
        min_unique=_SIZES,
        only_varies=_PLAIN,
        precondition=require_one_way_of_scaling,
        probes=(f'update_rms/{UP}', f'gradient_over_eps/{UP}'),
    ),
)
