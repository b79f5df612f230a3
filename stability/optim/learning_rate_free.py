"""Optimizers that estimate the learning rate, which optimizer.learning_rate then multiplies.

Their directions contain the estimate, so that their RMS is far below 1 at first, and a learning
rate of 1 is the published method. DoWG rather than Mechanic,
whose Optax version computes a sum of updates from differences of 1e-6 between float32 parameters.
"""

import jax
import jax.numpy as jnp
import optax


def prodigy(
    beta1: jax.Array, beta2: jax.Array, eps: jax.Array
) -> optax.GradientTransformationExtraArgs:
  """Adam, times an estimate of the distance to the solution that grows from 1e-6.

  With safeguard_warmup, which its authors advise for a linear warm-up, without which the estimate
  becomes too large; and with Adam's bias corrections, optional in github.com/konstmish/prodigy.
  """

  def at(rate):
    return optax.contrib.prodigy(rate, (beta1, beta2), eps=eps, safeguard_warmup=True)

  def update(gradients, state, params=None, *, learning_rate, **others):
    del others
    moves, new = at(learning_rate).update(gradients, state, params)
    # The estimate is 0 / 0 if all gradients were 0 so far.
    is_known = jnp.isfinite(new.estim_lr)
    state = jax.tree.map(lambda a, b: jnp.where(is_known, a, b), new, state)
    divides = is_known & (learning_rate > 0)
    rate = jnp.where(divides, learning_rate, 1)
    return jax.tree.map(lambda move: jnp.where(divides, -move / rate, 0), moves), state

  return optax.GradientTransformationExtraArgs(at(1.0).init, update)


def dowg() -> optax.GradientTransformation:
  """The gradient times r^2 / sqrt(sum of r^2 |g|^2), without momentum.

  r is the largest distance from the initial parameters so far, at least 0.01.
  """
  return optax.chain(optax.contrib.dowg(1.0), optax.scale(-1.0))
