"""Norms of many arrays, in few kernels."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stability.types import Tree

# Elements of a small array. Copying so many takes an H100 0.2 us by arithmetic, starting a kernel
# about 4 us (stability/devices/targets.py).
SMALL = 2**16


def square_sums(arrays: Sequence[jax.Array]) -> jax.Array:
  """The sum of squares of each array, [n], in float32.

  Small arrays of one shape are stacked and summed together. Unlike concatenation, stacking leaves
  the parts of arrays that are split over devices where they are.
  """
  groups: dict[Any, list[int]] = collections.defaultdict(list)
  for number, array in enumerate(arrays):
    groups[array.shape if array.size <= SMALL else number].append(number)
  sums = []
  for numbers in groups.values():
    stacked = jnp.stack([arrays[number].astype(jnp.float32) for number in numbers])
    sums.append(jnp.square(stacked).sum(tuple(range(1, stacked.ndim))))
  return jnp.concatenate(sums)[np.argsort([n for numbers in groups.values() for n in numbers])]


def global_norm(tree: Tree) -> jax.Array:
  """The L2 norm of all elements of all arrays, in float32."""
  return jnp.sqrt(square_sums(jax.tree.leaves(tree)).sum())


def rms_of_each(arrays: Sequence[jax.Array]) -> jax.Array:
  """The root mean square of each array, [n], in float32."""
  sizes = jnp.asarray([array.size for array in arrays], jnp.float32)
  return jnp.sqrt(square_sums(arrays) / sizes)
