"""Budgets: what is understood."""

import pytest

from launch.common import budget
from stability.devices import targets
from stability.errors import BadInput


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('cpu:2h', {'core_hours': 2.0}),
        ('cpu:90m', {'core_hours': 1.5}),
        ('cpu:0.5d', {'core_hours': 12.0}),
        ('1e18', {'flops': 1e18}),
        ('8xh100:10h', {'kind': 'h100', 'devices': 8, 'hours': 10.0}),
        ('v5e:1d', {'kind': 'v5e', 'devices': 1, 'hours': 24.0}),
    ],
)
def test_parse(text, expected):
  assert budget.parse(text) == budget.Budget(text, **expected)


@pytest.mark.parametrize(
    'text',
    [
        *('', 'cpu', 'cpu:', 'cpu:2', 'cpu:h', 'cpu:0h', 'cpu:-1h', 'cpu:1.2.3h', 'cpu:2h ', '2h'),
        *('0', '-1', 'inf', 'nan', '0xh100:1h', 'xh100:1h', '8xb200:1h', '8x:1h', ':1h'),
        '8xcpu:1h',
    ],
)
def test_parse_refuses(text):
  with pytest.raises(BadInput, match=r'^--budget=.*: must be cpu:2h .* 8xh100:10h .* FLOPs such'):
    budget.parse(text)


def test_machine():
  machine = budget.parse('8xh100:10h').machine('bfloat16', 'highest')
  assert machine.devices == 8 and machine.flops_per_second == 989e12
  assert machine.flops_per_second > budget.parse('h100:1h').machine(
      'float32', 'highest'
  ).flops_per_second


def test_runs_get_the_share_of_a_gpus_memory_that_jax_takes(monkeypatch):
  monkeypatch.delenv('XLA_CLIENT_MEM_FRACTION', raising=False)
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  gpus, tpus = (
      budget.parse(f'8x{kind}:10h').machine('bfloat16', 'highest').memory_bytes
      for kind in ('h100', 'v5e')
  )
  assert gpus == 0.75 * targets.TARGETS['h100'].memory_bytes
  assert tpus == targets.TARGETS['v5e'].memory_bytes
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
  more = budget.parse('8xh100:10h').machine('bfloat16', 'highest').memory_bytes
  assert more == 0.9 * targets.TARGETS['h100'].memory_bytes
