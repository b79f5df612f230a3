"""What follows an update: functions of the old and the new parameters, and of what was measured."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

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


# (new parameters, Update) -> parameters; in this order.
AFTER_UPDATE = Terms(
    'after_update',
    [
        Term('mu_centering', _center_head, 'arXiv 2601.02031', when='model.output_centering'),
    ],
)
