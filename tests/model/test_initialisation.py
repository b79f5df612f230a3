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


def test_small_head_of_wesar(tiny, params):
  """Its gain takes the factor, as all parameters start with one std."""
  run = tiny({'init.head': 'small', 'model.kernel': 'wesar', 'model.width': 64})
  found = initial(run, params | {'head_reparam': {'gain': np.float32(3)}})
  assert found['head'] is params['head']
  np.testing.assert_allclose(found['head_reparam']['gain'], 3 * 1e-3 * 64**0.5, rtol=1e-6)


@pytest.mark.parametrize(
    'changed', [{'init.depth_scale': 'depth'}, {'model.norm_position': 'deepnorm'}]
)
def test_depth_scale_of_adapters(tiny, params, changed):
  """Not of the matrices of adapters, though a bottleneck has one of the same name."""
  down = params['block_0']['mlp']['down']
  params['block_0']['mlp_adapter'] = {'down': down}
  found = initial(tiny(changed | {'adapter.kind': 'houlsby', 'adapter.rank': 2}), params)
  assert found['block_0']['mlp_adapter']['down'] is down
  assert found['block_0']['mlp']['down'] is not down


def test_std_without_small_head(tiny):
  with pytest.raises(BadInput, match=r'must be 0.001 unless config\.init\.head=small'):
    tiny({'init.head': 'zero', 'init.head_std': 1e-2})


@pytest.mark.parametrize(
    'value, factors', [('depth', (4**-0.5, 4**-0.5)), ('block', (2**-0.5, 4**-0.5))]
)
def test_depth_scale(tiny, params, value, factors):
  """1 / sqrt(2 L) for L = 2, or 1 / sqrt(2 (i + 1)), of output and down alone."""
  found = initial(tiny({'init.depth_scale': value, 'model.depth': 2}), params)
  for i, factor in enumerate(factors):
    block, before = found[f'block_{i}'], params[f'block_{i}']
    for module, name in (('attention', 'output'), ('mlp', 'down')):
      np.testing.assert_allclose(block[module][name], before[module][name] * factor, rtol=1e-6)
    for name in ('query', 'key', 'value'):
      assert block['attention'][name] is before['attention'][name]
    assert block['mlp']['up'] is before['mlp']['up']
  assert all(found[name] is params[name] for name in ('embedding', 'head'))


def test_depth_scale_of_a_reparametrised_kernel(tiny, params):
  """The gain takes the factor, since the parameter's size has no effect (sigmaReparam)."""
  run = tiny({'init.depth_scale': 'depth', 'model.depth': 2, 'model.kernel': 'sigma_reparam'})
  mlp = params['block_1']['mlp'] | {'down_reparam': {'gain': np.float32(3)}}
  params['block_1'] = params['block_1'] | {'mlp': mlp}
  found = initial(run, params)['block_1']
  assert found['mlp']['down'] is mlp['down']
  assert found['mlp']['down_reparam']['gain'] == 1.5
  np.testing.assert_allclose(
      found['attention']['output'], params['block_1']['attention']['output'] / 2, rtol=1e-6
  )


def test_spectral_sphere(tiny, params):
  """MuonSphere starts with the spectral norm sqrt(fan out / fan in) to which updates return."""
  found = initial(tiny({'optimizer.name': 'muon_sphere'}), params)
  for block in ('block_0', 'block_1'):
    for module, kernels in params[block].items():
      for name, kernel in kernels.items():
        fan_in, fan_out = kernel.shape
        norm = (fan_out / fan_in) ** 0.5
        expected = kernel * (norm / np.linalg.norm(np.float64(kernel), 2))
        np.testing.assert_allclose(found[block][module][name], expected, rtol=1e-4)
  assert all(found[name] is params[name] for name in ('embedding', 'head'))


def test_deepnorm(tiny, params):
  """(8 L)^(-1/4) of all kernels but those of queries and keys, for L = 2."""
  found = initial(tiny({'model.norm_position': 'deepnorm', 'model.depth': 2}), params)
  scaled = {'value': 0.5, 'output': 0.5, 'up': 0.5, 'down': 0.5, 'query': 1, 'key': 1}
  for block in ('block_0', 'block_1'):
    for module, kernels in params[block].items():
      for name, kernel in kernels.items():
        np.testing.assert_allclose(found[block][module][name], kernel * scaled[name], rtol=1e-6)
  assert all(found[name] is params[name] for name in ('embedding', 'head'))
