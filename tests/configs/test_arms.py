"""configs/arms.py: all arms are valid, differ, and together have the variants of every table."""

import pytest

from configs import arms, grid
from stability import config as config_lib
from stability import hyper, variants
from stability.errors import BadInput
from stability.optim import evaluation  # noqa: F401  its table
from stability.step import train_step  # noqa: F401  the other tables
from stability.storage import reuse

CATEGORIES = tuple(arms.PLACES.values())
# Variants that are experiments of their own, or that need others.
ELSEWHERE = {
    'model.qk_norm': {'fixed'},
    'model.attention': {'squared_relu'},
    'model.v_norm': {'rmsnorm'},
    'parameterization.name': {'muparam_intermediate', 'muparam_full', 'ntk', 'mup', 'mean_field'},
    'optimizer.learning_rate_scale': {'parameter_rms'},
    # Of fine-tuning.
    'adapter.kind': {'lora', 'dora', 'houlsby', 'ia3', 'prompt', 'norms'},
    'adapter.scale': {'sqrt_rank'},
    'adapter.init': {'pissa'},
    'adapter.matrices': {'attention', 'mlp', 'query_value'},
}


def test_enough_of_each_kind():
  assert len(arms.ARMS) == 1 + sum(map(len, CATEGORIES)) >= 50
  assert min(map(len, CATEGORIES)) >= 6


@pytest.mark.parametrize('scale', ['cpu', 'night', 'gpu', 'paper'])
def test_arms_differ(scale):
  """In more than their names; at paper scale, bfloat16 activations are the baseline's."""
  runs = hyper.expand(grid.get_config(scale).to_dict(), arms.points(scale)).configs.values()
  assert len(runs) == 7 * len(arms.ARMS)
  distinct = {reuse.key(config) for config in runs}
  assert len(runs) - len(distinct) == (7 if scale == 'paper' else 0)


def test_windows():
  points = arms.points('cpu', ['AdamW', 'Lion'])
  rates = [point['optimizer.learning_rate'] for point in points]
  assert rates[:7] == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]
  assert rates[7:] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
  floors = [point.get('schedule.min_learning_rate', 1e-5) for point in points]
  assert floors == [1e-5] * 7 + [1e-6] * 7  # as far below the window
  assert grid.get_config('paper').schedule.min_learning_rate == 1e-5
  assert set(arms.SHIFTS) <= set(arms.ARMS)


def test_floor_of_windows_far_below():
  """Of WeSaR and Lion together, five half decades below; none wraps around the list of rates."""
  assert grid.schedule_floor(-5) == {'schedule.min_learning_rate': 3e-8}
  with pytest.raises(BadInput, match='not all in grid'):
    grid.schedule_floor(-9)


def test_every_variant_is_in_an_arm():
  tables = [t for t in variants.TABLES.values() if isinstance(t, variants.Choices)]
  base = config_lib.flatten(grid.get_config().to_dict())
  for table in tables:
    tried = {fields.get(table.option, base[table.option]) for fields in arms.ARMS.values()}
    assert set(table) - tried == ELSEWHERE.get(table.option, set()), table.option


def test_every_term_is_in_an_arm():
  """Each switch that turns a term on, other than those of a choice."""
  tables = [t for t in variants.TABLES.values() if isinstance(t, variants.Terms)]
  wanted = {t.when.partition('=')[0] for table in tables for t in table if t.when}
  used = {field for fields in arms.ARMS.values() for field in fields}
  probes = {'probe.stable_rank', 'probe.qk_spectral_entropy'}
  assert wanted - used == {'objective.router_z_loss', *probes}
