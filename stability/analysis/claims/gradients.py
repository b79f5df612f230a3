"""Gradients, updates and epsilon (section 3.4, Figures 11, 12, 13, C.1, E.12, E.13, E.15)."""

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis.claims import evidence as ev
from stability.analysis.claims import scaling
from stability.analysis.claims.claim import (
  AtLeast,
  AtMost,
  Claim,
  MoreThan,
  above_zero,
  grows_in_one_way,
)
from stability.analysis.claims.evidence import Evidence, NotAbout, Undecided

EPS = 'optimizer.eps'
PAPER_EPS = 1e-8
NEAR_EPS = 10.0  # times eps
UP, KEY = 'block_0/mlp/up', 'block_0/attention/key'  # the first MLP layer, the key projection
QK_NORM = 'model.qk_norm'


def _slopes(e: Evidence, probe: str, level: str) -> pd.DataFrame:
  """Of ln(probe at the end) on ln(level), a row a line."""
  without = e.results.sizes if level == 'parameters' else ()
  return ev.slopes(e.mean(np.log(e.at_end(probe))), level, without)


def _block_output(e: Evidence) -> str:
  """Block 2's, as in the paper, or that of the last block that all sizes have."""
  return f'block_{min(2, int(e.runs["model.depth"].min()) - 1)}/output_rms'


def _highest_over_lowest_rate(e: Evidence) -> pd.Series:
  values = e.mean(np.log(e.at_end(_block_output(e))))
  highest, lowest = ev.at_highest(values, 'learning_rate'), ev.at_lowest(values, 'learning_rate')
  return np.exp((highest.droplevel('learning_rate') - lowest.droplevel('learning_rate')).mean())


def _output_with_depth(e: Evidence) -> pd.Series:
  e = scaling.grown(e, 'depth')
  e = e.only(e.runs['learning_rate'] == e.runs['learning_rate'].max())
  last = pd.Series(np.nan, e.runs.index)
  for depth, rows in e.runs.groupby('model.depth'):
    of_depth = e.only(e.runs.index.isin(rows.index))
    last[rows.index] = of_depth.at_end(f'block_{depth - 1}/output_rms')
  return ev.slopes(e.mean(np.log(last)), 'model.depth', ['parameters', 'model.width']).mean()


def _hardest(e: Evidence) -> Evidence:
  """The largest size at the highest learning rate, where gradients are smallest."""
  e = e.only(e.runs['parameters'] == e.runs['parameters'].max())
  return e.only(e.runs['learning_rate'] == e.runs['learning_rate'].max())


def _harm_of_a_smaller_eps(e: Evidence) -> pd.Series:
  hardest = _hardest(e.only(e.runs[EPS].isin([e.runs[EPS].min(), PAPER_EPS])))
  return ev.differences(hardest.mean(hardest.runs['loss']), EPS, PAPER_EPS).mean()


def _gradient_over_eps(e: Evidence) -> pd.Series:
  return np.exp(_hardest(e).average(np.log(_hardest(e).at_end(f'gradient_over_eps/{UP}'))))


def _gradient_kept_by_a_smaller_eps(e: Evidence) -> pd.Series:
  hardest = _hardest(e.only(e.runs[EPS].isin([e.runs[EPS].min(), PAPER_EPS])))
  gradients = hardest.mean(np.log(hardest.at_end(f'gradient_rms/{UP}')))
  return np.exp(ev.differences(gradients, EPS, PAPER_EPS).mean())


def _has_smaller_eps(e: Evidence) -> None:
  if not e.runs[EPS].min() < PAPER_EPS:
    raise NotAbout(f'the sweep has no eps below {PAPER_EPS:g}')


