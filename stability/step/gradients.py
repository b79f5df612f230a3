"""The gradient of a batch that is taken in parts, and what was measured on the way.

A batch falls into parts of one size twice: over the devices of a data-parallel axis, and on each
device into microbatches, one after another (gradient accumulation). Every loss is a mean over
tokens, so the whole batch's gradient is the mean of its parts', within rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stability.step import probes

Tree = Any  # of arrays
# Rows -> gradients, measurements, and what the model carries to the next step.
Part = Callable[[jax.Array], tuple[Tree, probes.Measurements, Tree]]


def over_parts(
    part: Part, batch_BxT1: jax.Array, params: Tree, microbatches: int, axis: str | None
) -> tuple[Tree, probes.Measurements, Tree]:
  """Gradients, measurements and carried state of the whole batch.

  Carried state is the mean of that of the parts, which each start from the same.

  Args:
    part: gives them for some of the rows.
    batch_BxT1: the rows of this device.
    params: what the gradients are of.
    microbatches: parts of the rows, taken one after another; divides B.
    axis: the mapped axis over the devices that hold the other rows; None: there are none.
  """
  if microbatches == 1:
    gradients, measured, carried = part(batch_BxT1)
  else:
    # Every microbatch takes rows from all over the batch, so that those of a batch which is split
    # over devices are split in the same way.
    B, T1 = batch_BxT1.shape
    parts_MxBxT1 = batch_BxT1.reshape(B // microbatches, microbatches, T1).swapaxes(0, 1)

    def add(total, rows_BxT1):
      gradients, *rest = part(rows_BxT1)
      return jax.tree.map(jnp.add, total, gradients), rest

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, (measured, carried) = jax.lax.scan(add, zeros, parts_MxBxT1)
    gradients = jax.tree.map(lambda g: g / microbatches, total)
    measured = probes.joined(measured, lambda x: x.mean(0), lambda x: x.max(0))
    carried = jax.tree.map(lambda x: x.mean(0), carried)
  if axis is not None:
    gradients, carried = jax.lax.pmean((gradients, carried), axis)
    measured = probes.joined(
        measured, lambda x: jax.lax.pmean(x, axis), lambda x: jax.lax.pmax(x, axis)
    )
  return gradients, measured, carried
