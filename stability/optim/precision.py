"""The state of an optimizer in bfloat16."""

import jax
import jax.numpy as jnp
import optax


def with_bfloat16_state(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Stores the arrays of a transformation's state as bfloat16; numbers keep their type.

  An update computes in float32; its new state is rounded to the nearest bfloat16. A moment thus
  cannot change by less than about 2^-9 of its value: with beta2 = 0.999, it hardly decays.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    return _cast(inner.init(params), jnp.float32, jnp.bfloat16)

  def update(gradients, state, params=None, **others):
    exact = _cast(state, jnp.bfloat16, jnp.float32)
    updates, exact = inner.update(gradients, exact, params, **others)
    return updates, _cast(exact, jnp.float32, jnp.bfloat16)

  return optax.GradientTransformationExtraArgs(init, update)


def _cast(state: optax.OptState, old: jnp.dtype, new: jnp.dtype) -> optax.OptState:
  return jax.tree.map(lambda x: x.astype(new) if x.ndim and x.dtype == old else x, state)
