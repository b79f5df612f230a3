"""Cost of probes, logs and files: seconds of one run in one process, printed as a JSON object.

  python -m launch.benchmarks.probe_overhead WIDTH ROUNDS CORES

bare steps       the quiet step in a loop, without fetching metrics before the end
logged           the training loop with all files and a row every 10 steps
probed every 20  the same with probes
"""

import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

from ml_collections import ConfigDict

from configs import benchmark
from launch.benchmarks import inputs
from launch.benchmarks.readings import Readings, in_turn
from launch.common import environment
from stability import config as config_lib
from stability import hyper
from stability.storage import run_files, sweeps

STEPS = 600  # of the run


def main() -> None:
  """Measures the model and prints the readings."""
  width, rounds, cores = sys.argv[1:]
  environment.pin([int(core) for core in cores.split(',')])
  c = benchmark.get_config()
  c.model.width = int(width)
  c.schedule.steps = STEPS
  print(json.dumps(measure(c, int(rounds), probe_every=20)))


def measure(c: ConfigDict, rounds: int, probe_every: int) -> Readings:
  """Seconds that a run of `c` takes for each contestant; changes `c`."""
  from stability.data import prepare, tokens
  from stability.devices.make_layout import make_layout
  from stability.step import train_step
  from stability.trainer.hooks import TrainerHooks
  from stability.trainer.trainer import train_runs

  c.checkpoint.every_steps = 0
  numbers = itertools.count()
  layouts = {}

  def make_layout_once(workdir, sweep, static, *more):
    if static not in layouts:
      layouts[static] = make_layout(workdir, sweep, static, *more)
    return layouts[static]

  with tempfile.TemporaryDirectory() as folder:
    token_folder = prepare.prepare(c.data, Path(folder) / 'data', c.data.sequence_length)
    data = {'path': str(token_folder), **tokens.open_tokens(token_folder).meta}

    def run(probe_every: int) -> float:
      """Seconds of training in the run's result, which exclude compilation."""
      c.probe.every_steps = probe_every
      runs = hyper.expand(c.to_dict(), [{}])
      workdir = Path(folder) / str(next(numbers))
      sweep = sweeps.Sweep(
          runs.fields,
          runs.configs,
          config_file='',
          scale='',
          overrides={},
          data=data,
          versions={},
      )
      sweeps.write_sweep(workdir, sweep)
      (name,) = runs.configs
      hooks = TrainerHooks(make_layout=make_layout_once)
      train_runs(workdir, sweep, name, lambda: None, hooks=hooks)
      result = run_files.read_result(run_files.run_dir(workdir, name))
      assert result.status == 'done', result.error
      return result.seconds

    def bare_steps() -> float:
      static, hparams = config_lib.split(inputs.resolve(c, {'probe.every_steps': 0}))
      layout = layouts[static]
      state = layout.insert(layout.empty(), 0, layout.init(train_step.arrays(hparams)))
      started = time.perf_counter()
      state, metrics = layout.step(state, 'quiet', c.schedule.steps)
      metrics.read()
      return time.perf_counter() - started

    contestants = {
        'logged': lambda: run(0),
        'bare steps': bare_steps,
        f'probed every {probe_every}': lambda: run(probe_every),
    }
    return in_turn(contestants, rounds, warm_up=1)


if __name__ == '__main__':
  main()
