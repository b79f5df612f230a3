"""Measures the speed of training on this machine against targets.

  python -m launch.benchmark --output=FILE.json [--suite=cpu|gpu] [--only=row,throughput]
      [--rounds=3] [--time_limit=480]

Contestants take turns (A B A B ...). Every reading is written to the JSON file; medians are printed
as a table. The suite cpu takes about 15 minutes on two otherwise idle cores. It trains
configs/benchmark.py; the comparison with PyTorch needs torch (extra `torch`) and a checkout with
tests/, and is skipped without them. The suite gpu uses one device of an accelerator and prints what
it has measured after each step (launch/benchmarks/gpu_suite.py).
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, display, environment, path_flags, programs

# isort: split
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from configs import benchmark as setup
from launch.benchmarks import gpu_suite, inputs
from launch.benchmarks.gpu_suite import Row
from launch.benchmarks.readings import in_turn, ratio
from stability.devices import cost
from stability.errors import BadInput
from stability.storage import files

FLAGS = flags.FlagValues()
_OUTPUT = path_flags.define('output', None, 'JSON file to write', FLAGS)
_SUITE = flags.DEFINE_enum(
    'suite', 'cpu', ['cpu', 'gpu'], 'measure a CPU or an accelerator', flag_values=FLAGS
)
_ONLY = flags.DEFINE_list('only', [], 'names of measurements; default: all', flag_values=FLAGS)
_TIME_LIMIT = flags.DEFINE_integer(
    'time_limit',
    480,
    'seconds after which the suite gpu ends; what was measured until then is kept',
    lower_bound=1,
    flag_values=FLAGS,
)
_ROUNDS = flags.DEFINE_integer(
    'rounds', 3, 'readings of each contestant', lower_bound=1, flag_values=FLAGS
)

CONFIG = 'benchmark'
WIDTHS = (32, 64, 128)
SECONDS = 5.0  # duration of a reading of speed
MATMUL = 1024  # rows and columns of the matrices


def main() -> None:
  """Runs the measurements and writes their readings."""
  if not _OUTPUT.value:
    raise BadInput('--output: missing, must be the JSON file to write')
  is_gpu = _SUITE.value == 'gpu'
  measurements = list(gpu_suite.MEASUREMENTS if is_gpu else CPU_SUITE)
  for name in _ONLY.value:
    if name not in measurements:
      raise BadInput(f'--only={name}: must be one of {", ".join(measurements)}')
  if is_gpu and not environment.has_accelerator():
    raise BadInput('--suite=gpu: needs a GPU or TPU and a jax that supports it')
  file, deadline = Path(_OUTPUT.value), time.monotonic() + _TIME_LIMIT.value
  console = Console()
  output: dict[str, Any] = {'machine': machine()}
  table = Table('quantity', 'measured', 'target')
  for name in _ONLY.value or measurements:
    console.print(f'measuring {name} ...')
    if is_gpu:
      output[name], rows = gpu_suite.measure(name, _ROUNDS.value, deadline, file)
      display.line(console, json.dumps({name: output[name]}))
    else:
      output[name], rows = CPU_SUITE[name](_ROUNDS.value)
    files.write_json(file, output)
    for row in rows:
      table.add_row(*row)
  console.print(table)


def machine() -> dict[str, Any]:
  """A description of the machine and versions, stored with the readings."""
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


# Whole sweeps.


def row(rounds: int) -> tuple[Any, list[Row]]:
  """Seconds from start to last result of a row of learning rates: a sweep, a process per run."""
  readings = in_turn(
      {
          'plain': _plain_row,
          'ours, first start': _first_row,
          'ours, later': lambda: _our_row(environment.cache_folder().parents[1]),
      },
      rounds,
  )
  rows = [
      (f'row of 7: plain over {name}', f'{ratio(readings, "plain", name):.1f}', target)
      for name, target in (('ours, first start', '>= 4.5'), ('ours, later', '>= 5.2'))
  ]
  return {'seconds': readings}, rows


def _first_row() -> float:
  """Seconds of the sweep with an empty compilation cache."""
  with tempfile.TemporaryDirectory() as cache:
    return _our_row(Path(cache))


def _our_row(cache: Path) -> float:
  """Seconds until the sweep's last result, with the compilation cache in folder `cache`."""
  with tempfile.TemporaryDirectory() as folder:
    command = [*programs.command('launch.sweep'), f'--config={CONFIG}']
    started = time.time()
    _seconds([*command, f'--workdir={folder}/row'], XDG_CACHE_HOME=str(cache))
    results = Path(folder).glob('row/runs/*/result.json')
    return max(path.stat().st_mtime for path in results) - started


def _plain_row() -> float:
  """Seconds to train the same runs one by one with the plain script, on all cores."""
  with tempfile.TemporaryDirectory() as folder:
    return sum(
        _seconds([*programs.command('launch.benchmarks.plain'), str(rate), f'{folder}/{rate}'])
        for rate in setup.LEARNING_RATES
    )


