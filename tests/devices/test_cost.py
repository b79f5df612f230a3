"""The arithmetic of a sweep's cost."""

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
@pytest.mark.parametrize('depth', [0, 1, 3])
def test_flops_are_those_that_xla_counts_in_the_products(depth, gate):
  # Matrix products dominate at this width; XLA also counts norms, softmax and GELU.
  size = {'model.width': 256, 'model.head_dim': 64, 'model.depth': depth}
  config = resolved(**size, **{'model.attention_gate': gate})
  static, hyperparameters = config_lib.split(config)
  model = transformer_lib.Transformer(static.model, 256)
  inputs, numbers = jnp.zeros((16, 64), jnp.int32), train_step.arrays(hyperparameters)
  params = jax.eval_shape(model.init, jax.random.key(0), inputs, numbers)
  counted = jax.jit(model.apply).lower(params, inputs, numbers).compile().cost_analysis()['flops']
  forward = cost.train_flops(config, 256) / 3 / 500
  assert forward == pytest.approx(counted, rel=0.05)


def test_a_plan_counts_runs_and_executables():
  runs = hyper.expand(quickstart.get_config().to_dict(), quickstart.get_sweep())
  total = cost.plan(runs.configs, 256)
  assert (total.runs, total.populations, total.executables) == (42, 6, 24)
  assert total.tokens == 42 * cost.tokens(next(iter(runs.configs.values())))
  assert total.flops == sum(cost.train_flops(config, 256) for config in runs.configs.values())
  unprobed = hyper.expand(resolved(**{'probe.every_steps': 0}), hyper.sweep('seed', [0, 1]))
  assert cost.plan(unprobed.configs, 256).executables == 3
  sharp = hyper.expand(resolved(**{'probe.sharpness_every_steps': 40}), hyper.sweep('seed', [0]))
  assert cost.plan(sharp.configs, 256).executables == 5


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8, 42, 100])
def test_shares_are_of_like_work_and_compile_little_twice(count):
  configs = hyper.expand(quickstart.get_config().to_dict(), quickstart.get_sweep()).configs
  shares = cost.shares(configs, count)
  assert 1 <= len(shares) <= count and all(shares)
  assert sorted(name for share in shares for name in share) == sorted(configs)
  flops = {name: cost.train_flops(config) for name, config in configs.items()}
  mean, largest = sum(flops.values()) / count, max(flops.values())
  assert all(abs(sum(flops[name] for name in share) - mean) <= largest for share in shares)
  kinds = [len({config_lib.static_fields(configs[name]) for name in share}) for share in shares]
  assert sum(kinds) <= 6 + len(shares) - 1
  mixed = dict(sorted(configs.items(), key=lambda item: item[1]['optimizer']['learning_rate']))
  again = cost.shares(mixed, count)
  kinds = [len({config_lib.static_fields(configs[name]) for name in share}) for share in again]
  assert sum(kinds) <= 6 + len(again) - 1
