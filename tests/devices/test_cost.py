"""The cost of a sweep."""

import jax
import jax.numpy as jnp
import pytest

from configs import base, quickstart
from stability import config as config_lib
from stability import hyper
from stability.devices import cost
from stability.model import transformer as transformer_lib
from stability.step import train_step


def resolved(**fields):
  flat = config_lib.resolve(config_lib.flatten(base.get_config().to_dict()) | fields)
  return config_lib.unflatten(flat)


def test_tokens():
  assert cost.tokens(resolved()) == 500 * 16 * 64


@pytest.mark.parametrize('gate', ['none', 'sigmoid'])
@pytest.mark.parametrize('depth', [0, 1, pytest.param(3, marks=pytest.mark.slow)])
def test_flops_against_xla(depth, gate):
  # Matrix products dominate at this width; XLA also counts norms, softmax and GELU.
  size = {'model.width': 256, 'model.head_dim': 64, 'model.depth': depth}
  config = resolved(**size, **{'model.attention_gate': gate})
  static, hparams = config_lib.split(config)
  model = transformer_lib.Transformer(static.model, 256)
  inputs, numbers = jnp.zeros((16, 64), jnp.int32), train_step.arrays(hparams)
  params = jax.eval_shape(model.init, jax.random.key(0), inputs, numbers)
  counted = jax.jit(model.apply).lower(params, inputs, numbers).compile().cost_analysis()['flops']
  forward = cost.train_flops(config, 256) / 3 / 500
  assert forward == pytest.approx(counted, rel=0.05)


def quickstart_runs():
  return hyper.expand(quickstart.get_config().to_dict(), quickstart.get_sweep()).configs


def test_plan():
  configs = quickstart_runs()
  total = cost.plan(cost.groups(configs, 256))
  assert (total.runs, total.populations, total.executables) == (42, 6, 24)
  assert total.tokens == 42 * cost.tokens(next(iter(configs.values())))
  each = [cost.train_flops(config, 256) for config in configs.values()]
  assert total.flops == pytest.approx(sum(each))


@pytest.mark.parametrize('field, executables', [('every_steps', 3), ('sharpness_every_steps', 5)])
def test_executables(field, executables):
  config = resolved(**{f'probe.{field}': 0 if field == 'every_steps' else 40})
  configs = hyper.expand(config, hyper.sweep('seed', [0, 1])).configs
  assert cost.plan(cost.groups(configs, 256)).executables == executables


def test_runs_of_different_lengths():
  configs = hyper.expand(resolved(), hyper.sweep('schedule.steps', [100, 300])).configs
  (group,) = cost.groups(configs, 256)
  assert group.flops == sum(cost.train_flops(config, 256) for config in configs.values())


def test_no_runs():
  assert cost.plan(cost.groups({}, 256)) == cost.Plan(0, 0, 0, 0, 0)


@pytest.mark.parametrize(('layout', 'used'), [('single', 1), ('population', 4), ('sharded', 8)])
def test_hours_count_the_devices_that_a_layout_uses(layout, used):
  """Four runs on a machine with eight devices."""
  configs = hyper.expand(resolved(**{'parallel.layout': layout}), hyper.sweep('seed', range(4)))
  (group,) = cost.groups(configs.configs, 256)
  machine = cost.Machine(8, memory_bytes=8e10, flops_per_second=1e12, utilisation=0.5)
  assert cost.place(group, machine, 256).hours == pytest.approx(group.flops / used / 5e11 / 3600)


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8, 42, 100])
def test_shares(count):
  """Shares have similar work, and runs with the same executables are mostly together."""
  configs = quickstart_runs()
  shares = cost.shares(configs, count)
  assert 1 <= len(shares) <= count and all(shares)
  assert sorted(name for share in shares for name in share) == sorted(configs)
  flops = {name: cost.estimated_flops(config) for name, config in configs.items()}
  mean, largest = sum(flops.values()) / count, max(flops.values())
  assert all(abs(sum(flops[name] for name in share) - mean) <= largest for share in shares)
  kinds = [len({config_lib.static_fields(configs[name]) for name in share}) for share in shares]
  assert sum(kinds) <= 6 + len(shares) - 1
  mixed = dict(sorted(configs.items(), key=lambda item: item[1]['optimizer']['learning_rate']))
  again = cost.shares(mixed, count)
  kinds = [len({config_lib.static_fields(configs[name]) for name in share}) for share in again]
  assert sum(kinds) <= 6 + len(again) - 1
