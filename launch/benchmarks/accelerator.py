"""What the engine makes of one accelerator, printed as a JSON object.

  python -m launch.benchmarks.accelerator population|utilisation|looking ROUNDS

population   seconds of a row of runs at width 256, as one population and one after another
utilisation  operations per second of bfloat16 training and of a large bfloat16 product
looking      seconds of a run: bare steps, its loop with all files, and probes every 100 steps

The device is named beside the readings. The functions run on any device, at any size.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from configs import base
from configs import benchmark as setup
from stability import config as config_lib
from stability.devices import cost

MEMBERS = 21
STEPS = 200
MATMUL = 8192
VOCABULARY = 32_101  # the paper's
BATCHES = {'151M': 32, '1.2B': 8}  # sequences of 512 that one 80 GB device holds in one piece

Readings = dict[str, list[float]]


def main() -> None:
  """Measures what the arguments say."""
  what, rounds = sys.argv[1], int(sys.argv[2])
  if what == 'population':
    found = population(resolved('cpu', {'model.width': 256, 'model.head_dim': 64}), rounds)
  elif what == 'utilisation':
    found = {name: utilisation(large(name), rounds) for name in BATCHES}
  else:
    from launch.benchmarks import probe_overhead

    c = base.get_config('gpu')
    c.schedule.steps = 2_000
    found = probe_overhead.measure(c, rounds, probe_every=100)
  import jax

  print(json.dumps({'device': jax.local_devices()[0].device_kind, 'readings': found}))


def resolved(scale: str, fields: Mapping[str, Any]) -> config_lib.Config:
  """The config of launch.benchmark (cpu) or of configs/base.py with these fields."""
  c = setup.get_config() if scale == 'cpu' else base.get_config(scale)
  return config_lib.unflatten(config_lib.resolve(config_lib.flatten(c.to_dict()) | dict(fields)))


def large(name: str) -> config_lib.Config:
  """A named size in bfloat16, as the paper's but for the sequences a step."""
  fields = {'model.dtype': 'bfloat16', 'data.batch_size': BATCHES[name]}
  return resolved('paper', config_lib.size(name) | fields | {'probe.every_steps': 0})


def population(
    config: config_lib.Config, rounds: int, members: int = MEMBERS, steps: int = STEPS
) -> Readings:
  """Seconds of `steps` steps of `members` runs, in one population and in turn."""
  together = _loaded(config, members, members)
  alone = _loaded(config, 1, members)
  return _in_turn({'together': lambda: together(steps), 'one by one': lambda: alone(steps)}, rounds)


def utilisation(
    config: config_lib.Config,
    rounds: int,
    steps: int = 20,
    vocabulary_size: int = VOCABULARY,
    matmul: int = MATMUL,
) -> Readings:
  """Operations per second of one run, and of a square product of bfloat16 numbers."""
  run = _loaded(config, 1, 1, vocabulary_size)
  flops = cost.estimated_flops(config, vocabulary_size) / config['schedule']['steps']
  product = _matmul(matmul)
  return _in_turn(
      {'training': lambda: steps * flops / run(steps), 'matmul': lambda: product(steps)}, rounds
  )


def _loaded(
    config: config_lib.Config, members: int, runs: int, vocabulary_size: int = 256
) -> Callable[[int], float]:
  """A function of steps: seconds that `runs` runs take for them, `members` at a time."""
  import jax

  from stability.devices.vmapped import VmappedLayout
  from stability.step import train_step

  static, hyper = config_lib.split(config)
  d = static.data
  rng = np.random.default_rng(0)
  data = {
      'text': rng.integers(0, vocabulary_size, 2**22, np.uint16),
      'validation': rng.integers(
          0, vocabulary_size, (1, d.batch_size, d.sequence_length + 1), np.uint16
      ),
  }
  example = train_step.arrays(hyper)
  programs = train_step.programs(static, vocabulary_size)
  layout = VmappedLayout(programs, data, example, jax.local_devices()[:1], members)
  rates = np.geomspace(1e-3, 1e-1, runs).tolist()
  inits = [
      layout.init(train_step.arrays(hyper | {'optimizer.learning_rate': rate})) for rate in rates
  ]

  def seconds(steps: int) -> float:
    total = 0.0
    for first in range(0, runs, members):
      state = layout.empty()
      for slot, member in enumerate(inits[first : first + members]):
        state = layout.insert(state, slot, member)
      state, fetch = layout.step(state, 'quiet', 1)  # everything is on the device
      fetch.read()
      begun = time.perf_counter()
      state, fetch = layout.step(state, 'quiet', steps)
      fetch.read()
      total += time.perf_counter() - begun
    return total

  return seconds


def _matmul(size: int) -> Callable[[int], float]:
  """A function of repetitions: operations per second of square bfloat16 products."""
  import jax
  import jax.numpy as jnp

  a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
  scale = jnp.bfloat16(size**-0.5)
  times = jax.jit(lambda a, n: jax.lax.fori_loop(0, n, lambda _, b: scale * (a @ b), a))
  times(a, 1).block_until_ready()

  def speed(repeats: int) -> float:
    begun = time.perf_counter()
    times(a, repeats).block_until_ready()
    return 2 * size**3 * repeats / (time.perf_counter() - begun)

  return speed


def _in_turn(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Readings:
  """`rounds` readings of each, one after another in each round, after one that is not counted."""
  readings: Readings = {name: [] for name in contestants}
  for number in range(rounds + 1):
    for name, measure in contestants.items():
      reading = measure()
      if number:
        readings[name].append(reading)
  return readings


if __name__ == '__main__':
  main()
