"""Rounding of float32 numbers to shorter formats, whose numbers stay in float32 arrays.

It is explicit, since XLA may remove a pair of casts, and jnp's casts to FP8 do not saturate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from stability.types import Params


class Format(NamedTuple):
  """An FP8 format."""

  mantissa_bits: int
  smallest_normal: float
  largest: float


E4M3 = Format(3, 2.0**-6, 448.0)
E5M2 = Format(2, 2.0**-14, 57_344.0)


def to_fp8(x: jax.Array, form: Format) -> jax.Array:
  """The number of a format that is nearest to each element of x; float32.

  Numbers out of its range become the largest one, where jnp's casts give NaN or infinity.
  """
  x = jnp.clip(x.astype(jnp.float32), -form.largest, form.largest)
  spacing = form.smallest_normal * 2.0**-form.mantissa_bits  # of subnormal numbers
  normal = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=form.mantissa_bits)
  is_normal = jnp.abs(x) >= form.smallest_normal
  return jnp.where(is_normal, normal, jnp.round(x / spacing) * spacing)


def to_bfloat16(params: Params) -> Params:
  """The nearest bfloat16 of each number."""

  def round_(p):
    return jax.lax.reduce_precision(p, exponent_bits=8, mantissa_bits=7)

  return jax.tree.map(round_, params)


def to_bfloat16_stochastically(params: Params, seed: jax.Array, step: jax.Array) -> Params:
  """One of the two bfloat16 next to each number, with such probabilities that the mean is exact.

  The random bits are a function of the seed, the step and the position of a parameter in the tree.
  """
  key = jax.random.fold_in(jax.random.key(seed), step)
  leaves, structure = jax.tree.flatten(params)
  rounded = [_round(p, jax.random.fold_in(key, i)) for i, p in enumerate(leaves)]
  return jax.tree.unflatten(structure, rounded)


def _round(p: jax.Array, key: jax.Array) -> jax.Array:
  """Adds 16 random bits to the bits that bfloat16 lacks, and sets these to 0."""
  bits = jax.lax.bitcast_convert_type(p, jnp.uint32)
  noise = jax.random.bits(key, p.shape, jnp.uint16).astype(jnp.uint32)
  rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
  return jnp.where(jnp.isfinite(p), rounded, p)
