"""The evaluated parameters of a checkpoint, which holds the trained ones and what is averaged."""

from collections.abc import Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from stability.model import adapters
from stability.optim.evaluation import EVALUATED
from stability.step import train_step
from stability.types import HParams, Static

Arrays = Mapping[str, np.ndarray]  # by path, such as block_0/mlp/up


def of_checkpoint(
    params: Arrays, average: Arrays, step: int, hparams: HParams, static: Static
) -> dict[str, np.ndarray]:
  """The parameters with which validation losses are measured, by name.

  Args:
    params: trained and frozen ones.
    average: the leaves of the state's entry `average`; none if the run has none.
    step: number of updates made.
    hparams: of the run.
    static: the static config.
  """
  if not average:
    return dict(params)
  state = adapters.parts(flax.traverse_util.unflatten_dict(params, sep='/'), static)
  like = jax.eval_shape(EVALUATED[static.evaluation.parameters].make.init, state['params'])

  def restore(path, _):
    return average[jax.tree_util.keystr(path, simple=True, separator='/')]

  state |= {
      'average': jax.tree_util.tree_map_with_path(restore, like),
      'step': jnp.int32(step),
      'hparams': hparams,
      'carried': {},
  }
  kept = jax.device_get(train_step.kept_variables(state, static))
  return flax.traverse_util.flatten_dict(kept['params'], sep='/')
