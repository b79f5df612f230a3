"""Speed of one process on its cores, printed as a JSON object.

  python -m launch.benchmarks.speed ours WIDTH SECONDS CORES     tokens per second
  python -m launch.benchmarks.speed torch WIDTH SECONDS CORES    tokens per second
  python -m launch.benchmarks.speed matmul SIZE SECONDS CORES    float32 operations per second

Before measuring, it waits for a line on standard input, so that several processes can start at
once.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from configs import benchmark
from launch.benchmarks import inputs
from launch.common import environment
from stability import config as config_lib
from stability.config import Config

BLOCK = 20  # number of steps between readings of the clock
VOCABULARY = 256
TEXT_TOKENS = 2**20  # length of the random text


def timed(block: Callable[[], Any], seconds: float) -> float:
  """Blocks per second, measured after a warm-up block and a line on standard input."""
  block()
  print('ready', flush=True)
  sys.stdin.readline()
  started, blocks = time.perf_counter(), 0
  while time.perf_counter() - started < seconds:
    block()
    blocks += 1
  return blocks / (time.perf_counter() - started)


def benchmark_config(width: int) -> Config:
  """The benchmark's config at a model width."""
  return inputs.resolve(
      benchmark.get_config(), {'model.width': width, 'schedule.steps': 10**6}
  )


def ours(width: int, seconds: float) -> float:
  """Training tokens per second on one CPU device."""
  from stability.devices.single_device import SingleDeviceLayout
  from stability.step import train_step

  config = benchmark_config(width)
  static, hparams = config_lib.split(config)
  data = inputs.random_data(config, VOCABULARY, TEXT_TOKENS)
  programs = train_step.programs(static, VOCABULARY)
  layout = SingleDeviceLayout(programs, data, train_step.arrays(hparams))
  state = layout.insert(layout.empty(), 0, layout.init(train_step.arrays(hparams)))

  def block() -> None:
    nonlocal state
    state, metrics = layout.step(state, 'quiet', BLOCK)
    metrics.read()

  return timed(block, seconds) * BLOCK * _batch_tokens(config)


def torch(width: int, seconds: float, threads: int) -> float:
  """Training tokens per second of the tests' PyTorch model with PyTorch's fused AdamW."""
  import torch

  torch.set_num_threads(threads)
  reference = reference_model()
  config = benchmark_config(width)
  flat = config_lib.flatten(config)
  model = reference.Transformer(flat, VOCABULARY)
  optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)
  shape = flat['data.batch_size'], flat['data.sequence_length'] + 1
  batch = torch.randint(0, VOCABULARY, shape)

  def block() -> None:
    for _ in range(BLOCK):
      loss, _ = reference.objective(flat, model(batch[:, :-1]), batch[:, 1:], model.head)
      optimizer.zero_grad()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()

  return timed(block, seconds) * BLOCK * _batch_tokens(config)


def reference_model() -> ModuleType:
  """The tests' model and objective in PyTorch, a module."""
  path = Path(__file__).parents[2] / 'tests' / 'helpers' / 'reference_torch.py'
  spec = importlib.util.spec_from_file_location('reference_torch', path)
  reference = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(reference)
  return reference


def matmul(size: int, seconds: float) -> float:
  """Float32 operations per second of a large square matrix product."""
  import jax

  x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
  product = jax.jit(lambda a, b: a @ b)
  a = jax.device_put(x)
  return timed(lambda: product(a, a).block_until_ready(), seconds) * 2 * size**3


def _batch_tokens(config: Config) -> int:
  return config['data']['batch_size'] * config['data']['sequence_length']


def main() -> None:
  """Runs the measurement that the arguments name."""
  what, size, seconds, cores = sys.argv[1:]
  pinned = [int(core) for core in cores.split(',')]
  environment.pin(pinned)
  if what == 'torch':
    speed = torch(int(size), float(seconds), len(pinned))
  else:
    speed = {'ours': ours, 'matmul': matmul}[what](int(size), float(seconds))
  print(json.dumps({'speed': speed}), flush=True)


if __name__ == '__main__':
  main()
