"""Clipping by the norms of the past: of the whole gradient (ZClip) or of each tensor (AdaGC)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stability.optim.norms import global_norm
from stability.types import Tree

# ZClip, from its source code (github.com/bluorion-com/ZClip).
ZCLIP_DECAY = 0.97
ZCLIP_FIRST = 25  # norms from which the first mean and variance are computed
ZCLIP_EPS = 1e-6

# AdaGC, from the paper.
ADAGC_DECAY = 0.98
ADAGC_FIRST = 100  # steps with clipping by the global norm
ADAGC_FIRST_NORM = 1.0


class ZClipState(NamedTuple):
  """Statistics of the gradient norm: over all steps at first, later moving averages."""

  steps: jax.Array  # so far
  mean: jax.Array  # of the norms, clipped
  variance: jax.Array


def zclip(limit: jax.Array) -> optax.GradientTransformation:
  """Scales down a gradient whose norm is more than `limit` standard deviations above the mean.

  Its norm becomes mean + limit * sd * (limit / z), where z > limit is its own distance in standard
  deviations: the farther out, the closer to the mean. In the first steps, nothing is clipped.
  """

  def init(params):
    del params
    return ZClipState(jnp.int32(0), jnp.float32(0), jnp.float32(0))

  def update(gradients, state, params=None):
    del params
    norm = global_norm(gradients)
    sd = jnp.sqrt(state.variance)
    z = (norm - state.mean) / (sd + ZCLIP_EPS)
    is_first = state.steps < ZCLIP_FIRST
    clips = ~is_first & (z > limit)
    target = jnp.where(clips, state.mean + limit * sd * limit / jnp.where(clips, z, 1), norm)
    steps = state.steps + 1
    # Welford's algorithm in the first steps, a moving average later.
    weight = jnp.where(is_first, 1 / steps.astype(jnp.float32), 1 - ZCLIP_DECAY)
    mean = state.mean + weight * (target - state.mean)
    from_mean = jnp.where(is_first, target - state.mean, target - mean) * (target - mean)
    variance = state.variance + weight * (from_mean - state.variance)
    # A norm that is not finite has no place in the averages.
    new = ZClipState(steps, mean, variance)
    new = jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(target), a, b), new, state)
    return _scale_to(gradients, norm, target, clips), new

  return optax.GradientTransformation(init, update)


class AdaGCState(NamedTuple):
  """The number of steps so far, and a scalar for each tensor."""

  steps: jax.Array
  norms: Tree  # moving averages of the clipped norms; in the first steps, their minimum


def adagc(limit: jax.Array) -> optax.GradientTransformation:
  """Scales the gradient of each tensor down to `limit` times the average of its clipped norms.

  In the first steps, the gradient is clipped to a global norm of 1, and the average starts from the
  smallest norm of these steps that is not 0: gradients behind an output of zeros are 0 at first.
  """

  def init(params):
    return AdaGCState(jnp.int32(0), jax.tree.map(lambda _: jnp.float32(jnp.inf), params))

  def update(gradients, state, params=None):
    del params
    is_first = state.steps + 1 < ADAGC_FIRST
    norm_of_all = global_norm(gradients)

    def clip(g, average):
      norm = optax.tree.norm(g)
      size = jnp.where(is_first, norm_of_all, norm)
      most = jnp.where(is_first, ADAGC_FIRST_NORM, limit * average)
      clips = size > most
      clipped = jnp.where(clips, norm / size * most, norm)
      later = ADAGC_DECAY * average + (1 - ADAGC_DECAY) * clipped
      starts = is_first | jnp.isinf(average)  # no norm above 0 so far
      new = jnp.where(starts, jnp.minimum(average, clipped), later)
      counts = jnp.isfinite(clipped) & (~starts | (clipped > 0))
      return _scale_to(g, size, most, clips), jnp.where(counts, new, average)

    found = jax.tree.map(clip, gradients, state.norms)
    clipped, norms = jax.tree.transpose(
        jax.tree.structure(gradients), jax.tree.structure((0, 0)), found
    )
    return clipped, AdaGCState(state.steps + 1, norms)

  return optax.GradientTransformation(init, update)


def _scale_to(tree: Tree, norm: jax.Array, target: jax.Array, clips: jax.Array) -> Tree:
  """The tree, scaled from `norm` to `target` where `clips`; a norm that overflows gives 0."""
  return jax.tree.map(lambda x: jnp.where(clips, x / norm * target, x), tree)
