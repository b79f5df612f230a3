"""Rounding to FP8 and bfloat16, compared with the casts of ml_dtypes."""

import jax
import ml_dtypes
import numpy as np
import pytest

from stability.model import rounding

TYPES = {rounding.E4M3: ml_dtypes.float8_e4m3fn, rounding.E5M2: ml_dtypes.float8_e5m2}
nearest = jax.jit(rounding.to_bfloat16)
stochastic = jax.jit(rounding.to_bfloat16_stochastically)


@pytest.mark.parametrize('form', TYPES, ids=['e4m3', 'e5m2'])
def test_fp8(form):
  """All numbers of the format, all midpoints between two of them, and numbers out of its range."""
  info = ml_dtypes.finfo(TYPES[form])
  assert form.largest == info.max and form.smallest_normal == info.smallest_normal
  numbers = np.arange(256, dtype=np.uint8).view(TYPES[form]).astype(np.float32)
  numbers = np.unique(numbers[np.isfinite(numbers)])
  middles = (numbers[1:] + numbers[:-1]) / 2
  others = np.random.default_rng(0).normal(size=1000) * 2.0 ** np.arange(-20, 20)[:, None]
  x = np.concatenate([numbers, middles, others.ravel(), [1e5, -1e30, 500]]).astype(np.float32)
  found = np.asarray(jax.jit(rounding.to_fp8, static_argnums=1)(x, form))
  clipped = np.clip(x, -form.largest, form.largest)
  np.testing.assert_array_equal(found, clipped.astype(TYPES[form]).astype(np.float32))


def test_nearest_bfloat16():
  x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
  np.testing.assert_array_equal(nearest(x), x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_stochastic_bfloat16():
  """Each number becomes one of its two neighbours, and their mean is the number."""
  step = 2.0**-7  # between neighbours from 1 to 2
  shares = np.array([0, 0.1, 0.5, 0.9])
  x = np.float32(1 + step * shares) * np.array([1, -1024], np.float32)[:, None]
  many = np.broadcast_to(x, (20_000, *x.shape))
  found = np.asarray(stochastic({'a': many}, 0, 1)['a'])
  np.testing.assert_array_equal(np.unique(found[:, 0]), [1, 1 + step])
  np.testing.assert_array_equal(np.unique(found[:, 1]), [-1024 * (1 + step), -1024])
  ups = (np.abs(found) > np.array([1, 1024])[:, None]).mean(0)
  np.testing.assert_allclose(ups, [shares] * 2, atol=0.02)  # 5 standard errors
  assert (ups[:, 0] == 0).all()  # a bfloat16 stays as it is


def test_small_updates_add_up_on_average():
  """1000 updates of 0.001 move 1 to 2; rounding to the nearest number loses every one of them."""
  ones = np.ones(200, np.float32)

  def run(i, state):
    fixed, moved = (x + 1e-3 for x in state)
    return rounding.to_bfloat16(fixed), rounding.to_bfloat16_stochastically(moved, 0, i)

  fixed, moved = jax.jit(lambda x: jax.lax.fori_loop(0, 1000, run, (x, x)))(ones)
  assert (fixed == 1).all()
  assert np.mean(moved) == pytest.approx(2, abs=0.05)


def test_random_bits():
  """They differ between seeds, steps and parameters, but not between positions in a population."""
  x = np.full(64, 1.003, np.float32)
  params = {'a': x, 'b': x}
  first = stochastic(params, 0, 1)
  others = [first['b'], stochastic(params, 1, 1)['a'], stochastic(params, 0, 2)['a']]
  assert all(not np.array_equal(first['a'], other) for other in others)
  together = jax.jit(jax.vmap(rounding.to_bfloat16_stochastically, (None, 0, None)))(
      params, np.arange(2), 1
  )
  np.testing.assert_array_equal(together['a'][0], first['a'])


def test_numbers_that_are_not_finite():
  x = np.array([np.inf, -np.inf, np.nan], np.float32)
  x = np.append(x, np.uint32(0x7FFFFFFF).view(np.float32))  # a NaN whose bits are all 1
  found = np.asarray(stochastic(np.tile(x, 50), 0, 1))
  np.testing.assert_array_equal(found, np.tile(x, 50))
