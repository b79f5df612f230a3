"""Cost of the arms of configs/arms.py over the baseline, as a CSV file.

  python -m launch.benchmarks.arms FILE.csv CORE

Arm and baseline take turns in one process on one core, a block of steps each. Columns:

  arm, width
  seconds           median over rounds of the ratio of the times of a quiet step
  low, high         the smallest and the largest ratio
  bytes             ratio of the memory of the largest program, by XLA
  in_population     of arms that act periodically: as seconds, for MEMBERS runs as one population,
                    where a condition takes both of its branches
"""

import csv
import functools
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from configs import arms, benchmark
from launch.benchmarks import inputs
from launch.benchmarks.readings import in_turn
from launch.common import environment
from stability import config as config_lib
from stability.storage import files

STEPS = {32: 10, 128: 4}  # by width, in a block
PERIODIC = ('SOAP', 'SPAM')
MEMBERS = 4
ROUNDS = 9
VOCABULARY = 256
COLUMNS = ('arm', 'width', 'seconds', 'low', 'high', 'bytes', 'in_population')


def main() -> None:
  """Measures the arms that the file lacks, and adds a row after each."""
  file, core = sys.argv[1:]
  os.environ.update(environment.worker_environment())
  environment.pin([int(core)])
  path = Path(file)
  rows = list(csv.DictReader(path.open())) if path.exists() else []
  known = {(row['arm'], int(row['width'])) for row in rows}
  for width in STEPS:
    for name in arms.ARMS:
      if name != arms.BASELINE and (name, width) not in known:
        rows.append({'arm': name, 'width': width, **measure(name, width)})
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        files.write_atomic(path, text.getvalue())


def measure(name: str, width: int) -> dict[str, str]:
  """The cells of an arm at a width, as ratios to the baseline."""
  (ours, our_bytes), (base, base_bytes) = (_timer(arm, width, 1) for arm in (name, arms.BASELINE))
  ratios = _ratios(ours, base)
  found = {
      'seconds': f'{statistics.median(ratios):.3f}',
      'low': f'{min(ratios):.3f}',
      'high': f'{max(ratios):.3f}',
      'bytes': f'{our_bytes / base_bytes:.3f}',
      'in_population': '',
  }
  if name in PERIODIC:
    pair = [_timer(arm, width, MEMBERS)[0] for arm in (name, arms.BASELINE)]
    found['in_population'] = f'{statistics.median(_ratios(*pair)):.3f}'
  return found


def _ratios(ours: Callable[[], float], base: Callable[[], float]) -> list[float]:
  readings = in_turn({'ours': ours, 'base': base}, ROUNDS, warm_up=1)
  return [a / b for a, b in zip(readings['ours'], readings['base'], strict=True)]


@functools.lru_cache(maxsize=4)  # which keeps the baseline
def _timer(name: str, width: int, members: int) -> tuple[Callable[[], float], int]:
  """A function that times a block of steps, in seconds, and the bytes of the program."""
  import jax

  from stability.devices.vmapped import VmappedLayout
  from stability.step import train_step

  fields = {'model.width': width, 'model.head_dim': 16, 'probe.every_steps': 0}
  config = inputs.resolve(benchmark.get_config(), fields | dict(arms.ARMS[name]))
  static, hparams = config_lib.split(config)
  programs = train_step.programs(static, VOCABULARY)
  run = train_step.arrays(hparams)
  data = inputs.random_data(config, VOCABULARY, 2**12)
  layout = VmappedLayout(programs, data, run, jax.local_devices()[:1], members)
  state = layout.empty()
  for slot in range(members):
    state = layout.insert(state, slot, layout.init(run))

  def seconds() -> float:
    nonlocal state
    started = time.perf_counter()
    state, metrics = layout.step(state, 'quiet', STEPS[width])
    metrics.read()
    return time.perf_counter() - started

  return seconds, layout.memory()


if __name__ == '__main__':
  main()
