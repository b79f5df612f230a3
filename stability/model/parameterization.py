"""Parameterizations: how initial weights, multipliers and learning rates depend on the width.

For each kind of layer they scale with powers of r = width / base_width. At base_width, every
parameterization except muparam_full is therefore the standard one: the same function, the same
updates. A layer computes with multiplier * parameter; only the parameter is stored, initialised,
updated, decayed and measured. Depth and head dimension are not reparameterized.

  standard              as in the paper: std 1/sqrt(fan_in), and 1/sqrt(width) for the embedding
  muparam_simple        section 3.2.4 of the paper: the learning rate of each matrix whose fan-in
                        scales with the width (those of the blocks and the head, but not `down`
                        where model.mlp_width is given) is multiplied by base_fan_in / fan_in
  muparam_intermediate  in addition, the head starts with std sqrt(base_fan_in) / fan_in
  muparam_full          in addition, queries start at 0 and attention logits are divided by head_dim
                        instead of its square root
  ntk, mup, mean_field  table 1 of arXiv 2407.05872, for Adam

The standard parameterization of that table gives the embedding std 1, the paper 1/sqrt(width).
Apart from this, `standard` with exponents is the one of the table.

The option parameterization.exponents chooses the powers of learning rates. With `none`, all layers
have one learning rate (except under muparam), which has to be tuned again at each width;
full_alignment and no_alignment are those of the table; muP in its usual sense is mup with
full_alignment. They are derived for optimizers whose updates are of order 1 per element, such as
Adam. With Muon, Hyperball, MuonSphere, WeSaR and learning_rate_scale=parameter_rms, whose updates
depend on the width themselves, they are applied unchanged. Independent decay removes its share of
the stored parameter whatever the layer's learning rate is; coupled decay is multiplied by that
rate.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from stability.model import adapters
from stability.types import HParams, Params, Static
from stability.variants import Choices, Variant


class Powers(NamedTuple):
  """Powers of r for one kind of layer."""

  std: float = 0  # of the initial std, relative to the standard one
  multiplier: float = 0
  # Of the learning rate, for each value of parameterization.exponents.
  full_alignment: float = 0
  no_alignment: float = 0
  none: float = 0


_STANDARD = Powers(full_alignment=-1, no_alignment=-0.5)
_NTK = Powers(std=0.5, multiplier=-0.5, full_alignment=-0.5, no_alignment=0)
_MUPARAM = Powers(none=-1)


class Parameterization(NamedTuple):
  """The powers of each kind of layer; a kind that is not listed has only powers of 0."""

  powers: Mapping[str, Powers]
  zero_queries: bool = False  # queries start from zero
  attention_scale: str | None = None  # replaces model.attention_scale


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


# r = width / base_width -> a factor of the embedding's learning rate, in addition to that of the
# parameterization; None: 1.
EMBEDDING_RATES = Choices(
    'optimizer.embedding_rate',
    {
        'none': Variant(None, 'the rate of the parameterization'),
        'width': Variant(lambda r: r, 'arXiv 2605.21486'),
    },
)


def kinds(params: Params) -> Params:
  """The kind of every parameter: embedding, readout (the head), hidden or scale.

  All other matrices, such as those of the blocks, are hidden; all other parameters are scales.
  """

  def kind(path, p):
    named = {'embedding': 'embedding', 'head': 'readout'}.get(path[-1].key)
    return named or ('hidden' if p.ndim >= 2 else 'scale')

  return jax.tree_util.tree_map_with_path(kind, params)


def _kinds_of_powers(params: Params, static: Static) -> Params:
  """`kinds`, except that a prompt is an embedding, and a matrix of a fixed fan-in a scale.

  A fan-in is fixed if it is the rank of an adapter, or the hidden width that an option gives.
  """

  def kind(path, of_kind):
    names = tuple(key.key for key in path)
    is_added = adapters.is_added(names)
    if is_added and names[-1] == adapters.PROMPT:
      return 'embedding'
    of_rank = is_added and names[-1] in adapters.OF_RANK
    of_hidden = f'down{adapters.SUFFIX}' in names if is_added else names[-1] == 'down'
    return 'scale' if of_rank or (of_hidden and static.model.mlp_width) else of_kind

  return jax.tree_util.tree_map_with_path(kind, kinds(params))


def _parameterization(static: Static) -> Parameterization:
  return PARAMETERIZATIONS[static.parameterization.name].make


def model_config(static: Static) -> ml_collections.FrozenConfigDict:
  """config.model with the options that the parameterization replaces."""
  scale = _parameterization(static).attention_scale
  if scale is None:
    return static.model
  return ml_collections.FrozenConfigDict(dict(static.model) | {'attention_scale': scale})


def initial(params: Params, hparams: HParams, static: Static) -> Params:
  """The initial parameters, given those of the standard parameterization."""
  of_kind = _kinds_of_powers(params, static)
  params = _scaled(params, of_kind, hparams, static, lambda powers: powers.std)
  if _parameterization(static).zero_queries:
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.zeros_like(p) if path[-1].key == 'query' else p, params
    )
  return params


def effective(params: Params, hparams: HParams, static: Static) -> Params:
  """The weights that the model computes with: multiplier * parameter."""
  of_kind = _kinds_of_powers(params, static)
  return _scaled(params, of_kind, hparams, static, lambda powers: powers.multiplier)


def learning_rates(
    params: Params,
    rate: jax.Array,
    hparams: HParams,
    static: Static,
) -> Params:
  """The learning rate of every parameter, in a tree with the structure of `params`."""
  rates = jax.tree.map(lambda _: rate, params)
  exponents, of_kind = static.parameterization.exponents, _kinds_of_powers(params, static)
  rates = _scaled(rates, of_kind, hparams, static, lambda powers: getattr(powers, exponents))
  factor_of = EMBEDDING_RATES[static.optimizer.embedding_rate].make
  if factor_of is None:
    return rates
  factor = factor_of(_relative_width(hparams, static))
  return jax.tree.map(
      lambda rate, kind: rate * factor if kind == 'embedding' else rate, rates, of_kind
  )


def _scaled(
    tree: Params,
    kinds: Params,
    hparams: HParams,
    static: Static,
    exponent: Callable[[Powers], float],
) -> Params:
  """The leaves, each multiplied by r to the power of its kind; unchanged where the power is 0."""
  table = _parameterization(static).powers
  if not any(exponent(powers) for powers in table.values()):
    return tree
  r = _relative_width(hparams, static)

  def scale(leaf, kind):
    power = exponent(table.get(kind, Powers()))
    return leaf * r**power if power else leaf

  return jax.tree.map(scale, tree, kinds)


def _relative_width(hparams: HParams, static: Static) -> jax.Array:
  """The ratio r = width / base_width."""
  return static.model.width / hparams['parameterization.base_width'].astype(jnp.float32)
