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

Exponents of learning rates: `none` is one learning rate for all layers, which has to be searched
anew at each width; full_alignment and no_alignment are the table's, and muP as it is usually meant
has the former. They hold for optimizers whose updates are of order 1 per element, as Adam's; with
Muon and learning_rate_scale=parameter_rms, whose own dependence on width comes on top, they are
applied as they are. Independent decay takes its share of the stored parameter whatever the layer's
learning rate; coupled decay is multiplied by that rate.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from stability.variants import Choices, Term, Terms, Variant

Params = dict[str, Any]
HParams = dict[str, jax.Array]


class Powers(NamedTuple):
  """Powers of r for a kind of layer: initial std beside the standard one, multiplier, rates."""

  std: float = 0
  multiplier: float = 0
  full_alignment: float = 0
  no_alignment: float = 0
  none: float = 0


_STANDARD = Powers(full_alignment=-1, no_alignment=-0.5)
_NTK = Powers(std=0.5, multiplier=-0.5, full_alignment=-0.5, no_alignment=0)
_MUPARAM = Powers(none=-1)


class Parameterization(NamedTuple):
  """The powers of each kind of layer; kinds that are not named are the standard ones."""

  powers: Mapping[str, Powers]
  zero_queries: bool = False  # queries start from zero
  attention_scale: str | None = None  # in the place of model.attention_scale


_MUP = {
    # The embedding's effective size is n^0: std n^-1/2 times multiplier n^+1/2.
    'embedding': Powers(multiplier=0.5, full_alignment=-0.5, no_alignment=-0.5),
    'hidden': _STANDARD,
    'readout': Powers(multiplier=-0.5, full_alignment=-0.5, no_alignment=0),
}
_MEAN_FIELD = {
    'embedding': Powers(std=0.5),
    'hidden': _NTK,
    'readout': Powers(std=0.5, multiplier=-1, full_alignment=0, no_alignment=0.5),
}
_SMALL_HEAD = {'hidden': _MUPARAM, 'readout': Powers(std=-0.5, none=-1)}

PARAMETERIZATIONS = Choices(
    'parameterization.name',
    {
        'standard': Variant(
            Parameterization({'hidden': _STANDARD, 'readout': _STANDARD}), 'section 2.1'
        ),
        'muparam_simple': Variant(
            Parameterization({'hidden': _MUPARAM, 'readout': _MUPARAM}), 'section 3.2.4'
        ),
        'muparam_intermediate': Variant(Parameterization(_SMALL_HEAD), 'section 3.2.4'),
        'muparam_full': Variant(
            Parameterization(_SMALL_HEAD, zero_queries=True, attention_scale='inverse'),
            'section 3.2.4',
        ),
        'ntk': Variant(
            Parameterization({'embedding': Powers(std=0.5), 'hidden': _NTK, 'readout': _NTK}),
            'arXiv 2407.05872, table 1',
        ),
        'mup': Variant(Parameterization(_MUP), 'arXiv 2407.05872, table 1'),
        'mean_field': Variant(Parameterization(_MEAN_FIELD), 'arXiv 2407.05872, table 1'),
    },
)


def kinds(params: Params) -> Params:
  """The kind of every parameter: embedding, hidden (the blocks' matrices), readout or scale.

  Of parameters with other names, matrices are hidden and all others scales.
  """

  def kind(path, p):
    named = {'embedding': 'embedding', 'head': 'readout'}.get(path[-1].key)
    return named or ('hidden' if p.ndim >= 2 else 'scale')

  return jax.tree_util.tree_map_with_path(kind, params)


def _of(static: ml_collections.FrozenConfigDict) -> Parameterization:
  return PARAMETERIZATIONS[static.parameterization.name].make


def model_config(static: ml_collections.FrozenConfigDict) -> ml_collections.FrozenConfigDict:
  """config.model with what the parameterization replaces in it."""
  scale = _of(static).attention_scale
  if scale is None:
    return static.model
  return ml_collections.FrozenConfigDict(dict(static.model) | {'attention_scale': scale})


def initial(params: Params, hparams: HParams, static: ml_collections.FrozenConfigDict) -> Params:
  """The initial parameters, from those of the standard parameterization."""
  params = _times(params, kinds(params), hparams, static, lambda powers: powers.std)
  if _of(static).zero_queries:
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.zeros_like(p) if path[-1].key == 'query' else p, params
    )
  return params


# (parameters, hparams, static config) -> the parameters to start from; in this order.
INITIALISATION = Terms(
    'initialisation', [Term('parameterization', initial, 'section 3.2.4; arXiv 2407.05872')]
)


def effective(params: Params, hparams: HParams, static: ml_collections.FrozenConfigDict) -> Params:
  """The weights that the model computes with: multiplier * parameter."""
  return _times(params, kinds(params), hparams, static, lambda powers: powers.multiplier)


def learning_rates(
    params: Params,
    rate: jax.Array,
    hparams: HParams,
    static: ml_collections.FrozenConfigDict,
) -> Params:
  """The learning rate of every parameter, in the structure of `params`."""
  rates = jax.tree.map(lambda _: rate, params)
  exponents = static.parameterization.exponents
  return _times(rates, kinds(params), hparams, static, lambda powers: getattr(powers, exponents))


def _times(
    tree: Params,
    kinds: Params,
    hparams: HParams,
    static: ml_collections.FrozenConfigDict,
    exponent: Callable[[Powers], float],
) -> Params:
  """Leaves times r to the power that each one's kind has; untouched where that is 0."""
  table = _of(static).powers
  if not any(exponent(powers) for powers in table.values()):
    return tree
  r = static.model.width / hparams['parameterization.base_width'].astype(jnp.float32)

  def times(leaf, kind):
    power = exponent(table.get(kind, Powers()))
    return leaf * r**power if power else leaf

  return jax.tree.map(times, tree, kinds)
