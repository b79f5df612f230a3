"""Measures the engine against its targets on this machine, contestants in turn (A B A B ...).

  python -m launch.benchmark --output=FILE.json [--suite=cpu|gpu] [--only=row,throughput]
      [--rounds=3]

Writes a JSON file with every single reading and prints a table of medians. The suite cpu takes
about 15 minutes on two cores; leave the machine alone meanwhile. Its set-up is
configs/benchmark.py; its PyTorch rows need torch (extra `torch`) and a checkout with tests/;
without, they say so. The suite gpu needs an accelerator, of which it uses one device.
"""

import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from configs import benchmark as setup
from launch.benchmarks import accelerator
from launch.common import app, environment
from stability import config as config_lib
from stability.devices import cost
from stability.errors import BadInput
from stability.storage import files

FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string('output', None, 'JSON file to write', flag_values=FLAGS)
_SUITE = flags.DEFINE_enum(
    'suite', 'cpu', ['cpu', 'gpu'], 'what to measure: on a CPU or an accelerator', flag_values=FLAGS
)
_ONLY = flags.DEFINE_list('only', [], 'names of the measurements; default: all', flag_values=FLAGS)
_ROUNDS = flags.DEFINE_integer(
    'rounds', 3, 'readings of each contestant', lower_bound=1, flag_values=FLAGS
)

CONFIG = 'configs/benchmark.py'
WIDTHS = (32, 64, 128)
SECONDS = 5.0  # of a reading of speed
MATMUL = 1024

Row = tuple[str, str, str]  # what, measured, target


def main() -> None:
  """Runs the measurements and writes what they found."""
  if not _OUTPUT.value:
    raise BadInput('--output: missing, must be the JSON file to write')
  measurements = SUITES[_SUITE.value]
  for name in _ONLY.value:
    if name not in measurements:
      raise BadInput(f'--only={name}: must be one of {", ".join(measurements)}')
  if _SUITE.value == 'gpu' and not environment.has_accelerator():
    raise BadInput('--suite=gpu: needs a GPU or TPU and the jax for it, there is none here')
  console = Console()
  found: dict[str, Any] = {'machine': machine()}
  table = Table('what', 'measured', 'target')
  for name in _ONLY.value or measurements:
    console.print(f'measuring {name} ...')
    found[name], rows = measurements[name](_ROUNDS.value)
    files.write_json(Path(_OUTPUT.value), found)
    for row in rows:
      table.add_row(*row)
  console.print(table)


def machine() -> dict[str, Any]:
  """What the numbers hold for."""
  import jax

  lines = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
  names = {line.split(':')[1].strip() for line in lines if line.startswith('model name')}
  return {
      'cpu': ', '.join(names) or platform.processor(),
      'cores': len(environment.cores()),
      'platform': platform.platform(),
      'python': platform.python_version(),
      'jax': jax.__version__,
      'torch': _torch_version(),
      'xla_flags': environment.worker_environment().get('XLA_FLAGS', ''),
      'time': time.strftime('%Y-%m-%d %H:%M'),
  }


def _torch_version() -> str | None:
  from importlib import metadata

  return metadata.version('torch') if importlib.util.find_spec('torch') else None


