"""SPAM: Adam whose moments restart periodically, and that clips spikes (arXiv 2501.06842)."""

import jax
import jax.numpy as jnp
import optax

# From the paper and its source code (github.com/TianjinYellow/SPAM-Optimizer).
THRESHOLD = 5_000  # of g^2 over the second moment
FREE_STEPS = 20  # steps after a restart, or after the start, without clipping
LOWEST_FACTOR = 0.01  # of the update, at a restart


def scale_by_spam(
    beta1: jax.Array, beta2: jax.Array, eps: jax.Array, every: jax.Array, warmup: jax.Array
) -> optax.GradientTransformation:
  """Adam's directions, with restarts and clipping of spikes.

  Elements with g^2 > 5000 v become sign(g) sqrt(5000 v), where v is the second moment before the
  update, without bias correction: an element whose gradient was 0 since the restart stays 0 until
  the next one. Bias corrections count all updates.

  Args:
    beta1: decay of the first moment.
    beta2: decay of the second moment.
    eps: added to the root of the second moment.
    every: updates between restarts, which set both moments to 0.
    warmup: updates after a restart in which a factor of the direction rises, along half a cosine,
      from 0.01 to 1.
  """
  adam = optax.scale_by_adam(beta1, beta2, eps)

  def update(gradients, state, params=None):
    del params
    step = state.count + 1
    since = step % every  # updates since the restart, or since the start
    mu, nu = jax.tree.map(lambda m: jnp.where(since == 0, 0, m), (state.mu, state.nu))

    def clip(g, v):
      bound = jnp.sqrt(THRESHOLD * v)
      return jnp.where(since >= FREE_STEPS, jnp.clip(g, -bound, bound), g)

    gradients = jax.tree.map(clip, gradients, nu)
    directions, state = adam.update(gradients, state._replace(mu=mu, nu=nu))
    angle = jnp.pi * since / (warmup + 1)
    rising = 1 - (1 - LOWEST_FACTOR) * (1 + jnp.cos(angle)) / 2
    factor = jnp.where((step >= every) & (since < warmup), rising, 1)
    return jax.tree.map(lambda u: factor * u, directions), state

  return optax.GradientTransformation(adam.init, update)
