"""Initial parameters: what is changed in those that the modules draw.

The modules draw the initial parameters of the paper's model. The terms of INITIALISATION multiply
some of them, so that all other parameters are the same with and without an intervention.
"""

import jax
import jax.numpy as jnp
import ml_collections

from stability.model import parameterization
from stability.variants import Term, Terms

Params = dict[str, object]
HParams = dict[str, jax.Array]


def _small_head(
    params: Params, hparams: HParams, static: ml_collections.FrozenConfigDict
) -> Params:
  """Gives the head the std init.head_std instead of 1 / sqrt(width)."""
  factor = hparams['init.head_std'] * static.model.width**0.5
  return params | {'head': params['head'] * factor}


def _zero_head(params: Params, hparams: HParams, static: ml_collections.FrozenConfigDict) -> Params:
  del hparams, static
  return params | {'head': jnp.zeros_like(params['head'])}


# (parameters, hparams, static config) -> the initial parameters; applied in this order.
INITIALISATION = Terms(
    'initialisation',
    [
        Term(
            'small_head',
            _small_head,
            'github.com/karpathy/nanochat',
            when='init.head=small',
            reads=('init.head_std',),
        ),
        Term('zero_head', _zero_head, 'arXiv 2203.03466, appendix D.2', when='init.head=zero'),
        Term('parameterization', parameterization.initial, 'section 3.2.4; arXiv 2407.05872'),
    ],
)
