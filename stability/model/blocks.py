"""Blocks of the positions of a sequence that are processed one after another, to save memory."""


def length(positions: int, limit: int) -> int:
  """The number of positions of a block, at most `limit`; only the last block may have fewer.

  The blocks are equal if the positions have a divisor between half of the limit and the limit.
  """
  limit = min(limit, positions)
  divisor = next(n for n in range(limit, 0, -1) if positions % n == 0)
  blocks = -(-positions // limit)
  return divisor if 2 * divisor >= limit else -(-positions // blocks)
