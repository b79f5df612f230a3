"""What follows an update: functions of the old and the new parameters, and of what was measured."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from stability.model import parameterization
from stability.model.attention_stats import MAX_BY_HEAD
from stability.variants import Term, Terms

Params = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Update:
  """An update that has been made."""

  old: Params  # the parameters before it
  moves: Params  # subtracted from them, beside their decay
  measured: Mapping[str, jax.Array]  # of the step's batch: losses, and what Term.needs asked for
  learning_rate: jax.Array
  hparams: Mapping[str, jax.Array]
  static: ml_collections.FrozenConfigDict


def _center_head(new: Params, update: Update) -> Params:
  """The head less its mean output embedding: mu-centering."""
  del update
  head_DxV = new['head']
  return new | {'head': head_DxV - jnp.mean(head_DxV, axis=1, keepdims=True)}


def _qk_clip(new: Params, update: Update) -> Params:
  """Queries and keys of heads whose highest attention logit passed the cap, scaled down to it.

  A head with the highest logit S of the step's batch gets sqrt(cap / S) times its queries' and its
  keys' kernel. Under a qk-norm, which takes this back, it changes nothing but the kernels.
  """
  cap = update.hparams['optimizer.qk_clip']
  head_dim = update.static.model.head_dim
  for name in [name for name in new if name.startswith('block_')]:
    highest_H = update.measured[f'{name}/{MAX_BY_HEAD}']
    factor_H = jnp.sqrt(jnp.where(highest_H > cap, cap / highest_H, 1))
    factor_D = jnp.repeat(factor_H, head_dim)
    attention = new[name]['attention']
    scaled = {kernel: attention[kernel] * factor_D for kernel in ('query', 'key')}
    new = new | {name: new[name] | {'attention': attention | scaled}}
  return new


def _to_old_norm(new: Params, update: Update) -> Params:
  """The blocks' matrices moved without decay and projected back to the norm that they had."""

  def project(kind, new, old, move):
    if kind != 'hidden':
      return new
    moved = old - move
    return moved * (jnp.linalg.norm(old) / jnp.maximum(jnp.linalg.norm(moved), 1e-30))

  kinds = parameterization.kinds(new)
  return jax.tree.map(project, kinds, new, update.old, update.moves)


# (new parameters, Update) -> parameters; in this order.
AFTER_UPDATE = Terms(
    'after_update',
    [
        Term('hyperball', _to_old_norm, 'arXiv 2606.16899', when='optimizer.name=hyperball'),
        Term(
            'qk_clip',
            _qk_clip,
            'arXiv 2507.20534, section 2.1',
            when='optimizer.qk_clip',
            reads=('optimizer.qk_clip',),
            needs=(MAX_BY_HEAD,),
        ),
        Term('mu_centering', _center_head, 'arXiv 2601.02031', when='model.output_centering'),
    ],
)
