"""Where runs are placed, and the arithmetic of their memory."""

import pytest

from configs import base
from stability import config as config_lib
from stability import placement
from stability.errors import BadInput
from stability.placement import Placement

GB = 1e9


def resolved(scale='cpu', **changes):
  """base.py's config with these dotted fields, in which __ stands for the dot."""
  changed = {field.replace('__', '.'): value for field, value in changes.items()}
  flat = config_lib.flatten(base.get_config(scale).to_dict()) | changed
  return config_lib.unflatten(config_lib.resolve(flat))


def published(size, **changes):
  """A named size at the paper's batch, in bfloat16."""
  sizes = {field.replace('.', '__'): value for field, value in config_lib.size(size).items()}
  return resolved('paper', model__dtype='bfloat16', **sizes, **changes)


def choose(config, devices=1, memory=80 * GB, platform='gpu', runs=7):
  return placement.choose(config, devices, memory, platform, runs, 32_101)


# A row of seven learning rates: layout, members, microbatches; none needs remat.
ONE_DEVICE = {
    '9.2K': ('population', 2, 1),
    '37K': ('population', 1, 1),
    '83K': ('population', 1, 1),
    '147K': ('population', 1, 1),
    '332K': ('population', 1, 1),
    '590K': ('population', 1, 1),
    '2.4M': ('population', 1, 1),
    '9.4M': ('population', 1, 1),
    '19M': ('population', 1, 1),
    '42M': ('population', 1, 2),
    '85M': ('population', 1, 2),
    '151M': ('population', 1, 4),
    '302M': ('population', 1, 8),
    '1.2B': ('population', 1, 16),
    '4.8B': None,
}
EIGHT_DEVICES = dict.fromkeys(config_lib.SIZES, ('data_parallel', 1, 1)) | {
    '9.2K': ('population', 1, 1),  # two would fit on a device, seven devices hold one each
    '1.2B': ('data_parallel', 1, 2),
    '4.8B': ('sharded', 1, 4),
}


@pytest.mark.parametrize('size', config_lib.SIZES)
@pytest.mark.parametrize('devices, table', [(1, ONE_DEVICE), (8, EIGHT_DEVICES)])
def test_every_size_of_the_paper(size, devices, table):
  config = published(size)
  if table[size] is None:
    with pytest.raises(BadInput, match=r'does not fit: it needs 10\d\.\d GB.*are 1 x 80\.0 GB'):
      choose(config, devices)
    return
  found = choose(config, devices)
  assert found == Placement(*table[size], 'none')
  needed = placement.memory(config, found, devices, 32_101).total
  assert needed <= 0.9 * 80 * GB