def _harm_of_a_larger_eps(e: Evidence) -> pd.Series:
  """Loss above that with the smallest eps, as a share of what is learned with that."""
  losses = e.mean(e.runs['loss'])
  gradients = e.mean(np.log(e.at_end(f'gradient_rms/{UP}')))
  smallest = e.runs[EPS].min()
  above, base = ev.pairs(losses, EPS, smallest)
  _, gradient = ev.pairs(gradients, EPS, smallest)
  large = above.index.get_level_values(EPS) >= 10 * np.exp(gradient[0].to_numpy())
  if not large.any():
    raise Undecided('no eps is ten times the gradient RMS')
  initial = e.runs['initial_loss'].mean()
  return ((above - base) / (initial - base))[large].mean()


def _update_left(e: Evidence) -> pd.Series:
  """Update RMS over that with the smallest eps, where the gradient RMS is below eps.

  Of the first MLP layer of each block that all runs have, the highest of their geometric means.
  """
  smallest, of_blocks = e.runs[EPS].min(), []
  for block in range(int(e.runs['model.depth'].min())):
    layer = f'block_{block}/mlp/up'
    updates = e.mean(np.log(e.at_end(f'update_rms/{layer}')))
    gradients = e.mean(np.log(e.at_end(f'gradient_over_eps/{layer}')))
    left = ev.differences(updates, EPS, smallest)
    over_eps, _ = ev.pairs(gradients, EPS, smallest)
    below = over_eps[0].to_numpy() < 0
    if below.any():
      of_blocks.append(left[below].mean())
  if not of_blocks:
    raise Undecided('no gradient RMS is below eps')
  return np.exp(pd.concat(of_blocks, axis=1).max(axis=1))


def _update_near_eps(e: Evidence) -> pd.Series:
  """Update RMS where the gradient is near eps over that where it is far above."""
  over_eps = e.at_end(f'gradient_over_eps/{UP}')
  near, far = over_eps <= 3, over_eps >= 100
  if not near.any() or not far.any():
    raise Undecided(
        f'gradients are {over_eps.min():.0f} to {over_eps.max():.0f} times eps:'
        ' some must be within 3 times and some 100 times above'
    )
  updates = np.log(e.at_end(f'update_rms/{UP}'))
  return np.exp(e.average(updates.where(near)) - e.average(updates.where(far)))


def _update_where_hardest(e: Evidence) -> pd.Series:
  updates = np.log(e.at_end(f'update_rms/{UP}'))
  hardest = _hardest(e)
  over_eps = hardest.at_end(f'gradient_over_eps/{UP}').median()
  if over_eps > NEAR_EPS:
    raise Undecided(f'gradients are {over_eps:.0f} times eps there: eps shrinks no update')
  return np.exp(hardest.average(updates[hardest.runs.index]) - e.average(updates))


_WITH = {QK_NORM: ('layernorm',)}
_SIZES = {'parameters': 2, 'learning_rate': 3}
_PLAIN = (QK_NORM,)  # such claims need size and learning rate alone, which nearly all sweeps vary


def _falls(figure: str, layer: str, path: str) -> tuple[Claim, Claim]:
  """Gradient RMS falls with size, and with the learning rate."""
  return tuple(
      Claim(
          figure,
          f'Gradient RMS of {layer} falls with {name}.',
          f'slope of ln(gradient RMS at the end) on ln({name}), mean over {lines}',
          AtMost(-0.1),
          lambda e, level=level: _slopes(e, f'gradient_rms/{path}', level).mean(),
          where=_WITH,
          several=_SIZES,
          alone=_PLAIN,
          suits=grows_in_one_way,
          probes=(f'gradient_rms/{path}',),
      )
      for level, name, lines in (
          ('parameters', 'parameters', 'learning rates'),
          ('learning_rate', 'learning rate', 'sizes'),
      )
  )