def _seconds(command: Sequence[str], **variables: str) -> float:
  started = time.perf_counter()
  subprocess.run(command, env=os.environ | variables, check=True, capture_output=True)
  return time.perf_counter() - started


def start(rounds: int) -> tuple[Any, list[Row]]:
  """Seconds from start to first step of a sweep whose executables are cached."""
  seconds = [_first_step() for _ in range(rounds + 1)][1:]  # the first fills the cache
  measured = f'{statistics.median(seconds):.1f} s'
  return {'seconds': seconds}, [('second start to first step', measured, '<= 4 s')]


def _first_step() -> float:
  """Seconds from the start of a sweep to its first logged step."""
  folder = Path(tempfile.mkdtemp())
  started = time.perf_counter()
  command = [*programs.command('launch.sweep'), f'--config={CONFIG}']
  process = subprocess.Popen(
      [*command, f'--workdir={folder}/row', '--config.log.every_steps=1'],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
  )
  while not any(path.stat().st_size for path in folder.glob('row/runs/*/metrics.jsonl')):
    if process.poll() is not None:
      raise RuntimeError(f'launch.sweep ended with exit code {process.returncode}')
    time.sleep(0.005)
  seconds = time.perf_counter() - started
  process.kill()
  process.wait()
  time.sleep(2)  # until its workers have ended
  shutil.rmtree(folder, ignore_errors=True)
  return seconds


# Speeds.


def throughput(rounds: int) -> tuple[Any, list[Row]]:
  """Training tokens per second on all cores, compared with the faster of two PyTorch set-ups."""
  cores = environment.cores()
  alone, together = [[core] for core in cores], [cores]
  found, rows = {}, []
  for width, target in zip(WIDTHS, ('>= 2.1', '>= 1.9', '>= 1.8')):
    contestants = {'ours': lambda w=width: _speed('ours', w, alone)}
    if _torch_version():
      contestants['torch, a process a core'] = lambda w=width: _speed('torch', w, alone)
      contestants['torch, one process'] = lambda w=width: _speed('torch', w, together)
    readings = in_turn(contestants, rounds)
    found[width] = readings
    what = f'tokens/s over PyTorch, width {width}'
    if len(readings) > 1:
      best = min(ratio(readings, 'ours', name) for name in readings if name != 'ours')
      rows.append((what, f'{best:.2f}', target))
    else:
      rows.append((what, 'not measured: no torch', target))
  return {'tokens_per_second': found}, rows


def matmul(rounds: int) -> tuple[Any, list[Row]]:
  """FLOP/s of training on one core, as a fraction of its float32 matrix product rate."""
  core = [environment.cores()[:1]]
  readings = in_turn(
      {
          'ours': lambda: _speed('ours', 128, core) * _flops_per_token(128),
          'matmul': lambda: _speed('matmul', MATMUL, core),
      },
      rounds,
  )
  share = ratio(readings, 'ours', 'matmul')
  what = 'share of the matmul limit, width 128'
  return {'flops_per_second': readings}, [(what, f'{share:.2f}', '>= 0.58')]


def _flops_per_token(width: int) -> float:
  config = inputs.resolve(setup.get_config(), {'model.width': width})
  return cost.estimated_flops(config) / cost.tokens(config)


def _speed(what: str, size: int, shares: Sequence[Sequence[int]]) -> float:
  """The summed speed of concurrent processes, one for each share of the cores."""
  processes = [
      subprocess.Popen(
          [
              *programs.command('launch.benchmarks.speed'),
              *(what, str(size), str(SECONDS)),
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


# Probes and logs.


def probe_overhead(rounds: int) -> tuple[Any, list[Row]]:
  """Seconds of training with probes, without probes, and of bare steps without files."""
  core = ','.join(map(str, environment.cores()[:1]))
  found, rows = {}, []
  for width in WIDTHS[:2]:
    command = programs.command('launch.benchmarks.probe_overhead')
    output = subprocess.run(
        [*command, str(width), str(rounds), core],
        env=environment.worker_environment(),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    readings = json.loads(output.splitlines()[-1])
    found[width] = readings
    probing = ratio(readings, 'probed every 20', 'logged') - 1
    outside = 1 - ratio(readings, 'bare steps', 'logged')
    rows.append((f'probing every 20 steps, width {width}', f'{probing:.1%}', '<= 5 %'))
    rows.append((f'time outside of steps, width {width}', f'{outside:.1%}', '<= 5 %'))
  return {'seconds': found}, rows


CPU_SUITE = {
    'row': row,
    'start': start,
    'throughput': throughput,
    'matmul': matmul,
    'probe_overhead': probe_overhead,
}


if __name__ == '__main__':
  app.run(main, FLAGS)
