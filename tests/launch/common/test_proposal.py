"""Sweeps proposed from a target and a budget."""

import pytest

from configs import grid
from launch.common import app, budget, proposal
from stability.analysis import regimes
from stability.errors import BadInput


def propose(target: float, text: str, arms=None) -> proposal.Proposal:
  return proposal.propose(target, budget.parse(text), arms)


@pytest.mark.parametrize(
    ('text', 'scale', 'sizes'),
    [
        # The numbers are those of the formula at CORE_FLOPS.
        ('cpu:12m', 'cpu', ('9.2K', '37K', '147K')),
        ('cpu:2h', 'cpu', ('9.2K', '37K', '147K', '590K')),
        ('cpu:1d', 'night', ('9.2K', '37K', '147K', '590K')),
    ],
)
def test_regime_and_sizes(text, scale, sizes):
  """The longest regime that fits."""
  found = propose(9.4e6, text)
  assert (found.regime.scale, found.sizes) == (scale, sizes)
  total = sum(each.amount for each in found.costs)
  assert total <= found.budget.core_hours
  assert f'{sum(each.runs for each in found.costs)} runs' in ' '.join(found.sentences())


def test_reach_comes_before_trust():
  """A regime that stays far below the target gives way to one that comes nearer."""
  three_sizes = sum(each.flops for each in propose(1e9, '1e30').costs[:3]) / 3  # of 3 seeds
  near, far = (propose(target, f'{1.01 * three_sizes}') for target in (8e7, 4e10))
  assert (near.regime.scale, near.sizes) == ('paper', ('2.4M', '9.4M', '19M'))
  assert (far.regime.scale, far.sizes[-1]) == ('gpu', '1.2B')


def test_seeds_take_what_remains():
  one, three = propose(590e3 * 4, 'cpu:50m'), propose(590e3 * 4, 'cpu:110m')
  assert one.sizes == three.sizes and one.regime is three.regime
  assert (one.seeds, three.seeds) == (1, 3)
  assert three.costs[0].runs == 3 * one.costs[0].runs == 3 * 14


def test_sizes_are_far_below_the_target():
  assert propose(147456 * 4, '1e20').sizes == ('9.2K', '37K', '147K')


@pytest.mark.parametrize(
    ('target', 'text', 'arms', 'said'),
    [
        (7e9, 'cpu:1m', None, '--budget=cpu:1m: too small: 9.2K, 37K, 147K at cpu scale take'),
        (7e9, '1e9', None, r'--budget=1e9: too small: .* take .* FLOPs'),
        (1e5, '1e20', None, '--target=100K: too small for proxies: must be at least 590K'),
        (7e9, '1e20', ['nothing'], '--arms=nothing: must be arms of configs/arms.py'),
    ],
)
def test_refused(target, text, arms, said):
  with pytest.raises(BadInput, match=f'^{said}'):
    propose(target, text, arms)


@pytest.mark.parametrize('arms', [None, ['Lion']])
def test_config_file(arms, tmp_path):
  """The written file describes the runs that were counted."""
  found = propose(9.4e6, 'cpu:2h', arms)
  path = tmp_path / 'my.py'
  found.write(path)
  sweep = app.load(str(path), {}, seeds=found.seeds)
  assert sweep.scale == found.regime.scale == 'cpu'
  assert len(sweep.runs.configs) == sum(each.runs for each in found.costs)
  config = next(iter(sweep.runs.configs.values()))
  assert config['schedule']['steps'] == grid.get_config('cpu').schedule.steps
  assert max(map(len, path.read_text().splitlines())) <= 100
  if arms:
    assert {c['arm'] for c in sweep.runs.configs.values()} == {'AdamW', 'Lion'}


@pytest.mark.slow
def test_accelerators():
  """Hours are those of the planner: twice the devices halve them at most."""
  one, two = (propose(8e7, f'{devices}xh100:200h') for devices in (1, 2))
  assert one.regime.scale == two.regime.scale == 'paper' and one.unit == 'hours'
  assert one.seeds == two.seeds == 3
  for alone, shared in zip(one.costs, two.costs, strict=True):
    assert 0.49 * alone.amount <= shared.amount < 0.7 * alone.amount


def test_distance_is_said():
  text = ' '.join(propose(7e12, 'cpu:2h').sentences())
  assert f'No prediction over more than {regimes.MAX_DISTANCE} times has been tested' in text
  assert 'No prediction' not in ' '.join(propose(9.4e6, 'cpu:2h').sentences())
