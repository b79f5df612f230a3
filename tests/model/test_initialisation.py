"""Factors of the initial parameters, compared with those that the sources state."""

import numpy as np
import pytest

from stability.errors import BadInput
from stability.model import initialisation


def initial(run, params):
  for term in initialisation.INITIALISATION.active(run.static):
    params = term.make(params, run.hparams, run.static)
  return params


@pytest.fixture
def params():
  """The parameters of a model of two blocks; each is drawn with std 1."""
  rng = np.random.default_rng(0)

  def block():
    attention = {name: draw(3, 3) for name in ('query', 'key', 'value', 'output')}
    return {'attention': attention, 'mlp': {'up': draw(3, 12), 'down': draw(12, 3)}}

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  return {'embedding': draw(5, 3), 'block_0': block(), 'block_1': block(), 'head': draw(3, 5)}


def test_small_and_zero_head(tiny, params):
  """The std of a head that is drawn with 1 / sqrt(width); no other parameter changes."""
  small = tiny({'init.head': 'small', 'init.head_std': 2e-3, 'model.width': 64})
  found = initial(small, params)
  np.testing.assert_allclose(found['head'], params['head'] / 64**-0.5 * 2e-3, rtol=1e-6)
  zero = initial(tiny({'init.head': 'zero'}), params)
  assert not np.any(zero['head'])
  for changed in (found, zero):
    assert all(changed[name] is params[name] for name in params if name != 'head')
  assert initial(tiny(), params) is params


def test_std_without_small_head(tiny):
  with pytest.raises(BadInput, match=r'must be 0.001 unless config\.init\.head=small'):
    tiny({'init.head': 'zero', 'init.head_std': 1e-2})