def _in_turn(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
  """`rounds` readings of each contestant, one after another in each round."""
  readings: dict[str, list[float]] = {name: [] for name in contestants}
  for _ in range(rounds):
    for name, measure in contestants.items():
      readings[name].append(measure())
  return readings


def _ratio(readings: dict[str, list[float]], above: str, below: str) -> float:
  """The median over rounds of the ratio within a round."""
  return statistics.median(a / b for a, b in zip(readings[above], readings[below]))


# Whole sweeps.


def row(rounds: int) -> tuple[Any, list[Row]]:
  """A row of learning rates, process start to last result, against one process a run."""
  readings = _in_turn(
      {
          'plain': _plain_row,
          'ours, first start': _first_row,
          'ours, later': lambda: _our_row(environment.cache_folder().parents[1]),
      },
      rounds,
  )
  rows = [
      (f'row of 7: plain over {name}', f'{_ratio(readings, "plain", name):.1f}', '>= 5')
      for name in readings
      if name != 'plain'
  ]
  return {'seconds': readings}, rows


def _first_row() -> float:
  """Seconds of the sweep where nothing was compiled before."""
  with tempfile.TemporaryDirectory() as cache:
    return _our_row(Path(cache))


def _our_row(cache: Path) -> float:
  """Seconds to the sweep's last result, its executables cached below a folder."""
  with tempfile.TemporaryDirectory() as folder:
    command = [*(sys.executable, '-m', 'launch.sweep'), f'--config={CONFIG}']
    begun = time.time()
    _seconds([*command, f'--workdir={folder}/row'], XDG_CACHE_HOME=str(cache))
    results = Path(folder).glob('row/runs/*/result.json')
    return max(path.stat().st_mtime for path in results) - begun


def _plain_row() -> float:
  """Seconds of the same runs, a plain process each, all cores to each."""
  with tempfile.TemporaryDirectory() as folder:
    return sum(
        _seconds([sys.executable, '-m', 'launch.benchmarks.plain', str(rate), f'{folder}/{rate}'])
        for rate in setup.LEARNING_RATES
    )


def _seconds(command: Sequence[str], **variables: str) -> float:
  begun = time.perf_counter()
  subprocess.run(command, env=os.environ | variables, check=True, capture_output=True)
  return time.perf_counter() - begun


def start(rounds: int) -> tuple[Any, list[Row]]:
  """Process start to the first step of a sweep that was started before."""
  seconds = [_first_step() for _ in range(rounds + 1)][1:]  # the first fills the cache
  measured = f'{statistics.median(seconds):.1f} s'
  return {'seconds': seconds}, [('second start to first step', measured, '<= 4 s')]


def _first_step() -> float:
  folder = Path(tempfile.mkdtemp())
  begun = time.perf_counter()
  command = [*(sys.executable, '-m', 'launch.sweep'), f'--config={CONFIG}']
  process = subprocess.Popen(
      [*command, f'--workdir={folder}/row', '--config.log.every_steps=1'],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
  )
  while not any(path.stat().st_size for path in folder.glob('row/runs/*/metrics.jsonl')):
    if process.poll() is not None:
      raise RuntimeError(f'launch.sweep ended with exit code {process.returncode}')
    time.sleep(0.005)
  seconds = time.perf_counter() - begun
  process.kill()
  process.wait()
  time.sleep(2)  # its workers end
  shutil.rmtree(folder, ignore_errors=True)
  return seconds


# Speeds.


def throughput(rounds: int) -> tuple[Any, list[Row]]:
  """Training tokens per second of all cores, against PyTorch's better arrangement."""
  cores = environment.cores()
  alone, together = [[core] for core in cores], [cores]
  found, rows = {}, []
  for width, target in zip(WIDTHS, ('>= 1.8', '>= 1.6', '>= 1.1')):
    contestants = {'ours': lambda w=width: _speed('ours', w, alone)}
    if _torch_version():
      contestants['torch, a process a core'] = lambda w=width: _speed('torch', w, alone)
      contestants['torch, one process'] = lambda w=width: _speed('torch', w, together)
    readings = _in_turn(contestants, rounds)
    found[width] = readings
    what = f'tokens/s over PyTorch, width {width}'
    if len(readings) > 1:
      best = min(_ratio(readings, 'ours', name) for name in readings if name != 'ours')
      rows.append((what, f'{best:.2f}', target))
    else:
      rows.append((what, 'not measured: no torch', target))
  return {'tokens_per_second': found}, rows


def matmul(rounds: int) -> tuple[Any, list[Row]]:
  """The share of a core's own float32 matrix product rate that training reaches."""
  core = [environment.cores()[:1]]
  readings = _in_turn(
      {
          'ours': lambda: _speed('ours', 128, core) * _flops_per_token(128),
          'matmul': lambda: _speed('matmul', MATMUL, core),
      },
      rounds,
  )
  share = _ratio(readings, 'ours', 'matmul')
  what = 'share of the matmul limit, width 128'
  return {'flops_per_second': readings}, [(what, f'{share:.2f}', '>= 0.65')]


def _flops_per_token(width: int) -> float:
  c = setup.get_config()
  c.model.width = width
  config = config_lib.unflatten(config_lib.resolve(config_lib.flatten(c.to_dict())))
  return cost.estimated_flops(config) / cost.tokens(config)


def _speed(what: str, size: int, shares: Sequence[Sequence[int]]) -> float:
  """The sum over processes, one for each share of the cores, that measure at the same time."""
  processes = [
      subprocess.Popen(
          [
              *(sys.executable, '-m', 'launch.benchmarks.speed', what, str(size), str(SECONDS)),
              ','.join(map(str, share)),
          ],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          text=True,
          env=environment.worker_environment(),
      )
      for share in shares
  ]
  for process in processes:
    if process.stdout.readline() != 'ready\n':
      raise RuntimeError(f'launch.benchmarks.speed {what} {size} failed')
  for process in processes:
    print(file=process.stdin, flush=True)
  return sum(json.loads(process.communicate()[0])['speed'] for process in processes)


# What looking costs.


def looking(rounds: int) -> tuple[Any, list[Row]]:
  """Training with probes and all files, against the same without, and against bare steps."""
  core = ','.join(map(str, environment.cores()[:1]))
  found, rows = {}, []
  for width in WIDTHS[:2]:
    program = 'launch.benchmarks.probe_overhead'
    command = [sys.executable, '-m', program, str(width), str(rounds), core]
    output = subprocess.run(
        command, env=environment.worker_environment(), check=True, capture_output=True, text=True
    ).stdout
    readings = json.loads(output.splitlines()[-1])
    found[width] = readings
    probing = _ratio(readings, 'probed every 20', 'logged') - 1
    outside = 1 - _ratio(readings, 'bare steps', 'logged')
    rows.append((f'probing every 20 steps, width {width}', f'{probing:.1%}', '<= 5 %'))
    rows.append((f'time beside the steps, width {width}', f'{outside:.1%}', '<= 5 %'))
  return {'seconds': found}, rows


# One accelerator.


def population(rounds: int) -> tuple[Any, list[Row]]:
  """A row of runs as one population against the same one after another."""
  found = _on_accelerator('population', rounds)
  return found, [_population_row(found)]


def _population_row(found: Any) -> Row:
  ratio = _ratio(found['readings'], 'one by one', 'together')
  return f'{accelerator.MEMBERS} runs at width 256: in turn over together', f'{ratio:.1f}', '>= 5'


def utilisation(rounds: int) -> tuple[Any, list[Row]]:
  """The share of the device's own bfloat16 matrix product rate that large runs reach."""
  found = _on_accelerator('utilisation', rounds)
  return found, _utilisation_rows(found)


def _utilisation_rows(found: Any) -> list[Row]:
  shares = {
      name: _ratio(readings, 'training', 'matmul') for name, readings in found['readings'].items()
  }
  targets = {'151M': '>= 50 %', '1.2B': '>= 55 %'}
  return [
      (f'share of the bfloat16 matmul rate, {name}', f'{share:.0%}', targets[name])
      for name, share in shares.items()
  ]


def looking_on_accelerator(rounds: int) -> tuple[Any, list[Row]]:
  """Probes, logs and files beside bare steps."""
  found = _on_accelerator('looking', rounds)
  return found, _looking_rows(found)


def _looking_rows(found: Any) -> list[Row]:
  readings = found['readings']
  probing = _ratio(readings, 'probed every 100', 'logged') - 1
  gap = 1 - _ratio(readings, 'bare steps', 'logged')
  return [
      ('probing every 100 steps, 2.4M', f'{probing:.1%}', '<= 2 %'),
      ('time of the device between chunks, 2.4M', f'{gap:.1%}', '<= 1 %'),
  ]


def _on_accelerator(what: str, rounds: int) -> dict[str, Any]:
  """The device and the readings, by a process that has its memory to itself."""
  command = [sys.executable, '-m', 'launch.benchmarks.accelerator', what, str(rounds)]
  process = subprocess.run(
      command, env=environment.worker_environment(), check=True, stdout=subprocess.PIPE, text=True
  )
  return json.loads(process.stdout.splitlines()[-1])


SUITES = {
    'cpu': {
        'row': row,
        'start': start,
        'throughput': throughput,
        'matmul': matmul,
        'looking': looking,
    },
    'gpu': {
        'population': population,
        'utilisation': utilisation,
        'looking': looking_on_accelerator,
    },
}


if __name__ == '__main__':
  app.run(main, FLAGS)
