"""Windows that stand in a datastore, against sets of all their pieces."""

import numpy as np
import pytest

from stability.retrieval import overlap


def pieces(text, length=32):
  return {text[i : i + length] for i in range(len(text) - length + 1)}


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
  # The other way round, with a single text. Long windows must share more.
  monkeypatch.setattr(overlap, 'LONG', 64)
  text = max(texts, key=len)
  lengths = [64 if len(window) >= 64 else 32 for window in windows]
  found = [bool(pieces(w, n) & pieces(text, n)) for w, n in zip(windows, lengths)]
  assert any(found) and overlap.occurring_in(windows, text).tolist() == found


def test_a_piece_of_31_bytes_is_no_overlap():
  text = bytes(range(200))
  windows = [text[50:81] + b'!', text[50:82], b'']
  assert overlap.overlapping(windows, [text]).tolist() == [False, True, False]
  assert overlap.occurring_in(windows, text).tolist() == [False, True, False]
  long = [text[50:177] + b'!', b'!' + text[50:178], text[9:41] + b'!' * 96, text[9:41] + b'!' * 95]
  assert overlap.occurring_in(long, text).tolist() == [False, True, False, True]


def test_a_piece_across_two_texts_is_no_overlap():
  halves = [bytes(range(20)), bytes(range(20, 40))]
  assert not overlap.overlapping([bytes(range(40))], halves).any()
  assert not overlap.occurring_in(halves, bytes(range(40))).any()


def test_a_collision_of_hashes_is_no_overlap(monkeypatch):
  hashes = lambda text, _: np.zeros(max(0, len(text) - 31), np.uint64)  # noqa: E731
  monkeypatch.setattr(overlap, '_hashes', hashes)
  windows = [bytes(range(40)), bytes(range(100, 140))]
  assert overlap.overlapping(windows, [bytes(range(50))]).tolist() == [True, False]
  assert overlap.occurring_in(windows, bytes(range(50))).tolist() == [True, False]
