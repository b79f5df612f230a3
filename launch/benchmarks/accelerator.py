"""Speed of training on one accelerator, printed as a JSON object with the device's name.

  python -m launch.benchmarks.accelerator MEASUREMENT ROUNDS

numerics        errors against the CPU, and differences between equal runs
population      seconds of runs at width 256, as one population and one after another
utilisation     operations per second of bfloat16 training and of a large bfloat16 matrix product
torch           tokens per second of PyTorch's model with torch.compile, in bfloat16
probe_overhead  seconds of a run: bare steps, with all files, and with probes every 100 steps
estimates       seconds of a step, measured and as `launch.sweep --analyze --target` estimates them

The functions of this module run on any device and at any size.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

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
TORCH_SIZE = '151M'
BATCH_SIZES = {'151M': 32, '1.2B': 8}  # of 512 tokens; they fit 80 GB without microbatches
TEXT_TOKENS = 2**22  # length of the random text


def main() -> None:
  """Runs the measurement that the arguments name."""
  what, rounds = sys.argv[1], int(sys.argv[2])
  if what == 'numerics':
    print(json.dumps(_numerics()))
    return
  if what == 'torch':
    print(json.dumps(torch_throughput(large(TORCH_SIZE), rounds)))
    return
  if what == 'population':
    readings = population(_small(), rounds)
  elif what == 'utilisation':
    readings = {name: utilisation(large(name), rounds) for name in BATCH_SIZES}
  elif what == 'estimates':
    readings = estimates({'21 runs of 2.4M': _small(), '151M': large('151M')}, rounds)
  else:
    from launch.benchmarks import probe_overhead

    c = base.get_config('gpu')
    c.schedule.steps = 2_000
    readings = probe_overhead.measure(c, rounds, probe_every=100)
  import jax

  print(json.dumps({'device': jax.local_devices()[0].device_kind, 'readings': readings}))


def _numerics() -> dict[str, Any]:
  import jax

  from launch.benchmarks import numerics

  device, errors = jax.local_devices()[0], {}
  for dtype in ('float32', 'bfloat16'):
    fields = {'model.dtype': dtype, 'data.batch_size': 8, 'probe.every_steps': 0}
    errors[dtype] = numerics.errors(inputs.resolve(base.get_config('gpu'), fields), device)
  repeats = numerics.repeats(_small(), members=7, steps=20)
  return {'device': device.device_kind, 'errors': errors, 'repeats': repeats}


def _small() -> Config:
  """The config of the runs of the population."""
  fields = {'model.width': 256, 'model.head_dim': 64, 'probe.every_steps': 0}
  return inputs.resolve(benchmark.get_config(), fields)


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


def estimates(configs: Mapping[str, Config], rounds: int) -> dict[str, dict[str, float]]:
  """Seconds of a quiet step of each config, measured and estimated; empty for unknown devices."""
  import jax

  from launch.common import target_analysis
  from stability.devices import targets

  found = targets.of_gpu(jax.local_devices()[0].device_kind)
  readings = {}
  for name, config in configs.items() if found else ():
    members = MEMBERS if config['model']['dtype'] == 'float32' else 1
    runs = {
        str(seed): config | {'seed': seed, 'parallel': config['parallel'] | {'members': members}}
        for seed in range(members)
    }
    groups = cost.groups(runs, VOCABULARY)
    (analysis,) = target_analysis.analyze(groups, VOCABULARY, found, lambda *_: None)
    members = analysis.placement.members
    seconds = _timer(config, members, members, VOCABULARY)
    seconds(20)
    readings[name] = {
        'measured': statistics.median(seconds(20) for _ in range(rounds)) / 20,
        'estimated': analysis.seconds['quiet'],
    }
  return readings


def torch_throughput(config: Config, rounds: int, steps: int = 20) -> dict[str, Any]:
  """Training tokens per second of the tests' PyTorch model on a GPU, compiled, in bfloat16."""
  import torch

  from launch.benchmarks import speed

  device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
  reference = speed.reference_model()
  flat, data = config_lib.flatten(config), config['data']
  model = reference.Transformer(flat, VOCABULARY).to(device)
  compiled = torch.compile(model) if device.type == 'cuda' else model
  optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)
  shape = data['batch_size'], data['sequence_length'] + 1
  batch = torch.randint(0, VOCABULARY, shape, device=device)

  def seconds() -> float:
    started = time.perf_counter()
    for _ in range(steps):
      with torch.autocast(device.type, torch.bfloat16):
        logits = compiled(batch[:, :-1])
      loss, _ = reference.objective(flat, logits.float(), batch[:, 1:], model.head)
      optimizer.zero_grad()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
    loss.item()  # waits for the device
    return time.perf_counter() - started

  seconds()
  tokens = steps * data['batch_size'] * data['sequence_length']
  return {'readings': {'torch': [tokens / seconds() for _ in range(rounds)]}}


def _timer(
    config: Config, members: int, runs: int, vocabulary_size: int = 256
) -> Callable[[int], float]:
  """Returns a function: number of steps -> seconds that `runs` runs take, `members` at a time."""
  import jax

  from stability.devices import make_layout
  from stability.devices.vmapped import VmappedLayout
  from stability.step import train_step

  static, hparams = config_lib.split(config)
  data = inputs.random_data(config, vocabulary_size, TEXT_TOKENS)
  fused = make_layout.has_cudnn(jax.local_devices()[0])
  programs = train_step.programs(static, vocabulary_size, fused=fused)
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
