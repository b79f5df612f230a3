"""Transformations of the parameters after an update, such as clipping, centering and projection."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from stability.model import ngpt, parameterization, rounding, spectra
from stability.model.attention_stats import MAX_BY_HEAD
from stability.model.kernels import SMALLEST_NORM
from stability.types import HParams, Params, Static
from stability.variants import Term, Terms


@dataclasses.dataclass(frozen=True)
class Update:
  """An update, as the transformations after it and averages of parameters read it."""

  old: Params  # the parameters before the update
  moves: Params  # what it subtracts from them, weight decay apart
  optimizer: optax.OptState  # the new one
  measured: Mapping[str, jax.Array]  # on the step's batch: losses, and what Term.needs names
  step: jax.Array  # its number, from 1
  learning_rate: jax.Array
  hparams: HParams
  static: Static


def _center_head(new: Params, update: Update) -> Params:
  """Subtracts the mean output embedding from the head (mu-centering)."""
  del update
  head_DxV = new['head']
  return new | {'head': head_DxV - jnp.mean(head_DxV, axis=1, keepdims=True)}


def _qk_clip(new: Params, update: Update) -> Params:
  """Scales down the query and key kernels of heads whose largest attention logit exceeds the cap.

  Where a head's largest logit in the step's batch is S > cap, both of its kernels are multiplied by
  sqrt(cap / S). If query heads share a key head (model.query_group), the key kernel stays as it is
  and that of the query is multiplied by cap / S. A qk-norm undoes this, so that only the kernels
  change, not the logits.
  """
  cap = update.hparams['optimizer.qk_clip']
  model = update.static.model
  shares_keys = model.query_group > 1
  kernels = ('query',) if shares_keys else ('query', 'key')
  for name in [name for name in new if name.startswith('block_')]:
    largest_H = update.measured[f'{name}/{MAX_BY_HEAD}']
    factor_H = jnp.where(largest_H > cap, cap / largest_H, 1)
    if not shares_keys:
      factor_H = jnp.sqrt(factor_H)
    factor_D = jnp.repeat(factor_H, model.head_dim)
    attention = new[name]['attention']
    scaled = {kernel: attention[kernel] * factor_D for kernel in kernels}
    new = new | {name: new[name] | {'attention': attention | scaled}}
  return new


def _keep_norm(new: Params, update: Update) -> Params:
  """Moves the blocks' matrices without weight decay and projects them back to their old norm."""

  def project(kind, new, old, move):
    if kind != 'hidden':
      return new
    moved = old - move
    return moved * (jnp.linalg.norm(old) / jnp.maximum(jnp.linalg.norm(moved), SMALLEST_NORM))

  kinds = parameterization.kinds(new)
  return jax.tree.map(project, kinds, new, update.old, update.moves)


def _on_spectral_sphere(new: Params, update: Update) -> Params:
  """Scales the blocks' matrices to their spectral norm, then moves them without weight decay."""

  def move(kind, new, old, move):
    return spectra.to_sphere(old) - move if kind == 'hidden' else new

  return jax.tree.map(move, parameterization.kinds(new), new, update.old, update.moves)


def _skip_step(new: Params, update: Update) -> Params:
  """Keeps the old parameters if the wrapper of this name (stability/optim/wrappers.py) skips."""
  skips = optax.tree.get(update.optimizer, 'skips')
  return jax.tree.map(lambda a, b: jnp.where(skips, a, b), update.old, new)


def _round_to_nearest(new: Params, update: Update) -> Params:
  del update
  return rounding.to_bfloat16(new)


def _round_stochastically(new: Params, update: Update) -> Params:
  return rounding.to_bfloat16_stochastically(new, update.hparams['seed'], update.step)


# (new parameters, Update) -> parameters; applied in this order.
AFTER_UPDATE = Terms(
    'after_update',
    [
        Term('hyperball', _keep_norm, 'arXiv 2606.16899', when='optimizer.name=hyperball'),
        Term(
            'muon_sphere',
            _on_spectral_sphere,
            'arXiv 2601.08393',
            when='optimizer.name=muon_sphere',
        ),
        Term(
            'qk_clip',
            _qk_clip,
            'arXiv 2507.20534, section 2.1',
            when='optimizer.qk_clip',
            reads=('optimizer.qk_clip',),
            needs=(MAX_BY_HEAD,),
        ),
        Term('mu_centering', _center_head, 'arXiv 2601.02031', when='model.output_centering'),
        Term(
            'ngpt',
            lambda new, update: ngpt.normalise(new),
            'arXiv 2410.01131',
            when='model.norm_position=ngpt',
        ),
        Term('skip_step', _skip_step, 'arXiv 2501.00656', when='optimizer.skip_step'),
        # Rounding comes after all other changes.
        Term(
            'round_to_nearest',
            _round_to_nearest,
            'arXiv 2010.06192',
            when='optimizer.parameter_rounding=nearest',
        ),
        Term(
            'round_stochastically',
            _round_stochastically,
            'arXiv 2010.06192',
            when='optimizer.parameter_rounding=stochastic',
            reads=('seed',),
        ),
    ],
)
