"""How initial weights, multipliers and learning rates follow the width, by kind of layer.

All are powers of r = width / base_width, so that at base_width every parameterization is the
standard one: the same function, the same updates. A layer computes with multiplier * parameter;
only the parameters are stored, initialised, updated, decayed and measured. Depth and head
dimension are not reparameterized.

  standard              the paper's: std 1/sqrt(fan_in), 1/sqrt(width) of the embedding
  muparam_simple        the paper's section 3.2.4: learning rates of matrices with a fan-in of the
                        width (the blocks' and the head) times base_fan_in / fan_in
  muparam_intermediate  and the head starts with std sqrt(base_fan_in) / fan_in
  muparam_full          and queries start at 0, and attention logits are over head_dim, not its
                        root: it alone is not the standard one at base_width
  ntk, mup, mean_field  table 1 of arXiv 2407.05872, for Adam

The standard one of that table has embeddings of std 1 where the paper's have 1/sqrt(width); with
exponents, what is called standard here is the table's but for that.

Exponents of learning rates: `none` is one learning rate for all layers, the global one, which then
has to be searched anew at each width; full_alignment and no_alignment are the table's, those of
muP as it is usually meant the former. They hold for optimizers whose updates are of order 1 per
element, as Adam's; they are applied as they are with Muon and learning_rate_scale=parameter_rms,
whose own dependence on width comes on top. Independent decay takes its share of the stored
parameter whatever the layer's learning rate; coupled decay is multiplied by that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

Params = dict[str, Any]
Hyperparameters = dict[str, jax.Array]


class Powers(NamedTuple):
  """Of r, for a kind of layer: the initial std beside the standard one, multiplier, rates."""

  std: float = 0
  multiplier: float = 0
  full_alignment: float = 0
  no_alignment: float = 0
  none: float = 0


_STANDARD = Powers(full_alignment=-1, no_alignment=-0.5)
_NTK = Powers(std=0.5, multiplier=-0.5, full_alignment=-0.5, no_alignment=0)
_MUPARAM = Powers(none=-1)

# Kinds that are not named, and scales everywhere, are the standard ones with one learning rate.
TABLE = {
    'standard': {'hidden': _STANDARD, 'readout': _STANDARD},
    'muparam_simple': {'hidden': _MUPARAM, 'readout': _MUPARAM},
    'muparam_intermediate': {'hidden': _MUPARAM, 'readout': Powers(std=-0.5, none=-1)},
    'muparam_full': {'hidden': _MUPARAM, 'readout': Powers(std=-0.5, none=-1)},
    'ntk': {'embedding': Powers(std=0.5), 'hidden': _NTK, 'readout': _NTK},
    'mup': {
        # Its effective size is n^0: std n^-1/2 times multiplier n^+1/2.
        'embedding': Powers(multiplier=0.5, full_alignment=-0.5, no_alignment=-0.5),
        'hidden': _STANDARD,
        'readout': Powers(multiplier=-0.5, full_alignment=-0.5, no_alignment=0),
    },
    'mean_field': {
        'embedding': Powers(std=0.5),
        'hidden': _NTK,
        'readout': Powers(std=0.5, multiplier=-1, full_alignment=0, no_alignment=0.5),
    },
}

# By the last part of a parameter's path.
_KINDS = {
    'embedding': 'embedding',
    **dict.fromkeys(('query', 'key', 'value', 'output', 'gate', 'up', 'down'), 'hidden'),
    'head': 'readout',
    **dict.fromkeys(('scale', 'logit_scale'), 'scale'),
}


def kinds(params: Params) -> Params:
  """The kind of every parameter: embedding, hidden (the blocks' matrices), readout or scale."""
  return jax.tree_util.tree_map_with_path(lambda path, _: _KINDS[path[-1].key], params)


def model_config(static: ml_collections.FrozenConfigDict) -> ml_collections.FrozenConfigDict:
  """config.model as the parameterization has it: muparam_full divides logits by head_dim."""
  if static.parameterization.name != 'muparam_full':
    return static.model
  return ml_collections.FrozenConfigDict(dict(static.model) | {'attention_scale': 'inverse'})


def initial(
    params: Params, hparams: Hyperparameters, static: ml_collections.FrozenConfigDict
) -> Params:
  """The parameters to start from, of those that the standard parameterization starts from."""
  params = _times(params, hparams, static, lambda powers: powers.std)
  if static.parameterization.name == 'muparam_full':
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.zeros_like(p) if path[-1].key == 'query' else p, params
    )
  return params


def effective(
    params: Params, hparams: Hyperparameters, static: ml_collections.FrozenConfigDict
) -> Params:
  """The weights that the model computes with: multiplier * parameter."""
  return _times(params, hparams, static, lambda powers: powers.multiplier)


def learning_rates(
    params: Params,
    rate: jax.Array,
    hparams: Hyperparameters,
    static: ml_collections.FrozenConfigDict,
) -> Params:
  """The learning rate of every parameter, in the structure of `params`."""
  rates = jax.tree.map(lambda _: rate, params)
  exponents = static.parameterization.exponents
  return _times(rates, hparams, static, lambda powers: getattr(powers, exponents))


def _times(
    tree: Params,
    hparams: Hyperparameters,
    static: ml_collections.FrozenConfigDict,
    exponent: Callable[[Powers], float],
) -> Params:
  """Leaves times r to the power that each one's kind has; untouched where that is 0."""
  table = TABLE[static.parameterization.name]
  if not any(exponent(powers) for powers in table.values()):
    return tree
  r = static.model.width / hparams['parameterization.base_width'].astype(jnp.float32)

  def times(leaf, kind):
    power = exponent(table.get(kind, Powers()))
    return leaf * r**power if power else leaf

  return jax.tree.map(times, tree, kinds(tree))
