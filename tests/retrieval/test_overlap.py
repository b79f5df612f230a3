"""Windows that stand in a datastore, against sets of all their pieces."""

import numpy as np
import pytest

from stability.retrieval import overlap


def pieces(text):
  return {text[i : i + 32] for i in range(len(text) - 31)}


@pytest.mark.parametrize('block', [1, 100, 10**6])
def test_equal_to_sets(block, monkeypatch):
  monkeypatch.setattr(overlap, '_BLOCK', block)
  rng = np.random.default_rng(block)
  texts = [rng.integers(97, 99, rng.integers(0, 150), np.uint8).tobytes() for _ in range(9)]
  joined, windows = b''.join(texts), []
  for _ in range(60):  # some from one text, some across two, some changed in the middle
    start, length = rng.integers(0, len(joined) - 70), rng.integers(20, 70)
    window = bytearray(joined[start : start + length])
    window[length // 2] ^= rng.integers(2)
    windows.append(bytes(window))
  stored = set().union(*map(pieces, texts))
  expected = [bool(pieces(window) & stored) for window in windows]
  assert any(expected) and not all(expected)
  assert overlap.overlapping(windows, texts).tolist() == expected


def test_a_piece_of_31_bytes_is_no_overlap():
  text = bytes(range(200))
  windows = [text[50:81] + b'!', text[50:82], b'']
  assert overlap.overlapping(windows, [text]).tolist() == [False, True, False]


def test_a_piece_across_two_texts_is_no_overlap():
  halves = [bytes(range(20)), bytes(range(20, 40))]
  assert not overlap.overlapping([bytes(range(40))], halves).any()


def test_a_collision_of_hashes_is_no_overlap(monkeypatch):
  monkeypatch.setattr(overlap, '_hashes', lambda text: np.zeros(max(0, len(text) - 31), np.uint64))
  windows = [bytes(range(40)), bytes(range(100, 140))]
  assert overlap.overlapping(windows, [bytes(range(50))]).tolist() == [True, False]
