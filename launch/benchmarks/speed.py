"""Speeds of one process on its cores, printed as a JSON object.

  python -m launch.benchmarks.speed ours WIDTH SECONDS CORES
  python -m launch.benchmarks.speed torch WIDTH SECONDS CORES    tokens per second
  python -m launch.benchmarks.speed matmul SIZE SECONDS CORES    float32 operations per second

Started with others, it waits for a line on its input before it measures, so that all run at once.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs import benchmark
from launch.common import environment
from stability import config as config_lib

BLOCK = 20  # steps between looks at the clock


def timed(block: Callable[[], None], seconds: float) -> float:
  """Blocks per second, after one to warm up, once a line on the input says go."""
  block()
  print('ready', flush=True)
  sys.stdin.readline()
  begun, blocks = time.perf_counter(), 0
  while time.perf_counter() - begun < seconds:
    block()
    blocks += 1
  return blocks / (time.perf_counter() - begun)


def fields(width: int) -> dict:
  """The benchmark's config at a width, by dotted field."""
  c = benchmark.get_config()
  c.model.width = width
  c.schedule.steps = 10**6
  return config_lib.resolve(config_lib.flatten(c.to_dict()))


def ours(width: int, seconds: float) -> float:
  """Training tokens per second of the single layout."""
  from stability.devices.single_device import SingleDeviceLayout
  from stability.step import train_step

  flat = fields(width)
  static, hparams = config_lib.split(config_lib.unflatten(flat))
  rng = np.random.default_rng(0)
  data = {
      'text': rng.integers(0, 256, 2**20, np.uint8),
      'validation': rng.integers(0, 256, (1, 16, 65), np.uint8),
  }
  programs = train_step.programs(static, 256)
  layout = SingleDeviceLayout(programs, data, train_step.arrays(hparams))
  state = layout.insert(layout.empty(), 0, layout.init(train_step.arrays(hparams)))

  def block() -> None:
    nonlocal state
    state, fetch = layout.step(state, 'quiet', BLOCK)
    fetch.read()

  return timed(block, seconds) * BLOCK * _tokens(flat)


def torch(width: int, seconds: float, threads: int) -> float:
  """Training tokens per second of the tests' PyTorch model under PyTorch's own fused AdamW."""
  import torch

  torch.set_num_threads(threads)
  path = Path(__file__).parents[2] / 'tests' / 'helpers' / 'reference_torch.py'
  spec = importlib.util.spec_from_file_location('reference_torch', path)
  reference = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(reference)
  flat = fields(width)
  model = reference.Transformer(flat, 256)
  optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)
  shape = (flat['data.batch_size'], flat['data.sequence_length'] + 1)
  batch = torch.randint(0, 256, shape)

  def block() -> None:
    for _ in range(BLOCK):
      loss, _ = reference.objective(flat, model(batch[:, :-1]), batch[:, 1:], model.head)
      optimizer.zero_grad()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()

  return timed(block, seconds) * BLOCK * _tokens(flat)


def matmul(size: int, seconds: float) -> float:
  """Float32 operations per second of a large square product."""
  import jax

  x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
  product = jax.jit(lambda a, b: a @ b)
  a = jax.device_put(x)
  return timed(lambda: product(a, a).block_until_ready(), seconds) * 2 * size**3


def _tokens(flat: dict) -> int:
  return flat['data.batch_size'] * flat['data.sequence_length']


def main() -> None:
  """Measures what the arguments say."""
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