CLAIMS = (
    *_falls('11', "block 0's first MLP layer", UP),
    Claim(
        '11',
        'At the largest size and the highest learning rate, gradients come near eps.',
        "RMS of those of block 0's first MLP layer at the end over eps",
        AtMost(NEAR_EPS),
        _gradient_over_eps,
        where=_WITH,
        several=_SIZES,
        alone=_PLAIN,
        suits=grows_in_one_way,
        probes=(f'gradient_over_eps/{UP}',),
    ),
    *_falls('E.12', "block 0's key projection", KEY),
    Claim(
        'C.1',
        "The RMS of a block's output is about the same at all sizes.",
        'absolute slope of ln(output RMS at the end) on ln(parameters), mean over learning rates',
        AtMost(0.1),
        lambda e: _slopes(e, _block_output(e), 'parameters').abs().mean(),
        where=_WITH,
        several=_SIZES,
        alone=_PLAIN,
        suits=grows_in_one_way,
        probes=('block_*/output_rms',),
    ),
    Claim(
        'C.1',
        "The RMS of a block's output grows with the learning rate.",
        'its ratio at the end, highest / lowest learning rate, geometric mean over sizes',
        AtLeast(1.5),
        _highest_over_lowest_rate,
        where=_WITH,
        several=_SIZES,
        alone=_PLAIN,
        probes=('block_*/output_rms',),
    ),
    Claim(
        'C.1',
        "At the highest learning rate, the RMS of the last block's output grows with depth.",
        'slope of its ln at the end on ln(depth)',
        AtLeast(0.1),
        _output_with_depth,
        where=_WITH,
        several={'model.depth': 3},
        alone=_PLAIN,
        suits=scaling.has_ways('depth'),
        probes=('block_*/output_rms',),
    ),
    Claim(
        '12',
        'An eps below 1e-8 does no harm at the largest size and the highest learning rate.',
        'loss with the smallest eps minus loss with 1e-8 (nats)',
        AtMost(0.02),
        _harm_of_a_smaller_eps,
        arms={EPS: (PAPER_EPS, above_zero)},
        suits=_has_smaller_eps,
    ),
    Claim(
        '12',
        'An eps below 1e-8 lowers the loss there.',
        'loss with 1e-8 minus loss with the smallest eps (nats)',
        MoreThan(0.0),
        lambda e: -_harm_of_a_smaller_eps(e),
        arms={EPS: (PAPER_EPS, above_zero)},
        suits=_has_smaller_eps,
    ),
    Claim(
        '12',
        'An eps below 1e-8 keeps the gradient RMS from collapsing there.',
        'gradient RMS at the end, smallest eps / 1e-8',
        AtLeast(2.0),
        _gradient_kept_by_a_smaller_eps,
        arms={EPS: (PAPER_EPS, above_zero)},
        suits=_has_smaller_eps,
        probes=(f'gradient_rms/{UP}',),
    ),
    Claim(
        'E.15',
        'An eps of ten times the gradient RMS or more, as 1e-6 is at 4.8B, makes runs unstable.',
        'loss above that with the smallest eps, share of what is learned with that, mean over runs',
        AtLeast(instability.MARGIN),
        _harm_of_a_larger_eps,
        several={EPS: 2},
        probes=(f'gradient_rms/{UP}',),
    ),
    Claim(
        '13',
        'Where the gradient RMS is below eps, the update RMS collapses, in every block.',
        'update RMS over that with the smallest eps, geometric mean over runs, highest of all'
        ' blocks',
        AtMost(0.5),
        _update_left,
        several={EPS: 2},
        probes=('update_rms/block_*/mlp/up', 'gradient_over_eps/block_*/mlp/up'),
    ),
    Claim(
        'E.13',
        'Updates shrink as gradients come near eps.',
        'update RMS where the gradient RMS is within 3 times eps over that where it is 100 times'
        ' above, geometric means',
        AtMost(0.8),
        _update_near_eps,
        where=_WITH,
        several=_SIZES,
        alone=_PLAIN,
        probes=(f'update_rms/{UP}', f'gradient_over_eps/{UP}'),
    ),
    Claim(
        'E.13',
        'The largest size at the highest learning rate has smaller updates than the others.',
        "update RMS of block 0's first MLP layer at the end over that of all runs, geometric means",
        AtMost(0.8),
        _update_where_hardest,
        where=_WITH,
        several=_SIZES,
        alone=_PLAIN,
        suits=grows_in_one_way,
        probes=(f'update_rms/{UP}', f'gradient_over_eps/{UP}'),
    ),
)
