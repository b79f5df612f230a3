"""Batches as a function of (data seed, step), with the same integers from NumPy and from jax.

A text of `tokens` tokens is cut into n = (tokens - 1) // sequence_length windows that start at
multiples of sequence_length and hold sequence_length + 1 tokens, inputs and targets. Each token is
thus predicted once per epoch, except the first token and a remainder too short for a window.

Example number e = step * batch_size + i is window permutation(e % n) of epoch e // n. Each epoch
visits every window once, in an order of its own, and no sampler state has to be saved.

uint32 arithmetic limits a run to 2**32 examples, and a text on a device to 2**31 tokens.
"""

from types import ModuleType
from typing import Any

import numpy as np

from stability.config import MAX_EXAMPLES
from stability.errors import BadInput

Array = Any  # np.ndarray or jax.Array

MAX_DEVICE_TOKENS = 2**31

_ROUNDS = 6  # of the Feistel network; must be even


def window_starts(
    xp: ModuleType,
    seed: Array | int,
    step: Array | int,
    *,
    batch_size: int,
    sequence_length: int,
    tokens: int,
) -> Array:
  """Start offsets of the windows of one batch: [batch_size], int64 in numpy and int32 in jax.

  Args:
    xp: numpy or jax.numpy.
    seed: data seed; may be traced.
    step: index of the training step, from 0; may be traced.
    batch_size: windows in a batch.
    sequence_length: tokens predicted per window.
    tokens: length of the text.

  Raises:
    BadInput: a limit stated above is exceeded. A traced step cannot be checked: its caller must
      ensure that steps * batch_size <= MAX_EXAMPLES.
  """
  n = _count_windows(sequence_length, tokens)
  if isinstance(step, int | np.integer) and (int(step) + 1) * batch_size > MAX_EXAMPLES:
    raise BadInput(
        f'step {step} with {batch_size} sequences per batch: a run can draw at most {MAX_EXAMPLES}'
    )
  if xp is not np and tokens > MAX_DEVICE_TOKENS:
    raise BadInput(
        f'config.data.path holds {tokens} tokens: a device can index at most {MAX_DEVICE_TOKENS}'
    )
  # Scalars become arrays because NumPy warns when a uint32 scalar wraps around.
  seed = xp.full(batch_size, seed, np.uint32)
  step = xp.full(batch_size, step, np.uint32)
  example = step * np.uint32(batch_size) + xp.arange(batch_size, dtype=np.uint32)
  window = _permute(xp, example % np.uint32(n), n, seed, example // np.uint32(n))
  return window.astype(np.int64 if xp is np else np.int32) * sequence_length


def validation_starts(count: int, sequence_length: int, tokens: int) -> np.ndarray:
  """Start offsets of `count` windows spread evenly over the text: int64 [count].

  Windows repeat if the text has fewer than `count`.
  """
  n = _count_windows(sequence_length, tokens)
  return np.arange(count) * n // count * sequence_length


def gather(tokens: Array, starts: Array, sequence_length: int) -> Array:
  """Tokens of the windows at `starts` [batch]: int32 [batch, sequence_length + 1]."""
  offsets = starts[:, None] + np.arange(sequence_length + 1, dtype=np.int32)
  return tokens[offsets].astype(np.int32)


def _count_windows(sequence_length: int, tokens: int) -> int:
  n = (tokens - 1) // sequence_length
  if n < 1:
    raise BadInput(
        f'config.data.path holds {tokens} tokens;'
        f' config.data.sequence_length={sequence_length} needs at least {sequence_length + 1}'
    )
  return n


def _permute(xp: ModuleType, position: Array, n: int, seed: Array, epoch: Array) -> Array:
  """Image of `position` under a pseudo-random permutation of [0, n) keyed by (seed, epoch).

  A Feistel network permutes [0, 2**k), the smallest such range that contains [0, n). It is applied
  again to the values that land outside [0, n) until none do (cycle walking). This takes fewer than
  two applications per value on average. All arrays are uint32 [batch].
  """
  bits = max(2, (n - 1).bit_length())
  low_bits = bits // 2
  low_mask, high_mask = np.uint32(2**low_bits - 1), np.uint32(2 ** (bits - low_bits) - 1)
  keys = [
      _mix(_mix(seed + np.uint32(0x9E3779B9 * (i + 1) % 2**32)) ^ epoch) for i in range(_ROUNDS)
  ]

  def network(x):
    high, low = x >> low_bits, x & low_mask
    for i in range(0, _ROUNDS, 2):
      high = high ^ (_mix(low ^ keys[i]) & high_mask)
      low = low ^ (_mix(high ^ keys[i + 1]) & low_mask)
    return high << low_bits | low

  def any_outside(x):
    return (x >= np.uint32(n)).any()

  def walk(x):
    return xp.where(x >= np.uint32(n), network(x), x)

  x = network(position)
  if xp is not np:
    from jax import lax  # imported here because the host path must not need jax

    return lax.while_loop(any_outside, walk, x)
  while any_outside(x):
    x = walk(x)
  return x


def _mix(x: Array) -> Array:
  """The lowbias32 hash of C. Wellons: a bijection of uint32 with little avalanche bias."""
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)
