"""The measurements of launch.benchmark --suite=gpu, the most valuable first, within a time limit.

Each runs in a process of its own, which frees the memory of the device at its end. One that exceeds
what is left of the time is ended, and says so instead of giving numbers.
"""

import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.benchmarks import accelerator
from launch.benchmarks.readings import ratio
from launch.common import environment, programs

Row = tuple[str, str, str]  # quantity, measured value, target

QUICKSTART_STEPS = 100
_GRACE_SECONDS = 30  # for a sweep to save its runs when the time is over


def measure(
    name: str, rounds: int, deadline: float, output: Path
) -> tuple[dict[str, Any], list[Row]]:
  """One measurement: what was measured, and its rows of the table.

  Args:
    name: a key of MEASUREMENTS.
    rounds: readings of each contestant.
    deadline: time.monotonic() at which the suite ends.
    output: the JSON file of the benchmark; a workdir of the quickstart is made beside it.
  """
  if name == 'quickstart':
    found = _quickstart(deadline, output.absolute().parent)
  else:
    found = _in_process(name, rounds, deadline)
  return found, [(name, found['cut'], '')] if 'cut' in found else MEASUREMENTS[name](found)


def _in_process(name: str, rounds: int, deadline: float) -> dict[str, Any]:
  """The device and its readings, by launch.benchmarks.accelerator."""
  left = deadline - time.monotonic()
  if left <= 0:
    return {'cut': 'no time left'}
  command = [*programs.command('launch.benchmarks.accelerator'), name, str(rounds)]
  variables = environment.worker_environment()
  platforms = variables.get('JAX_PLATFORMS')
  if platforms and 'cpu' not in platforms.split(','):
    variables['JAX_PLATFORMS'] = f'{platforms},cpu'  # numerics compares with the CPU
  try:
    process = subprocess.run(
        command,
        env=variables,
        capture_output=True,
        check=False,
        text=True,
        timeout=left,
    )
  except subprocess.TimeoutExpired:
    return {'cut': f'not done within {left:.0f} s'}
  if process.returncode:  # must not keep the others from being measured
    last = (process.stderr.strip().splitlines() or ['no message'])[-1]
    return {'cut': f'failed: {last}'}
  return json.loads(process.stdout.splitlines()[-1])


def _quickstart(deadline: float, folder: Path) -> dict[str, Any]:
  """Trains configs/quickstart.py:gpu, cut to QUICKSTART_STEPS, in the time that is left.

  The workdir is a new folder in `folder`.
  """
  left = deadline - time.monotonic() - _GRACE_SECONDS
  if left <= 0:
    return {'cut': 'no time left'}
  workdir = Path(tempfile.mkdtemp(prefix='quickstart-', dir=folder))
  started = time.monotonic()
  process = subprocess.Popen(
      [
          *programs.command('launch.sweep'),
          *('--config=quickstart:gpu', f'--workdir={workdir}'),
          f'--config.schedule.steps={QUICKSTART_STEPS}',
          f'--config.schedule.warmup_steps={QUICKSTART_STEPS // 10}',
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
  )
  try:
    process.wait(left)
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGTERM)
    try:
      process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
      os.kill(process.pid, signal.SIGKILL)
      process.wait()
  results = [json.loads(path.read_text()) for path in workdir.glob('runs/*/result.json')]
  return {
      'seconds': time.monotonic() - started,
      'exit code': process.returncode,
      'statuses': dict(Counter(result['status'] for result in results)),
      'runs': len(list(workdir.glob('runs/*'))),
  }


def _numerics_rows(found: Mapping[str, Any]) -> list[Row]:
  limits = {'float32': '<= 1e-4', 'bfloat16': '<= 3e-2'}
  rows = [
      (f'{dtype} {name}, relative error to the CPU', f'{error:.1e}', limits[dtype])
      for dtype, of_dtype in found['errors'].items()
      for name, error in of_dtype.items()
  ]
  what = {'twice': 'two equal runs', 'alone': 'a run alone and in a population'}
  for name, difference in found['repeats'].items():
    equal = 'equal bit for bit' if difference == 0 else f'differ by {difference:.1e}'
    rows.append((what[name], equal, 'equal bit for bit'))
  return rows


def _population_rows(found: Mapping[str, Any]) -> list[Row]:
  speedup = ratio(found['readings'], 'one by one', 'together')
  what = f'{accelerator.MEMBERS} runs at width 256: one by one over together'
  return [(what, f'{speedup:.1f}', '>= 5')]


def _utilisation_rows(found: Mapping[str, Any]) -> list[Row]:
  targets = {'151M': '>= 50 %', '1.2B': '>= 55 %'}
  return [
      (
          f'share of the bfloat16 matmul rate, {name}',
          f'{ratio(readings, "training", "matmul"):.0%}',
          targets[name],
      )
      for name, readings in found['readings'].items()
  ]


def _torch_rows(found: Mapping[str, Any]) -> list[Row]:
  what = f'tokens/s of PyTorch with torch.compile, {accelerator.TORCH_SIZE}'
  return [(what, f'{statistics.median(found["readings"]["torch"]):,.0f}', '')]


def _probe_overhead_rows(found: Mapping[str, Any]) -> list[Row]:
  readings = found['readings']
  probing = ratio(readings, 'probed every 100', 'logged') - 1
  gap = 1 - ratio(readings, 'bare steps', 'logged')
  return [
      ('probing every 100 steps, 2.4M', f'{probing:.1%}', '<= 2 %'),
      ('time outside of steps, 2.4M', f'{gap:.1%}', '<= 1 %'),
  ]


def _estimate_rows(found: Mapping[str, Any]) -> list[Row]:
  return [
      (f'step of {name}: measured over estimated', f'{of["measured"] / of["estimated"]:.2f}', '')
      for name, of in found['readings'].items()
  ]


def _quickstart_rows(found: Mapping[str, Any]) -> list[Row]:
  statuses = ', '.join(f'{n} {status}' for status, n in found['statuses'].items()) or '0 done'
  what = f'configs/quickstart.py:gpu, {QUICKSTART_STEPS} steps'
  measured = f'{statuses} of {found["runs"]} runs in {found["seconds"]:.0f} s'
  return [(what, f'{measured}, exit code {found["exit code"]}', '')]


# Name -> the rows of what was measured, in the order of the suite.
MEASUREMENTS: dict[str, Callable[[Mapping[str, Any]], list[Row]]] = {
    'numerics': _numerics_rows,
    'population': _population_rows,
    'utilisation': _utilisation_rows,
    'torch': _torch_rows,
    'probe_overhead': _probe_overhead_rows,
    'estimates': _estimate_rows,
    'quickstart': _quickstart_rows,
}
