"""The gradient of a batch that is processed in parts, and the measurements of its passes.

A batch is split into equal parts twice: over the devices of a data-parallel axis, and on each
device into microbatches, which are processed one after another (gradient accumulation). Every loss
is a mean over tokens, so the gradient of the batch is the mean over its parts, up to rounding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from stability.step import probes
from stability.types import Tree

# Rows -> gradients, measurements and the new carried state.
Part = Callable[[jax.Array], tuple[Tree, probes.Measurements, Tree]]


def over_parts(
    part: Part, batch_BxT1: jax.Array, params: Tree, microbatches: int, axis: str | None
) -> tuple[Tree, probes.Measurements, Tree]:
  """Gradients, measurements and carried state of the whole batch.

  The new carried state is the mean over the parts, all of which start from the same state.

  Args:
    part: computes all three for some of the rows.
    batch_BxT1: the rows of this device.
    params: the parameters with respect to which the gradients are taken.
    microbatches: number of parts to process one after another; divides B.
    axis: name of the mapped axis over the devices that share the batch; None: this is the only one.
  """
  if microbatches == 1:
    gradients, measured, carried = part(batch_BxT1)
  else:
    # A microbatch takes rows from all over the batch. If the batch is split over devices, each
    # microbatch is then split in the same way.
    B, T1 = batch_BxT1.shape
    parts_MxBxT1 = batch_BxT1.reshape(B // microbatches, microbatches, T1).swapaxes(0, 1)

    def add(total, rows_BxT1):
      gradients, *rest = part(rows_BxT1)
      return jax.tree.map(jnp.add, total, gradients), rest

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, (measured, carried) = jax.lax.scan(add, zeros, parts_MxBxT1)
    gradients = jax.tree.map(lambda g: g / microbatches, total)
    measured = probes.of_parts(measured, lambda x: x.mean(0), lambda x: x.max(0))
    carried = jax.tree.map(lambda x: x.mean(0), carried)
  if axis is not None:
    gradients, carried = jax.lax.pmean((gradients, carried), axis)
    measured = probes.of_parts(
        measured, lambda x: jax.lax.pmean(x, axis), lambda x: jax.lax.pmax(x, axis)
    )
  return gradients, measured, carried
