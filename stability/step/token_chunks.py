"""Losses in chunks of tokens, so that the logits of a batch are never stored whole.

With the paper's vocabulary and batch, logits take 17 GB in float32. Each chunk's gradient is taken
in the forward pass, right after its loss, so no product is computed twice (as in arXiv 2410.10989).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stability.model import blocks
from stability.step import probes

LOGITS = 2**20  # of a sequence that are stored at once, at most
MIN_TOKENS = 16  # of a sequence in a chunk, even if their logits are more
# x [B, t, D] and targets [B, t] -> a mean over these tokens, and measurements.
Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, probes.Measurements]]


def length(sequence_length: int, vocabulary_size: int) -> int:
  """The number of positions in a chunk of each sequence; the last chunk may have fewer."""
  return blocks.length(sequence_length, max(LOGITS // vocabulary_size, MIN_TOKENS))


def mean(
    loss: Loss, x_BxTxD: jax.Array, targets_BxT: jax.Array, length: int
) -> tuple[jax.Array, probes.Measurements]:
  """The loss and the measurements of a batch, the mean over its chunks of `length` positions.

  The result is `loss(x, targets)` up to rounding if that is a mean over tokens. Its gradient also
  reaches arrays that `loss` closes over. Measurements have no gradient.
  """
  T = targets_BxT.shape[1]
  rest = T % length
  if not rest:
    return _mean_of_equal(loss, x_BxTxD, targets_BxT, T // length)
  equal = _mean_of_equal(loss, x_BxTxD[:, :-rest], targets_BxT[:, :-rest], T // length)
  last = loss(x_BxTxD[:, -rest:], targets_BxT[:, -rest:])
  value, measured = jax.tree.map(lambda *two: jnp.stack(two), equal, last)
  weights = jnp.array([T - rest, rest]) / T
  average = functools.partial(jnp.average, axis=0, weights=weights)
  return average(value), probes.of_parts(measured, average, lambda x: x.max(0))


def _mean_of_equal(
    loss: Loss, x_BxTxD: jax.Array, targets_BxT: jax.Array, chunks: int
) -> tuple[jax.Array, probes.Measurements]:
  """`mean` over a number of chunks of equal lengths."""
  if chunks == 1:
    return loss(x_BxTxD, targets_BxT)

  def split(array):
    B, T, *rest = array.shape
    return jnp.moveaxis(array.reshape(B, chunks, T // chunks, *rest), 1, 0)

  def whole(losses, measured):
    return losses.mean(), probes.of_parts(measured, lambda x: x.mean(0), lambda x: x.max(0))

  parts = split(x_BxTxD), split(targets_BxT)
  part_loss, closed_over = jax.closure_convert(loss, *(array[0] for array in parts))

  @jax.custom_vjp
  def of_parts(x, targets, closed_over):
    return whole(*jax.lax.map(lambda part: part_loss(*part, *closed_over), (x, targets)))

  def forward(x, targets, closed_over):
    def step(total, part):
      (value, measured), (gradient, d_x) = jax.value_and_grad(
          lambda closed_over, x: part_loss(x, part[1], *closed_over), (0, 1), has_aux=True
      )(closed_over, part[0])
      return jax.tree.map(jnp.add, total, gradient), (value, measured, d_x)

    zeros = jax.tree.map(jnp.zeros_like, closed_over)
    total, (losses, measured, d_x) = jax.lax.scan(step, zeros, (x, targets))
    return whole(losses, measured), (d_x, total)

  def backward(gradients, cotangent):
    scale = cotangent[0] / chunks
    d_x, total = jax.tree.map(lambda g: (scale * g).astype(g.dtype), gradients)
    return d_x, None, total

  of_parts.defvjp(forward, backward)
  return of_parts(*parts, closed_over)
