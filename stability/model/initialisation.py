"""Initial parameters: what is changed in those that the modules draw.

The modules draw the initial parameters of the paper's model. The terms of INITIALISATION scale some
of them, so that all other parameters are the same with and without an intervention.
"""

from collections.abc import Callable

import flax.traverse_util
import jax
import jax.numpy as jnp

from stability.model import adapters, ngpt, parameterization, spectra
from stability.types import HParams, Params, Static
from stability.variants import Term, Terms


def _small_head(params: Params, hparams: HParams, static: Static) -> Params:
  """Gives the head the std init.head_std instead of 1 / sqrt(width)."""
  factor = hparams['init.head_std'] * static.model.width**0.5
  if 'head_reparam' in params:  # see _scale_kernels
    return params | {'head_reparam': {'gain': params['head_reparam']['gain'] * factor}}
  return params | {'head': params['head'] * factor}


def _zero_head(params: Params, hparams: HParams, static: Static) -> Params:
  del hparams, static
  return params | {'head': jnp.zeros_like(params['head'])}


def _by_depth(params: Params, hparams: HParams, static: Static) -> Params:
  """Divides the kernels that write to the residual stream by sqrt(2 depth)."""
  del hparams
  return _scale_kernels(params, ('output', 'down'), lambda i: (2 * static.model.depth) ** -0.5)


def _by_block(params: Params, hparams: HParams, static: Static) -> Params:
  """Divides the kernels that write to the residual stream by sqrt(2 (i + 1)) in block i."""
  del hparams, static
  return _scale_kernels(params, ('output', 'down'), lambda i: (2 * (i + 1)) ** -0.5)


def _deep_norm(params: Params, hparams: HParams, static: Static) -> Params:
  """Divides the kernels value, output, up and down of the blocks by (8 depth)^(1/4)."""
  del hparams
  names = ('value', 'output', 'up', 'down')
  return _scale_kernels(params, names, lambda i: (8 * static.model.depth) ** -0.25)


def _on_spectral_sphere(params: Params, hparams: HParams, static: Static) -> Params:
  """Scales the blocks' matrices to the spectral norm that updates return them to."""
  del hparams, static
  return jax.tree.map(
      lambda kind, p: spectra.to_sphere(p) if kind == 'hidden' else p,
      parameterization.kinds(params),
      params,
  )


def _scale_kernels(
    params: Params, names: tuple[str, ...], factor: Callable[[int], float]
) -> Params:
  """Multiplies the kernels of these names in block i by factor(i).

  If a kernel has a learned gain (stability/model/kernels.py), the gain is multiplied instead, as
  the size of the parameter has no effect then or has to be the same in all kernels.
  """
  flat, changed = flax.traverse_util.flatten_dict(params), {}
  for path in flat:
    block, name = path[0], path[-1]
    if block.startswith('block_') and name in names and not adapters.is_added(path):
      gain = (*path[:-1], f'{name}_reparam', 'gain')
      scaled = gain if gain in flat else path
      changed[scaled] = flat[scaled] * factor(int(block.removeprefix('block_')))
  return flax.traverse_util.unflatten_dict(flat | changed)


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
        Term(
            'depth_scale', _by_depth, 'GPT-2 (Radford et al. 2019)', when='init.depth_scale=depth'
        ),
        Term(
            'block_scale',
            _by_block,
            'github.com/allenai/OLMo-core, InitMethod.llama_depth',
            when='init.depth_scale=block',
        ),
        Term('deepnorm', _deep_norm, 'arXiv 2203.00555', when='model.norm_position=deepnorm'),
        Term('parameterization', parameterization.initial, 'section 3.2.4; arXiv 2407.05872'),
        Term(
            'ngpt',
            lambda params, hparams, static: ngpt.normalise(params),
            'arXiv 2410.01131',
            when='model.norm_position=ngpt',
        ),
        Term(
            'muon_sphere',
            _on_spectral_sphere,
            'arXiv 2601.08393',
            when='optimizer.name=muon_sphere',
        ),
    ],
)
