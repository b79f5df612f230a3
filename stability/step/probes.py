"""Probes: what a probed step measures inside a run. Their names are part of the file format."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from stability.errors import BadInput
from stability.model import kernels, spectra
from stability.model.measure import ACTIVATIONS, PROBES, QUIET, Measured
from stability.optim import norms, optimizers
from stability.types import HParams, Static, Tree
from stability.variants import Term, Terms

Measurements = dict[str, Measured]


@dataclasses.dataclass(frozen=True)
class Inside:
  """What probes can read of a step."""

  params: Tree  # before the update
  gradients: Tree  # before clipping
  updates: Tree  # the optimizer's direction, without learning rate, schedule and weight decay
  moves: Tree  # what the update subtracts from the parameters, weight decay apart
  hparams: HParams
  static: Static


def forward(sown: Mapping[str, Any]) -> Measurements:
  """The measurements that a model has sown, by name, such as block_0/attention_logit_max."""
  found = {}
  for collection, prefix in ((QUIET, ''), (PROBES, ''), (ACTIVATIONS, 'activation_rms/')):
    for path, (measured,) in _paths(sown.get(collection, {}), is_leaf=_is_sown):
      name = path
      if collection != ACTIVATIONS:
        name = path.replace('/attention/', '/').replace('/mlp/', '/')
      found[f'{prefix}{name}'] = measured
  return found


def merged(found: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
  """All measurements; raises BadInput if a name, which a config file may have given, is taken."""
  if taken := found.keys() & more.keys():
    raise BadInput(f'{min(taken)} is measured already; a term or probe of yours needs another name')
  return {**found, **more}


def checked(term: str, found: Mapping[str, Any]) -> Mapping[str, Any]:
  """What a term measured; raises BadInput if a config file's term returns anything but numbers."""
  for name, value in found.items():
    if jnp.shape(value):
      raise BadInput(f'probe {term}: {name} must be a number, not of shape {jnp.shape(value)}')
  return found


def _is_sown(path: tuple[str, ...], value: Any) -> bool:
  del path
  return isinstance(value, tuple)


def of_parts(
    parts: Measurements,
    mean: Callable[[jax.Array], jax.Array],
    highest: Callable[[jax.Array], jax.Array],
) -> Measurements:
  """The measurements of a batch from those of its parts, which have equal sizes.

  Args:
    parts: the measurements of all parts, in a form that the two functions reduce.
    mean: reduces values to their mean over the parts.
    highest: reduces values to their maximum over the parts.
  """
  joins = {
      'mean': mean,
      'max': highest,
      'rms': lambda x: jnp.sqrt(mean(jnp.square(x))),
  }
  return {
      name: part.replace(value=joins[part.join](part.value)) for name, part in parts.items()
  }


def scalars(measured: Measurements) -> dict[str, jax.Array]:
  """The numbers to log.

  A measurement by head is logged as its mean and minimum over the heads, a load by expert as its
  maximum and the share of dead experts, whose load is 0.
  """
  found = {}
  for name, m in measured.items():
    if m.by_head and m.logged:
      found |= {name: m.value.mean(), f'{name}_min': m.value.min()}
    elif m.by_expert:
      found |= {f'{name}_max': m.value.max(), f'{name}_dead': (m.value == 0).mean()}
    elif m.logged:
      found[name] = m.value
  return found


def _gradients(inside: Inside) -> dict[str, jax.Array]:
  eps = inside.hparams['optimizer.eps']
  acts = dict(_paths(optimizers.eps_acts(inside.gradients, inside.static['optimizer']['name'])))
  is_number = _is_number(inside.gradients)
  found = {}
  for path, value in _rms(inside.gradients).items():
    found[f'gradient_rms/{path}'] = value
    if acts[path] and not is_number[path]:
      found[f'gradient_over_eps/{path}'] = value / eps
  return found


def _parameters(inside: Inside) -> dict[str, jax.Array]:
  return {f'parameter_rms/{path}': value for path, value in _rms(inside.params).items()}


