"""Which numbers are the same, and which value stands for them."""

import numpy as np
import pytest

from stability import same_number
from stability.config import FIELDS


def float32(value):
  return float(np.float32(value))


@pytest.mark.parametrize('value', [1e-3, 0.3, 1e-8, 123456.0, 3e-5, 0.95, 1e10, 1e-45, 0.0, -2.5])
def test_shortest_undoes_float32(value):
  assert same_number.shortest(float32(value)) == same_number.shortest(value) == value


def test_shortest_tells_apart_what_float32_does():
  value = np.float32(10**-2.5)
  neighbours = [np.nextafter(value, np.float32(end)) for end in (0, 1)]
  found = [same_number.shortest(float(each)) for each in (value, *neighbours)]
  assert list(map(np.float32, found)) == [value, *neighbours] and len(set(found)) == 3


def test_shortest_out_of_range():
  assert same_number.shortest(1e39) == np.inf and same_number.shortest(1e-50) == 0
  assert str(same_number.shortest(-0.0)) == '0.0'


def test_defaults_are_the_shortest():
  """Otherwise a claim's constant, or the hash in a name, would differ from the config's value."""
  for record in FIELDS.values():
    stated = [record.default, record.paper, record.absent]
    for value in (each for each in stated if isinstance(each, float)):
      assert record.normalize(value) == value, record.name


SAME = {
    'float32': [1e-3, float32(1e-3)],
    'arithmetic': [0.3, 3 * 0.1],
    'six digits': [float(f'{10**-2.5:.6g}'), 10**-2.5, float32(10**-2.5)],
    'seven digits': [float(f'{1 / 3:.7g}'), 1 / 3],
    'the largest rounding to six digits': [1.00000499e-4, 1e-4],
    'negative': [-0.1, float32(-0.1)],
    'integer and float': [9216, 9216.0],
}
DIFFERENT = {
    'a digit of six': [1e-3, 1.00001e-3],
    'close rates': [1e-3, 1.001e-3],
    'decays near 1': [0.999, 0.9999, 0.99999, 0.999999],
    'integers': [1_000_000, 1_000_001],
    'whole floats': [1_000_000.0, 1_000_001.0],
    'integers beyond float': [2**53, 2**53 + 1],
    'integers beyond any float': [0.5, 10**400],
    'near zero': [0.0, 1e-30],
    'signs': [-1e-3, 1e-3],
    'infinite': [1e308, float('inf')],
    'integers with a float between': [999_999.5, 1_000_000, 1_000_001],
}


@pytest.mark.parametrize('case', SAME)
def test_same(case):
  assert len(set(same_number.representatives(SAME[case]).values())) == 1


@pytest.mark.parametrize('case', DIFFERENT)
def test_different(case):
  found = same_number.representatives(DIFFERENT[case])
  last_two = DIFFERENT[case][-2:]
  assert len({found[value] for value in last_two}) == 2


def test_small_differences_do_not_chain():
  values = [1 + 4e-6 * i + 1e-9 for i in range(5)]
  found = same_number.representatives(values)
  assert len(set(found.values())) == 3
  assert all(abs(value - found[value]) <= same_number.TOLERANCE for value in values)


@pytest.mark.parametrize(
    'values, stands',
    [
        ([float32(1e-3), 1e-3], 1e-3),
        ([float32(1e-3)], 1e-3),
        ([3 * 0.1], 0.3),
        ([9999.999999999998], 1e4),
        ([10**-2.5, 0.00316228], 0.00316228),
        ([10**-2.5], 0.00316227766016838),
        ([2**53 + 1], 2**53 + 1),
        ([67108872.0], 67108872.0),
    ],
)
def test_representative_has_the_fewest_digits(values, stands):
  assert set(same_number.representatives(values).values()) == {stands}


def test_representative_is_the_known_number():
  assert same_number.representatives([0.333333, 0.5], known=[1 / 3]) == {0.333333: 1 / 3, 0.5: 0.5}
