import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.data import batches
from stability.errors import BadInput


def draw(xp=np, seed=0, step=0, **sizes):
  return batches.window_starts(xp, seed, step, **sizes)


def epochs(windows: int, count: int, seed: int = 0, batch_size: int = 3) -> np.ndarray:
  """Window indices of the first `count` epochs, drawn batch by batch: [count, windows]."""
  sizes = dict(batch_size=batch_size, sequence_length=4, tokens=4 * windows + 2)
  steps = -(-count * windows // batch_size)
  starts = np.concatenate([draw(seed=seed, step=step, **sizes) for step in range(steps)])
  assert np.all(starts % 4 == 0)
  return starts[: count * windows].reshape(count, windows) // 4


@pytest.mark.parametrize('windows', [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 31, 32, 33, 64, 97, 100, 257])
@pytest.mark.parametrize('seed', [0, 1, 2**31 - 1])
def test_every_window_once_per_epoch(windows, seed):
  for epoch in epochs(windows, 3, seed):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(windows))


def test_permutation_of_a_million_windows():
  [order] = epochs(1_000_003, 1, batch_size=1_000_003)
  assert np.bincount(order, minlength=1_000_003).tolist() == [1] * 1_000_003


def test_orders_differ_by_epoch_and_seed():
  orders = [tuple(epoch) for seed in (0, 1, 2, 3) for epoch in epochs(97, 4, seed)]
  assert len(set(orders)) == 16
  agreements = [np.mean(np.equal(a, b)) for i, a in enumerate(orders) for b in orders[:i]]
  assert np.mean(agreements) < 0.02  # 1 / 97 by chance


@pytest.mark.parametrize('windows', [16, 37, 1000])
def test_orders_are_uniform(windows):
  """Every window is equally likely at every position, and successors are not neighbors."""
  orders = epochs(windows, 600, batch_size=600 * windows)
  counts = np.stack([np.bincount(place, minlength=windows) for place in orders.T])
  mean = len(orders) / windows
  chi2 = ((counts - mean) ** 2 / mean).sum() / (windows - 1) ** 2
  assert abs(chi2 - 1) < 4 * np.sqrt(2) / (windows - 1) + 0.05
  assert np.mean(np.diff(orders, axis=1) == 1) == pytest.approx(1 / windows, rel=0.15)


SIZES = [
    dict(batch_size=16, sequence_length=64, tokens=9_325_264),
    dict(batch_size=5, sequence_length=1, tokens=2**31),
    dict(batch_size=4096, sequence_length=512, tokens=10**9),
    dict(batch_size=8, sequence_length=4, tokens=5),
    dict(batch_size=8, sequence_length=4, tokens=14),
]


@pytest.mark.parametrize('sizes', SIZES)
def test_jax_equals_numpy(sizes):
  seeds, steps = [0, 1, 12345, 2**31 - 1], [0, 1, 999, 999_999]
  expected = np.array([[draw(seed=a, step=b, **sizes) for b in steps] for a in seeds])
  assert expected.min() >= 0 and expected.max() + sizes['sequence_length'] < sizes['tokens']

  traced = functools.partial(batches.window_starts, jnp, **sizes)
  alone = jax.jit(traced)
  got = np.array([[alone(jnp.int32(a), jnp.int32(b)) for b in steps] for a in seeds])
  np.testing.assert_array_equal(got, expected)

  grid = jax.jit(jax.vmap(jax.vmap(traced, (None, 0)), (0, None)))
  np.testing.assert_array_equal(grid(jnp.array(seeds), jnp.array(steps)), expected)
  np.testing.assert_array_equal(traced(seeds[2], steps[2]), expected[2, 2])


def test_batches_are_frozen():
  sizes = dict(batch_size=6, sequence_length=64, tokens=64_001)
  assert (draw(seed=7, step=0, **sizes) // 64).tolist() == [946, 483, 816, 928, 643, 249]
  assert (draw(seed=7, step=10**6, **sizes) // 64).tolist() == [43, 374, 501, 178, 773, 886]


def test_no_overflow_warning():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    draw(seed=2**31 - 1, step=999_999, batch_size=4096, sequence_length=64, tokens=10**6)
    draw(seed=np.int32(5), step=np.int32(7), batch_size=1, sequence_length=64, tokens=10**6)


def test_example_limit():
  sizes = dict(batch_size=4096, sequence_length=64, tokens=10**6)
  last = batches.MAX_EXAMPLES // 4096 - 1
  draw(step=last, **sizes)
  for xp in (np, jnp):
    with pytest.raises(BadInput, match=f'step {last + 1} with 4096 sequences per batch'):
      draw(xp, step=last + 1, **sizes)


def test_device_token_limit():
  sizes = dict(batch_size=64, sequence_length=512, tokens=13 * 10**9)
  starts = draw(**sizes)
  assert starts.dtype == np.int64 and starts.max() > 2**31
  with pytest.raises(BadInput, match=r'data\.path holds 13000000000 tokens'):
    draw(jnp, **sizes)


def test_text_too_short():
  with pytest.raises(BadInput, match=r'data\.path holds 64 tokens.*needs at least 65'):
    draw(batch_size=2, sequence_length=64, tokens=64)
  with pytest.raises(BadInput, match=r'data\.path holds 64 tokens.*needs at least 65'):
    batches.validation_starts(2, sequence_length=64, tokens=64)


def test_epoch_predicts_each_token_once():
  text = np.arange(101, dtype=np.uint8)
  starts = draw(batch_size=10, sequence_length=10, tokens=101)
  rows = batches.gather(text, starts, 10)
  np.testing.assert_array_equal(np.sort(rows[:, 1:].ravel()), np.arange(1, 101))
  np.testing.assert_array_equal(rows[:, 1:-1], rows[:, :-2] + 1)


def test_gather_on_host_and_device(tmp_path):
  text = np.memmap(tmp_path / 'text', np.uint16, 'w+', shape=1000)
  text[:] = np.random.default_rng(0).integers(0, 2**16, 1000)
  starts = draw(batch_size=7, sequence_length=33, tokens=1000)
  rows = batches.gather(text, starts, 33)
  assert type(rows) is np.ndarray and rows.dtype == np.int32 and rows.shape == (7, 34)
  np.testing.assert_array_equal(rows, [text[start : start + 34] for start in starts])

  def device(text, seed, step):
    starts = draw(jnp, seed, step, batch_size=7, sequence_length=33, tokens=1000)
    return batches.gather(text, starts, 33)

  on_device = jax.jit(device)(jnp.array(text), 0, 0)
  assert on_device.dtype == jnp.int32
  np.testing.assert_array_equal(on_device, rows)
  np.testing.assert_array_equal(batches.gather(jnp.array(text), starts, 33), rows)


def test_validation_windows_are_even():
  assert batches.validation_starts(4, 10, 81).tolist() == [0, 20, 40, 60]
  assert batches.validation_starts(3, 10, 81).tolist() == [0, 20, 50]
  assert batches.validation_starts(4, 10, 21).tolist() == [0, 0, 10, 10]  # two windows only
  starts = batches.validation_starts(256, 64, 495_036)
  assert len(set(starts.tolist())) == 256 and starts.max() + 64 < 495_036
