"""Says which runs of a sweep to train next, to learn the most per FLOP.

  python -m launch.next --workdir=DIR [--config=FILE.py] [--arms=NAME,...] [--count=N] [--target=7B]
  python -m launch.next --workdir=DIR [--config=FILE.py] --train [--width=X] [--budget=cpu:2h|1e15]
  python -m launch.next --target=7B --budget=8xh100:10h [--output=FILE.py]      a sweep from nothing

A run is worth what its result would say about the critical learning rates of all arms at all sizes
(or at --target) and about LR sensitivity, divided by its FLOPs. The first form prints the best
runs: missing or failed ones of the sweep, further seeds, or one learning rate beyond the grid. A
sweep whose seeds start from checkpoints of their own gets no further seed. With --config, DIR may
be new or hold some of the runs of that file; those it lacks may be trained.

--train trains the first --count of them, chooses again, and so on, until every critical rate is
known to within --width decades, no run narrows an interval further, or --budget is spent. The
budget counts all runs of DIR; a run that would exceed it is not started. A critical rate above the
grid is not known: the grid is extended, one rate at a time. At sizes of the sweep, intervals hold
the critical rate that the grid would show without noise in 89 % of simulated cases, 73 to 98 % by
kind of curve and noise. At --target, they are 90 % intervals, as wide as those of launch.predict.
The runs belong to the sweep in DIR; the same command continues after an interruption. If a learning
rate beyond the grid is added, LR sensitivity stays that of the grid.

From nothing, it proposes a sweep of small sizes that predicts --target within --budget, with the
reason for each choice, and writes its config file.

Exit codes are those of launch.sweep.
"""

import os

from launch.common import preemption