def _updates(inside: Inside) -> dict[str, jax.Array]:
  is_number = _is_number(inside.updates)
  rms = _rms(inside.updates)
  return {f'update_rms/{path}': value for path, value in rms.items() if not is_number[path]}


def _is_number(tree: Tree) -> dict[str, bool]:
  """Whether each parameter is a single number.

  Its gradient and its update pass through 0, and stay there where a norm undoes its factor.
  """
  return {path: value.size == 1 for path, value in _paths(tree)}


def _effective_rates(inside: Inside) -> dict[str, jax.Array]:
  """||update|| / ||W|| of each matrix; not finite where W is 0.

  The update includes the learning rate, but not weight decay and what is done after the update.
  Under evaluation.parameters=schedule_free, it is that of z.
  """
  moves, params = _rms(inside.moves), _rms(inside.params)
  return {
      f'effective_learning_rate/{path}': moves[path] / params[path]
      for path, value in _paths(inside.params)
      if value.ndim == 2
  }


def _stable_ranks(inside: Inside) -> dict[str, jax.Array]:
  matrices = {path: value for path, value in _paths(_multiplied(inside)) if value.ndim == 2}
  return {f'stable_rank/{path}': rank for path, rank in spectra.stable_ranks(matrices).items()}


def _qk_entropies(inside: Inside) -> dict[str, jax.Array]:
  found = {}
  for block, params in _multiplied(inside).items():
    attention = params.get('attention', {}) if block.startswith('block_') else {}
    if 'query' in attention and 'key' in attention:  # they may be frozen
      head_dim = inside.static['model']['head_dim']
      by_head = spectra.qk_spectral_entropies(attention['query'], attention['key'], head_dim)
      name = f'{block}/qk_spectral_entropy'
      found |= {name: by_head.mean(), f'{name}_min': by_head.min()}
  return found


def _multiplied(inside: Inside) -> Tree:
  """The parameters, with kernels as layers multiply by them, apart from a factor of each."""
  if inside.static['model']['kernel'] == 'multipliers':
    return kernels.with_multipliers(inside.params)
  return inside.params


def _rms(tree: Tree) -> dict[str, jax.Array]:
  """The root mean square of each array by path."""
  paths, arrays = zip(*_paths(tree), strict=True)
  return dict(zip(paths, norms.rms_of_each(arrays), strict=True))


def _differ(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.any((a != b) & ~(jnp.isnan(a) & jnp.isnan(b)))


class Acted:
  """Collects acted/NAME: 1 if the intervention NAME changed any element, else 0.

  An intervention that never does is inert. A NaN that stays is no change. One that is applied in
  several places acts if it does in any of them.
  """

  def __init__(self):
    self.found: dict[str, jax.Array] = {}

  def __call__(self, name: str, before: Tree, after: Tree) -> None:
    """Adds an intervention: what it was applied to, and its result."""
    changed = jax.tree.leaves(jax.tree.map(_differ, before, after))
    acted = jnp.any(jnp.stack(changed)).astype(jnp.float32)
    self.found[f'acted/{name}'] = jnp.maximum(self.found.get(f'acted/{name}', 0.0), acted)


# Inside -> float32 scalars by name. Modules sow their own probes (stability/model/measure.py).
INSIDE = Terms(
    'probes',
    [
        Term('gradients', _gradients, 'figures 11 to 13'),
        Term('parameters', _parameters, 'figure E.14'),
        Term('updates', _updates, 'figures 13, E.13'),
        Term('effective_learning_rates', _effective_rates, 'arXiv 2606.29158'),
        Term('stable_ranks', _stable_ranks, 'arXiv 2602.01734', when='probe.stable_rank'),
        Term(
            'qk_spectral_entropies',
            _qk_entropies,
            'arXiv 2606.28116',
            when='probe.qk_spectral_entropy',
        ),
    ],
)


def _paths(tree: Mapping[str, Any], is_leaf: Any = None) -> list[tuple[str, Any]]:
  return list(flax.traverse_util.flatten_dict(dict(tree), sep='/', is_leaf=is_leaf).items())
