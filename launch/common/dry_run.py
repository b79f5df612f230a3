"""launch.sweep --dry_run: what a sweep costs and, on given devices, where its runs are placed.

Parameters and FLOPs come from traced programs; nothing is compiled and no accelerator is used,
except with --analyze. With --target it compiles for devices that need not be here. With --reuse it
counts what a start here would reuse.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from launch.common import (
  app,
  budget,
  display,
  environment,
  extension_copy,
  extension_trace,
  memory_analysis,
  path_flags,
  reusable,
  target_report,
)
from stability.config import Config
from stability.data import prepare, sources, tokens
from stability.devices import cost as cost_lib
from stability.devices import placement as placement_lib
from stability.devices import shapes, targets
from stability.errors import BadInput
from stability.hyper import Runs
from stability.settings import GPU_FLAGS
from stability.storage import run_files, sweeps

MOST_ROWS = 100  # in a table; more runs than this are shown by groups
MOST_NAMED = 10  # maximum number of names in the list of rows that do not fit
MOST_SILENT = 20  # maximum number of architectures to trace without a message
WIDTH = 150  # characters of the tables if the output is not a terminal
_MACHINE = ('devices', 'device_memory_gb', 'device_tflops')


def define(flag_values: flags.FlagValues) -> None:
  """Defines --dry_run and the flags that need it."""
  flags.DEFINE_boolean(
      'dry_run', False, 'print the runs and their cost; write nothing', flag_values=flag_values
  )
  flags.DEFINE_integer(
      'devices',
      None,
      'for --dry_run: number of NVIDIA GPUs; needs --device_memory_gb and --device_tflops',
      flag_values=flag_values,
  )
  flags.DEFINE_float(
      'device_memory_gb',
      None,
      'memory of each device that runs may use; unit: 10^9 bytes',
      flag_values=flag_values,
  )
  flags.DEFINE_float(
      'device_tflops',
      None,
      'peak rate of each device in the type of model.dtype; unit: 10^12 FLOPs per second',
      flag_values=flag_values,
  )
  flags.DEFINE_float(
      'utilisation',
      budget.UTILISATION,
      'fraction of device_tflops that training reaches',
      flag_values=flag_values,
  )
  flags.DEFINE_boolean(
      'analyze',
      False,
      "for --dry_run: compile for the devices here and compare XLA's memory use with the estimate",
      flag_values=flag_values,
  )
  flags.DEFINE_string(
      'target',
      None,
      'for --analyze: devices to compile for, which need not be here: NAME or NAME:TOPOLOGY, such'
      f' as h100:8 or v5e:4x4; one of {", ".join(targets.TARGETS)}',
      flag_values=flag_values,
  )
  flags.DEFINE_integer(
      'only',
      None,
      'for --analyze: number of rows of the table to compile, the first ones',
      flag_values=flag_values,
      lower_bound=1,
  )
  path_flags.define(
      'output', None, 'for --target: JSON file to write the analysis to', flag_values
  )


@dataclasses.dataclass(frozen=True)
class Options:
  """The tables that a dry run shows besides that of runs and their cost."""

  machine: cost_lib.Machine | None = None  # to plan for, by arithmetic
  analyze: bool = False
  target: targets.Slice | None = None  # to compile for; None: the devices here
  only: int | None = None  # number of groups to compile
  output: Path | None = None  # of the analysis of a target


def check(flag_values: flags.FlagValues) -> Options:
  """The options that the flags state; BadInput if they contradict each other."""
  analyze, target = flag_values['analyze'].value, flag_values['target'].value
  given = [name for name in (*_MACHINE, 'utilisation') if flag_values[name].present]
  asked = [*given, 'analyze'] if analyze else given
  if asked and not flag_values['dry_run'].value:
    raise BadInput(f'--{asked[0]}: must be given with --dry_run; training uses the devices here')
  for name, needs in (('target', 'analyze'), ('only', 'analyze'), ('output', 'target')):
    if flag_values[name].value is not None and not flag_values[needs].value:
      raise BadInput(f'--{name}: must be given with --{needs}')
  if analyze and target is not None and given:
    raise BadInput(f'--{given[0]}: must not be given with --target, whose devices are known')
  if not given:
    found = None if target is None else targets.parse(target)
    if found is not None:
      targets.check(found.target.platform)
    output = flag_values['output'].value
    if output is not None and not Path(output).absolute().parent.is_dir():
      raise BadInput(f'--output={output}: its folder does not exist')
    if output is not None and Path(output).is_dir():
      raise BadInput(f'--output={output}: is a folder, must be a file')
    return Options(
        analyze=analyze,
        target=found,
        only=flag_values['only'].value,
        output=None if output is None else Path(output),
    )
  if analyze:
    raise BadInput(f'--{given[0]}: must not be given with --analyze, which uses the devices here')
  for name in _MACHINE:
    if name not in given:
      raise BadInput(f'--{name}: missing, must be given with --{given[0]}')
  values = {name: flag_values[name].value for name in (*_MACHINE, 'utilisation')}
  for name, value in values.items():
    if not 0 < value < math.inf:
      raise BadInput(f'--{name}={value}: must be a number above 0')
  if values['utilisation'] > 1:
    raise BadInput(f'--utilisation={values["utilisation"]}: must not be above 1')
  return Options(
      machine=cost_lib.Machine(
          devices=values['devices'],
          memory_bytes=values['device_memory_gb'] * 1e9,
          flops_per_second=values['device_tflops'] * 1e12,
          utilisation=values['utilisation'],
      )
  )


def show(
    sweep: app.SweepRequest,
    options: Options,
    workdir: Path | None = None,
    reused: Sequence[Path] = (),
    device: Mapping[str, str] | None = None,
) -> None:
  """Prints the plan of a sweep.

  Args:
    sweep: the sweep.
    options: the tables to show.
    workdir: if a sweep has begun in this folder, prints also what is left of it to train.
    reused: workdirs of other sweeps; prints also what is left without the runs to reuse.
    device: that these must have been trained on; see start.start.

  Raises:
    BadInput: the sweep cannot be planned, or the folder cannot hold it; see sweeps.check_workdir.
  """
  configs = sweep.selected(sweep.runs.configs)
  rest, told = configs, []  # the runs left to train, and lines on the others
  runs = sweeps.check_workdir(workdir, sweep.runs) if workdir else sweep.runs
  if workdir and (workdir / 'sweep.json').exists():
    rest = _unfinished(sweep, runs, workdir)
    ended = len(configs) - len(rest)
    told.append(f'{workdir}: {ended:,} of {len(configs):,} runs have ended')
  machine, uses_devices = options.machine, options.analyze and options.target is None
  if uses_devices:
    environment.set_here(environment.worker_environment())
  environment.check()
  if options.target is not None and options.target.target.platform == 'gpu':
    environment.set_here(environment.xla_flags(GPU_FLAGS, os.environ))  # as a worker has them
  if uses_devices:
    environment.check_devices()
  else:
    shapes.trace_on_cpu()
  source = prepare.data_config(next(iter(configs.values())))
  if workdir:
    prepare.check_workdir(source, workdir)
  vocabulary_size = prepare.vocabulary_size(source)
  if source.source == 'text' and not tokens.is_token_folder(source.path):
    sources.find(source.path)  # a path that does not exist is refused here too
  console = Console()
  if not console.is_terminal:
    console = Console(width=WIDTH)
  title = f'{sweep.config_file} at scale {sweep.scale}'
  if sweep.extensions is not None:
    extension_trace.check(sweep.config_file, configs)
  _trace(configs, vocabulary_size)
  if reused and rest:
    copied, line = reusable.find(sweep, rest, workdir, reused, device)
    rest = {name: config for name, config in rest.items() if name not in copied}
    told.append(line)
  groups = cost_lib.groups(configs, vocabulary_size)
  plan = cost_lib.plan(groups)
  closing = [_totals(plan)]
  by_group = machine is not None or len(configs) > MOST_ROWS
  if machine:
    placed = [cost_lib.place(group, machine, vocabulary_size) for group in groups]
    tables = _placements(title, groups, placed)
    closing += _summary(groups, placed, machine)
  elif by_group:
    tables = (_costs_of_groups(title, groups),)
  else:
    tables = (_costs_of_runs(title, configs, vocabulary_size),)
  if told:
    closing += told
    if rest:
      left = cost_lib.groups(rest, vocabulary_size)
      closing.append(f'the rest, from the start of each run: {_totals(cost_lib.plan(left))}')
      if machine:
        placed = [cost_lib.place(group, machine, vocabulary_size) for group in left]
        tables += _placements(f'the rest of {title}', left, placed)
        closing += _summary(left, placed, machine)
  if by_group and len(groups) > MOST_ROWS:
    closing.insert(0, f'... and {len(groups) - MOST_ROWS:,} more groups')
  if uses_devices:
    tables += (_analyses(groups[: options.only], vocabulary_size, console),)
  elif options.target is not None:
    found = target_report.analyze(groups[: options.only], vocabulary_size, options.target)
    tables = (target_report.table(found, options.target),)
    closing += target_report.summary(found, options.target)
    if options.output is not None:
      target_report.write(options.output, found, options.target)
  console.print(*tables)
  for line in closing:
    display.line(console, line)


def _unfinished(sweep: app.SweepRequest, runs: Runs, workdir: Path) -> dict[str, Config]:
  """The runs to train now that a workdir has no result of; failed ones are trained again."""
  extension_copy.check(sweep, workdir, sweeps.read_sweep(workdir).extensions)
  configs = sweep.selected(runs.configs)
  results = {name: run_files.read_result(run_files.run_dir(workdir, name)) for name in configs}
  return {
      name: config
      for name, config in configs.items()
      if (result := results[name]) is None or result.status == 'failed'
  }


def _totals(plan: cost_lib.Plan) -> str:
  return (
      f'{plan.runs:,} runs, {plan.tokens:,} tokens, {plan.flops:.2e} FLOPs;'
      f' {plan.populations} populations, {plan.executables} executables to compile'
  )


def _trace(configs: Mapping[str, Config], vocabulary_size: int) -> None:
  """Traces each architecture, each in a fraction of a second; shows progress if there are many."""
  found = {shapes.architecture(config): config for config in configs.values()}
  console = Console(stderr=True)
  text = f'tracing {len(found):,} architectures for their FLOPs and memory'
  if len(found) > MOST_SILENT and not console.is_terminal:
    print(text, file=sys.stderr)
  with console.status('tracing') as status:
    for number, config in enumerate(found.values(), 1):
      if len(found) > MOST_SILENT:
        status.update(f'{text}: {number:,}')
      try:
        shapes.step_flops(config, vocabulary_size)
      except MemoryError as error:
        raise BadInput(
            f'config.data.sequence_length={config["data"]["sequence_length"]}: its step cannot be'
            f' traced on this machine: {error}'
        ) from error


def _table(title: str, first: str, *columns: str) -> Table:
  table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
  table.add_column(first, overflow='fold', min_width=20)
  for column in columns:
    table.add_column(column, justify='right', no_wrap=True)
  return table


def _costs_of_runs(title: str, configs: Mapping[str, Config], vocabulary_size: int) -> Table:
  table = _table(title, 'run', 'parameters', 'tokens', 'FLOPs')
  for name, config in configs.items():
    table.add_row(
        name,
        f'{shapes.parameters(config):,}',
        f'{cost_lib.tokens(config):,}',
        f'{cost_lib.train_flops(config, vocabulary_size):.2e}',
    )
  return table


def _costs_of_groups(title: str, groups: Sequence[cost_lib.Group]) -> Table:
  table = _table(title, 'runs that share executables', 'runs', 'parameters', 'tokens', 'FLOPs')
  for group in groups[:MOST_ROWS]:
    table.add_row(
        group.name,
        f'{group.runs:,}',
        f'{shapes.parameters(group.config):,}',
        f'{group.tokens:,}',
        f'{group.flops:.2e}',
    )
  return table


def _placements(
    title: str, groups: Sequence[cost_lib.Group], placed: Sequence[cost_lib.Placed]
) -> tuple[Table, Table]:
  """Two tables: the placement and time of each group, and its memory."""
  where = _table(
      title,
      'runs that share executables',
      *('runs', 'parameters', 'layout', 'members', 'microbatches', 'remat'),
      *('FLOPs', 'GB', 'hours'),
  )
  memory = _table(
      'peak memory of a step on each device, without the text: GB (10^9 bytes)',
      'runs that share executables',
      *('params', 'optimizer', 'gradients', 'activations', 'total'),
  )
  for group, placed_group in zip(groups[:MOST_ROWS], placed):
    placement, parts = placed_group.placement, placed_group.memory
    where.add_row(
        group.name,
        f'{group.runs:,}',
        f'{shapes.parameters(group.config):,}',
        placement.layout,
        str(placement.members),
        str(placement.microbatches),
        placement.remat,
        f'{group.flops:.2e}',
        f'{parts.total / 1e9:.2f}',
        'does not fit' if placed_group.hours is None else f'{placed_group.hours:,.2f}',
    )
    numbers = (parts.params, parts.optimizer, parts.gradients, parts.activations, parts.total)
    memory.add_row(group.name, *(f'{number / 1e9:.2f}' for number in numbers))
  return where, memory


def _analyses(
    groups: Sequence[cost_lib.Group], vocabulary_size: int, console: Console
) -> Table:
  table = _table(
      "MB (10^6 bytes) on a device: estimate / XLA's count for the compiled step",
      'runs that share executables',
      *('layout', 'members', 'params, optimizer / arguments'),
      *('gradients, activations / temporary', 'total', 'ratio'),
  )
  with console.status('compiling'):
    for found in memory_analysis.analyze(groups, vocabulary_size):
      estimate = found.estimate
      table.add_row(
          found.group.name,
          found.placement.layout,
          str(found.placement.members),
          _pair(estimate.params + estimate.optimizer, found.arguments),
          _pair(estimate.gradients + estimate.activations, found.temporary),
          _pair(estimate.total, found.total),
          f'{estimate.total / found.total:.2f}',
      )
  return table


def _pair(estimate: float, counted: float) -> str:
  return f'{estimate / 1e6:,.2f} / {counted / 1e6:,.2f}'


def _summary(
    groups: Sequence[cost_lib.Group],
    placed: Sequence[cost_lib.Placed],
    machine: cost_lib.Machine,
) -> list[str]:
  """The total time, and the groups that do not fit, in sentences."""
  plural = 's' if machine.devices > 1 else ''
  types = ' and '.join(dict.fromkeys(group.config['model']['dtype'] for group in groups))
  lines = [
      f'{sum(group.hours or 0 for group in placed):,.2f} hours of training on {machine.devices}'
      f' device{plural}, one row after another, at {machine.utilisation:.0%} of'
      f' {machine.flops_per_second / 1e12:g} TFLOP/s in {types} (assumed; --utilisation), without'
      ' startup, compilation and evaluation'
  ]
  too_large = [(group, p) for group, p in zip(groups, placed) if p.hours is None]
  if too_large:
    named = ', '.join(
        f'{group.name} ({p.memory.total / 1e9:.1f} GB at least)'
        for group, p in too_large[:MOST_NAMED]
    )
    more = f' and {len(too_large) - MOST_NAMED:,} more' if len(too_large) > MOST_NAMED else ''
    lines.append(
        f'{len(too_large):,} of {len(groups):,} rows do not fit {machine.memory_bytes / 1e9:g} GB,'
        f' of which {placement_lib.USABLE:.0%} are usable, and are not counted in the hours:'
        f' {named}{more}'
    )
  return lines
