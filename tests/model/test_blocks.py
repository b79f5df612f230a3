"""Lengths of blocks of positions."""

import pytest

from stability.model import blocks


@pytest.mark.parametrize(
    ('positions', 'limit', 'length'),
    [(512, 32, 32), (500, 32, 25), (7, 32, 7), (509, 32, 32), (2_047, 20, 20), (13, 5, 5)],
)
def test_length(positions, limit, length):
  assert blocks.length(positions, limit) == length


@pytest.mark.parametrize('limit', [1, 5, 32, 128])
def test_number_of_blocks_is_bounded(limit):
  for positions in range(1, 600):
    length = blocks.length(positions, limit)
    assert 1 <= length <= limit
    assert -(-positions // length) <= 2 * -(-positions // limit), positions