if __name__ == '__main__':
  preemption.install()
  # Before NumPy is imported: the matrices are small, and threads of BLAS slow each other down.
  for variable in ('OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'OMP_NUM_THREADS'):
    os.environ.setdefault(variable, '1')

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console

from launch.backends import registry
from launch.common import app, budget, display, path_flags, start
from stability.analysis import regimes
from stability.analysis.prediction import targets
from stability.config import Config
from stability.errors import BadInput
from stability.storage import run_files, sweeps

if TYPE_CHECKING:
  from launch.common.next_runs import Growing
  from stability.analysis.prediction.next_sweep import NextRun, SweepState

FLAGS = flags.FlagValues()
_CONFIG = app.define_config(FLAGS, required=False)
_WORKDIR = app.define_workdir(FLAGS, required=False)
_ARMS = flags.DEFINE_list(
    'arms',
    None,
    'arms of the sweep to be known, separated by commas; default: all. A name with a comma is'
    ' written in double quotes, within those of the shell',
    flag_values=FLAGS,
)
_COUNT = flags.DEFINE_integer(
    'count', 4, 'number of runs to choose at a time', lower_bound=1, flag_values=FLAGS
)
_TARGET = flags.DEFINE_string(
    'target',
    None,
    'size whose critical rates are wanted, such as 7B; default: the sizes of the sweep',
    flag_values=FLAGS,
)
_WIDTH = flags.DEFINE_float(
    'width',
    None,
    'decades: a critical rate is known if its interval is narrower; default: half a step, with'
    ' --target two steps',
    flag_values=FLAGS,
)
_TRAIN = flags.DEFINE_boolean('train', False, 'train the runs', flag_values=FLAGS)
_BUDGET = flags.DEFINE_string('budget', None, budget.ALLOWED, flag_values=FLAGS)
_OUTPUT = path_flags.define('output', None, 'CSV file of the runs, or config file FILE.py', FLAGS)
registry.define_flags(FLAGS)
PIPED_WIDTH = 150  # characters per line if stdout is not a terminal; the table fits


def main() -> int:
  """Plans, trains or proposes."""
  target = None if _TARGET.value is None else targets.parse(_TARGET.value, '--target')
  allowed = None if _BUDGET.value is None else budget.parse(_BUDGET.value)
  if _WIDTH.value is not None and not 0 < _WIDTH.value < math.inf:
    raise BadInput(f'--width={_WIDTH.value:g}: must be a number of decades above 0')
  if _OUTPUT.value is not None and not Path(_OUTPUT.value).absolute().parent.is_dir():
    raise BadInput(f'--output={_OUTPUT.value}: its folder does not exist')
  console = display.console(PIPED_WIDTH)
  if not _WORKDIR.value:
    return _propose(target, allowed, console)
  if _TRAIN.value:
    return _train(target, allowed, console)
  if allowed is not None:
    raise BadInput('--budget: must be given with --train, or without --workdir')
  growing = _load(target)
  found = growing.state.next_runs(growing.flops_K, _COUNT.value)
  _print_known(growing, console)
  if not found:
    display.line(console, 'No further run says anything about the critical rates.')
    return 0
  _print_runs(growing, found, console)
  if _OUTPUT.value:
    _write_runs(growing, found, Path(_OUTPUT.value))
    display.line(console, f'Written: {_OUTPUT.value}')
  return 0


def _load(target: float | None) -> 'Growing':
  from launch.common import next_runs  # imports pandas

  requested = app.load_sweep(FLAGS) if _CONFIG.value else None
  if requested is None and app.overrides(FLAGS):
    raise BadInput('--config.*: must be given with --config')
  return next_runs.load(
      Path(_WORKDIR.value), requested, arms=_ARMS.value, width=_WIDTH.value, target=target
  )


# Training.


def _train(target: float | None, allowed: budget.Budget | None, console: Console) -> int:
  """Trains until the critical rates are known or the budget is spent."""
  workdir = Path(_WORKDIR.value)
  if _OUTPUT.value:
    raise BadInput('--output: must not be given with --train')
  if allowed is not None and allowed.hours is not None:
    raise BadInput(f'--budget={allowed.text}: with --train, must be cpu:TIME or a number of FLOPs')
  backend = registry.find(FLAGS)
  if not backend.is_blocking:
    raise BadInput(f'--backend={FLAGS["backend"].value}: must train the runs itself with --train')
  growing = _load(target)
  if growing.request.extensions is None and _has_extensions(workdir):
    raise BadInput(f'--workdir={workdir}: its sweep has extensions; give its --config')
  backend.check()
  while True:
    _print_known(growing, console)
    if growing.state.is_known:
      display.line(console, 'All critical rates are known as closely as asked.')
      break
    if allowed is not None and _is_spent(growing, allowed):
      display.line(console, f'The budget of {allowed.text} is spent.')
      break
    configs = _begun(growing)
    if not configs:
      found = growing.state.next_runs(growing.flops_K, _COUNT.value)
      if len(growing.state.surface.runs):  # else nothing is known of any
        found = [each for each in found if each.choice.about is not None]
      if not found:
        display.line(console, 'No further run says anything about the critical rates.')
        break
      if allowed is not None:
        found = growing.affordable(found, allowed)
        if not found:
          rest = f'The rest of the budget of {allowed.text}'
          display.line(console, f'{rest} pays for none of the runs.')
          break
      _print_runs(growing, found, console)
      configs = growing.configs(found)
    not_retried = backend.not_retried(workdir)
    unfinished = start.prepare(growing.with_runs(configs), workdir, not_retried=not_retried)
    try:
      backend.train(workdir, {name: unfinished[name] for name in configs if name in unfinished})
    except KeyboardInterrupt:
      print('interrupted; the same command continues', file=sys.stderr)
      return 130
    results = [run_files.read_result(run_files.run_dir(workdir, name)) for name in configs]
    if not any(result is not None and result.status != 'failed' for result in results):
      display.line(console, 'None of these runs could be trained.')
      break
    growing = _load(target)
  return start.finish(workdir)


def _has_extensions(workdir: Path) -> bool:
  return (workdir / 'sweep.json').exists() and bool(sweeps.read_sweep(workdir).extensions)


def _is_spent(growing: 'Growing', allowed: budget.Budget) -> bool:
  flops, core_hours = growing.spent()
  if allowed.flops is not None:
    return flops >= allowed.flops
  return core_hours >= allowed.core_hours


def _begun(growing: 'Growing') -> dict[str, Config]:
  """The runs of the workdir that were interrupted."""
  begun = {}
  for name in growing.request.runs.configs:
    run = run_files.run_dir(growing.workdir, name)
    if (run / 'metrics.jsonl').exists() and run_files.read_result(run) is None:
      begun[name] = growing.request.runs.configs[name]
  return begun


# From nothing.


def _propose(target: float | None, allowed: budget.Budget | None, console: Console) -> int:
  from launch.common import proposal

  for name in ('train', 'count', 'width', 'config'):
    if FLAGS[name].present:
      raise BadInput(f'--{name}: must be given with --workdir')
  if target is None or allowed is None:
    raise BadInput('--workdir: missing, or --target and --budget to propose a sweep from nothing')
  found = proposal.propose(target, allowed, _ARMS.value)
  for line in found.sentences():
    display.line(console, line)
  table = display.table(('size', 'runs', 'FLOPs', found.unit), left=('size',))
  for row in found.rows():
    table.add_row(*row)
  console.print(table)
  output = Path(_OUTPUT.value or 'proxies.py')
  if _OUTPUT.value:
    found.write(output)
    display.line(console, f'Written: {output}')
  else:
    display.line(console, f'--output={output} writes its config file.')
  for line in found.commands(output):
    display.line(console, line)
  return 0


# Output.


def _print_known(growing: 'Growing', console: Console) -> None:
  """Says how many critical rates are known or beyond the grid, and which is the least known."""
  state = growing.state
  wanted = state.is_wanted.nonzero()[0]
  widths = state.now.widths_Q[wanted]
  low, _, high = state.now.critical_3xQ[:, wanted]
  line = (
      f'{(widths <= state.known_width).sum()} of {len(wanted)} critical rates are known to'
      f' {state.known_width:.2g} decades ({_intervals(state)})'
  )
  is_above, is_below = low == math.inf, high == -math.inf
  for is_there, side in ((is_above, 'above'), (is_below, 'below')):
    if count := is_there.sum():
      line += f'; {count} {"is" if count == 1 else "are"} {side} the grid'
  is_open = ~(widths <= state.known_width) & ~is_above & ~is_below
  if is_open.any():
    widest = int(wanted[is_open][widths[is_open].argmax()])
    width = widths[is_open].max()
    says = f'has {width:.2g}' if math.isfinite(width) else 'has no end within the grid'
    line += f'; the widest {says}: {growing.wanted_name(widest)}'
  display.line(console, f'{line}.')
  if state.target is not None:
    largest = state.first_of_curves['parameters'].max()
    if state.target > regimes.MAX_DISTANCE * largest:
      display.line(console, regimes.TOO_FAR)


def _intervals(state: 'SweepState') -> str:
  """Says how often the intervals hold the truth."""
  if state.target is not None:
    return '90 % intervals'
  from stability.analysis.prediction import next_cells

  return f'intervals that hold the truth in about {100 * next_cells.COVERAGE:.0f} % of cases'


def _print_runs(growing: 'Growing', found: Sequence['NextRun'], console: Console) -> None:
  names = ('run', 'reason', 'FLOPs', 'seconds', 'decades', 'after')
  table = display.table(names, left=('run', 'reason'))
  display.add_rows(table, (row.values() for row in growing.rows(found)))
  console.print(table)
  display.line(
      console,
      'decades: width of the interval of the critical rate that the reason names, if it has ends'
      ' within the grid, and as expected after the run. seconds: mean of the runs of this size.',
  )


def _write_runs(growing: 'Growing', found: Sequence['NextRun'], path: Path) -> None:
  import pandas as pd

  from stability.errors import writing

  with writing(path):
    pd.DataFrame(growing.rows(found)).to_csv(path, index=False)


if __name__ == '__main__':
  app.run(main, FLAGS)
