"""The table of regimes names scales and sizes that exist."""

from configs import grid
from stability import config as config_lib
from stability.analysis import regimes


def test_regimes():
  assert [regime.scale for regime in regimes.REGIMES] == ['paper', 'gpu', 'night', 'cpu']
  lengths = [grid.get_config(regime.scale).schedule.steps for regime in regimes.REGIMES]
  assert lengths[0] > max(lengths[1:]) and lengths[2] > lengths[3]
  for regime in regimes.REGIMES:
    parameters = [
        config_lib.parameters(config_lib.unflatten(config_lib.size(size))) for size in regime.sizes
    ]
    assert parameters == sorted(set(parameters)) and len(parameters) >= 3
    assert regime.says and regime.rests_on
