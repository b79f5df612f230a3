"""What probes, logs and files cost: seconds of one run in one process, printed as a JSON object.

  python -m launch.benchmarks.probe_overhead WIDTH ROUNDS CORES

bare steps       the step executable called in a loop, nothing fetched until the end
logged           the population's loop, a line every 10 steps, to all files
probed every 20  the same with probes
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from ml_collections import ConfigDict

from configs import benchmark
from launch.common import environment
from stability import config as config_lib
from stability import hyper
from stability.storage import run_files, sweeps

STEPS = 600


def main() -> None:
  """Measures what the arguments say."""
  width, rounds, cores = sys.argv[1:]
  environment.pin([int(core) for core in cores.split(',')])
  c = benchmark.get_config()
  c.model.width = int(width)
  c.schedule.steps = STEPS
  print(json.dumps(measure(c, int(rounds), probe_every=20)))


def measure(c: ConfigDict, rounds: int, probe_every: int) -> dict[str, list[float]]:
  """Readings of each contestant, in seconds of a run of `c`."""
  from stability.data import tokens
  from stability.devices.make_layout import make_layout
  from stability.step import train_step
  from stability.trainer.hooks import TrainerHooks
  from stability.trainer.trainer import train_runs

  steps = c.schedule.steps
  c.checkpoint.every_steps = 0
  layouts = {}

  def compiled_once(workdir, sweep, static, example, *more):
    if static not in layouts:
      layouts[static] = make_layout(workdir, sweep, static, example, *more)
    return layouts[static]

  with tempfile.TemporaryDirectory() as folder:
    text = tokens.prepare(c.data, Path(folder) / 'data', c.data.sequence_length)

    def run(number: int, probe_every: int) -> float:
      """Seconds of training that the run's result states: compilation is not in them."""
      c.probe.every_steps = probe_every
      runs = hyper.expand(c.to_dict(), [{}])
      workdir = Path(folder) / f'{probe_every}-{number}'
      about = {'path': str(text), **tokens.open_tokens(text).meta}
      sweep = sweeps.Sweep(
          runs.fields,
          runs.configs,
          config_file='',
          scale='',
          overrides={},
          data=about,
          versions={},
      )
      sweeps.write_sweep(workdir, sweep)
      name = next(iter(runs.configs))
      hooks = TrainerHooks(make_layout=compiled_once)
      train_runs(workdir, sweep, name, lambda: None, hooks=hooks)
      result = run_files.read_result(run_files.run_dir(workdir, name))
      assert result.status == 'done', result.error
      return result.seconds

    def bare() -> float:
      flat = config_lib.resolve(config_lib.flatten(c.to_dict()) | {'probe.every_steps': 0})
      static, values = config_lib.split(config_lib.unflatten(flat))
      layout = layouts[static]
      state = layout.insert(layout.empty(), 0, layout.init(train_step.arrays(values)))
      begun = time.perf_counter()
      state, fetch = layout.step(state, 'quiet', steps)
      fetch.read()
      return time.perf_counter() - begun

    run(-1, 0), run(-1, probe_every)  # compile
    probed = f'probed every {probe_every}'
    readings = {'logged': [], 'bare steps': [], probed: []}
    for number in range(rounds):
      readings['logged'].append(run(number, 0))
      readings['bare steps'].append(bare())
      readings[probed].append(run(number, probe_every))
  return readings


if __name__ == '__main__':
  main()
