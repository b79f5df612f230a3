"""batch = f(data seed, step): the same integers from NumPy on the host and from jax on a device.

Text of `tokens` tokens has n = (tokens - 1) // sequence_length windows of sequence_length + 1
tokens, at multiples of sequence_length, so that each token is predicted once, but for the first and
a rest that fills no window. Example number e = step * batch_size + i is window permutation(e % n)
of epoch e // n: every window once an epoch, in an order of its own, without state to keep.

Limits, of uint32: 2**32 examples in a run, and 2**31 tokens for windows drawn on a device.
"""

from types import ModuleType
from typing import Any

import numpy as np

from stability.errors import BadInput

Array = Any  # np.ndarray or jax.Array

MAX_EXAMPLES = 2**32  # steps * batch_size
MAX_DEVICE_TOKENS = 2**31

_ROUNDS = 6  # of the Feistel network; even


def window_starts(
    xp: ModuleType,
    seed: Array | int,
    step: Array | int,
    *,
    batch_size: int,
    sequence_length: int,
    tokens: int,
) -> Array:
  """Offsets of the windows of a batch, [batch_size]; int64 for xp = numpy, int32 for jax.numpy.

  seed and step (0-based) may be traced. Raises BadInput past the limits, as far as they can be
  seen: a traced step cannot, so see to steps * batch_size <= MAX_EXAMPLES.
  """
  n = _windows(sequence_length, tokens)
  if isinstance(step, int | np.integer) and (int(step) + 1) * batch_size > MAX_EXAMPLES:
    raise BadInput(
        f'step {step} of {batch_size} sequences: a run can draw {MAX_EXAMPLES} at most'
    )
  if xp is not np and tokens > MAX_DEVICE_TOKENS:
    raise BadInput(
        f'config.data.path holds {tokens} tokens: only {MAX_DEVICE_TOKENS} can be on a device'
    )
  # Whole vectors even of scalars: NumPy warns when a uint32 scalar wraps around, not when an array.
  seed = xp.full(batch_size, seed, np.uint32)
  step = xp.full(batch_size, step, np.uint32)
  example = step * np.uint32(batch_size) + xp.arange(batch_size, dtype=np.uint32)
  window = _permute(xp, example % np.uint32(n), n, seed, example // np.uint32(n))
  return window.astype(np.int64 if xp is np else np.int32) * sequence_length


def validation_starts(count: int, sequence_length: int, tokens: int) -> np.ndarray:
  """Offsets of `count` fixed windows spread evenly over the text, int64 [count].

  Windows repeat where the text has fewer.
  """
  n = _windows(sequence_length, tokens)
  return np.arange(count) * n // count * sequence_length


def gather(tokens: Array, starts: Array, sequence_length: int) -> Array:
  """The windows at `starts` [batch]: int32 [batch, sequence_length + 1], inputs and targets."""
  offsets = starts[:, None] + np.arange(sequence_length + 1, dtype=np.int32)
  return tokens[offsets].astype(np.int32)


def _windows(sequence_length: int, tokens: int) -> int:
  n = (tokens - 1) // sequence_length
  if n < 1:
    raise BadInput(
        f'config.data.path holds {tokens} tokens;'
        f' config.data.sequence_length={sequence_length} needs at least {sequence_length + 1}'
    )
  return n


def _permute(xp: ModuleType, position: Array, n: int, seed: Array, epoch: Array) -> Array:
  """A pseudo-random permutation of [0, n) keyed by (seed, epoch), applied to position.

  A Feistel network permutes the power of two above n; where it leads outside [0, n), it is applied
  again until it does not (cycle walking), under twice on average. Everything is uint32 [batch].
  """
  bits = max(2, (n - 1).bit_length())
  low = bits // 2
  low_mask, high_mask = np.uint32(2**low - 1), np.uint32(2 ** (bits - low) - 1)
  keys = [
      _mix(_mix(seed + np.uint32(0x9E3779B9 * (i + 1) % 2**32)) ^ epoch) for i in range(_ROUNDS)
  ]

  def network(x):
    high, low_part = x >> low, x & low_mask
    for i in range(0, _ROUNDS, 2):
      high = high ^ (_mix(low_part ^ keys[i]) & high_mask)
      low_part = low_part ^ (_mix(high ^ keys[i + 1]) & low_mask)
    return high << low | low_part

  def outside(x):
    return (x >= np.uint32(n)).any()

  def walk(x):
    return xp.where(x >= np.uint32(n), network(x), x)

  x = network(position)
  if xp is not np:
    from jax import lax  # not above: the host needs no jax

    return lax.while_loop(outside, walk, x)
  while outside(x):
    x = walk(x)
  return x


def _mix(x: Array) -> Array:
  """lowbias32 of C. Wellons: a bijection of uint32, every input bit moves every output bit."""
  x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
  return x ^ (x >> 16)
