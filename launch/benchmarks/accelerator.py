"""Speed of training on one accelerator, printed as a JSON object with the device's name.

  python -m launch.benchmarks.accelerator population|utilisation|probe_overhead ROUNDS

population      seconds of runs at width 256, as one population and one after another
utilisation     operations per second of bfloat16 training and of a large bfloat16 matrix product
probe_overhead  seconds of a run: bare steps, with all files, and with probes every 100 steps

The functions of this module run on any device and at any size.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from configs import base, benchmark
from launch.benchmarks import inputs
from launch.benchmarks.readings import Readings, in_turn
from stability import config as config_lib
from stability.config import Config
from stability.devices import cost

MEMBERS = 21  # runs of the population
STEPS = 200  # of each run
MATMUL_SIZE = 8192  # rows and columns of the matrices
VOCABULARY = 32_101  # the paper's
BATCH_SIZES = {'151M': 32, '1.2B': 8}  # of 512 tokens; they fit 80 GB without microbatches
TEXT_TOKENS = 2**22  # length of the random text


def main() -> None:
  """Runs the measurement that the arguments name."""
  what, rounds = sys.argv[1], int(sys.argv[2])
  if what == 'population':
    fields = {'model.width': 256, 'model.head_dim': 64}
    readings = population(inputs.resolve(benchmark.get_config(), fields), rounds)
  elif what == 'utilisation':
    readings = {name: utilisation(large(name), rounds) for name in BATCH_SIZES}
  else:
    from launch.benchmarks import probe_overhead

    c = base.get_config('gpu')
    c.schedule.steps = 2_000
    readings = probe_overhead.measure(c, rounds, probe_every=100)
  import jax

  print(json.dumps({'device': jax.local_devices()[0].device_kind, 'readings': readings}))


def large(name: str) -> Config:
  """The paper's config of a named size, in bfloat16 and with the batch size of BATCH_SIZES."""
  fields = {
      'model.dtype': 'bfloat16',
      'data.batch_size': BATCH_SIZES[name],
      'probe.every_steps': 0,
  }
  return inputs.resolve(base.get_config('paper'), config_lib.size(name) | fields)


def population(
    config: Config, rounds: int, members: int = MEMBERS, steps: int = STEPS
) -> Readings:
  """Seconds of `steps` steps of `members` runs, as one population and one after another."""
  together = _timer(config, members, members)
  alone = _timer(config, 1, members)
  contestants = {'together': lambda: together(steps), 'one by one': lambda: alone(steps)}
  return in_turn(contestants, rounds, warm_up=1)


def utilisation(
    config: Config,
    rounds: int,
    steps: int = 20,
    vocabulary_size: int = VOCABULARY,
    matmul_size: int = MATMUL_SIZE,
) -> Readings:
  """Operations per second of training one run, and of a square bfloat16 matrix product."""
  seconds = _timer(config, 1, 1, vocabulary_size)
  step_flops = cost.estimated_flops(config, vocabulary_size) / config['schedule']['steps']
  matmul = _matmul_speed(matmul_size)
  contestants = {
      'training': lambda: steps * step_flops / seconds(steps),
      'matmul': lambda: matmul(steps),
  }
  return in_turn(contestants, rounds, warm_up=1)


def _timer(
    config: Config, members: int, runs: int, vocabulary_size: int = 256
) -> Callable[[int], float]:
  """Returns a function: number of steps -> seconds that `runs` runs take, `members` at a time."""
  import jax

  from stability.devices.vmapped import VmappedLayout
  from stability.step import train_step

  static, hparams = config_lib.split(config)
  data = inputs.random_data(config, vocabulary_size, TEXT_TOKENS)
  programs = train_step.programs(static, vocabulary_size)
  example = train_step.arrays(hparams)
  layout = VmappedLayout(programs, data, example, jax.local_devices()[:1], members)
  rates = np.geomspace(1e-3, 1e-1, runs).tolist()
  states = [
      layout.init(train_step.arrays(hparams | {'optimizer.learning_rate': rate})) for rate in rates
  ]

  def seconds(steps: int) -> float:
    total = 0.0
    for first in range(0, runs, members):
      state = layout.empty()
      for slot, member in enumerate(states[first : first + members]):
        state = layout.insert(state, slot, member)
      state, metrics = layout.step(state, 'quiet', 1)  # moves everything to the device
      metrics.read()
      started = time.perf_counter()
      state, metrics = layout.step(state, 'quiet', steps)
      metrics.read()
      total += time.perf_counter() - started
    return total

  return seconds


def _matmul_speed(size: int) -> Callable[[int], float]:
  """Returns a function: number of square bfloat16 products -> operations per second."""
  import jax
  import jax.numpy as jnp

  a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
  scale = jnp.bfloat16(size**-0.5)
  products = jax.jit(lambda a, n: jax.lax.fori_loop(0, n, lambda _, b: scale * (a @ b), a))
  products(a, 1).block_until_ready()

  def speed(count: int) -> float:
    started = time.perf_counter()
    products(a, count).block_until_ready()
    return 2 * size**3 * count / (time.perf_counter() - started)

  return speed


if __name__ == '__main__':
  main()
