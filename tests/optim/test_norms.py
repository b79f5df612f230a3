"""Norms of many arrays against NumPy in float64, and the number of sums that they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.optim import norms


def arrays():
  rng = np.random.default_rng(0)
  shapes = [(3,), (2, 4), (), (3,), (norms.SMALL + 1,), (2, 4), (norms.SMALL + 1,)]
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_sums_are_in_the_order_of_the_arrays():
  expected = [np.square(x.astype(float)).sum() for x in arrays()]
  np.testing.assert_allclose(norms.square_sums(arrays()), expected, rtol=1e-5)
  expected = np.sqrt([np.square(x.astype(float)).mean() for x in arrays()])
  np.testing.assert_allclose(norms.rms_of_each(arrays()), expected, rtol=1e-5)


def test_global_norm():
  tree = {'a': arrays()[0], 'b': {'c': arrays()[1], 'd': jnp.bfloat16([3, 4])}}
  expected = np.sqrt(sum(np.square(x.astype(float)).sum() for x in arrays()[:2]) + 25)
  assert norms.global_norm(tree) == pytest.approx(expected, rel=1e-6)
  assert norms.global_norm(tree).dtype == jnp.float32


def test_bfloat16_is_summed_in_float32():
  ones = jnp.ones(1000, jnp.bfloat16)  # a sum in bfloat16 stops growing at 256
  assert norms.square_sums([ones]).tolist() == [1000]


def test_small_arrays_of_one_shape_share_a_sum():
  text = str(jax.make_jaxpr(norms.square_sums)(arrays()))
  assert text.count('reduce_sum') == 5  # three small shapes, two large arrays
