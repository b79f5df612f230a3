"""The table, summary and JSON file of launch.sweep --dry_run --analyze --target."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from launch.common import display, target_analysis
from launch.common.target_analysis import Analysis, Program
from stability.devices import cost as cost_lib
from stability.devices.targets import LAUNCH_SECONDS, Slice
from stability.storage import files


def analyze(
    groups: Sequence[cost_lib.Group], vocabulary_size: int, found: Slice
) -> list[Analysis]:
  """Compiles the programs of all groups, and says on standard error which one it is at."""
  console = Console(stderr=True)
  done = 0

  def show(name: str, kind: str) -> None:
    text = f'compiling for {found.name}: group {done + 1} of {len(groups)} ({name}), {kind}'
    if console.is_terminal:
      status.update(text)
    else:
      display.line(console, text)

  analyses = []
  with console.status(f'compiling for {found.name}') as status:
    for analysis in target_analysis.analyze(groups, vocabulary_size, found, show):
      analyses.append(analysis)
      done += 1
  return analyses


def table(analyses: Sequence[Analysis], found: Slice) -> Table:
  """A row for each program."""
  shown = Table(
      title=f'compiled for {found.name}; per device, s/step estimated',
      box=box.SIMPLE,
      padding=(0, 1, 0, 0),
  )
  shown.add_column('runs that share executables', overflow='fold', min_width=20)
  for column in (
      *('runs', 'layout', 'members', 'microbatches', 'program', 'GB', 'GB by arithmetic'),
      *('kernels', 'collectives', 'compile s', 's/step'),
  ):
    shown.add_column(column, justify='right', overflow='fold')
  for analysis in analyses:
    place = analysis.placement
    microbatches = f'{place.microbatches}{", remat" if place.remat == "block" else ""}'
    about = (
        analysis.group.name,
        f'{analysis.group.runs:,}',
        place.layout,
        str(place.members),
        microbatches,
    )
    if not analysis.programs:
      total = f'{analysis.estimate.total / 1e9:.2f}'
      shown.add_row(*about, analysis.refusal.partition(':')[0], '', total, '', '', '', '')
    for kind, program in analysis.programs.items():
      shown.add_row(
          *about,
          kind,
          f'{program.memory_bytes / 1e9:.2f}',
          f'{analysis.estimate.total / 1e9:.2f}' if kind == 'quiet' else '',
          f'{program.kernels:,}',
          _collectives(program),
          f'{program.compile_seconds:.0f}',
          f'{analysis.seconds[kind]:.2g}',
      )
      about = ('',) * len(about)
  return shown


def _collectives(program: Program) -> str:
  return ', '.join(
      f'{each["count"]} {kind} ({each["bytes"] / 1e6:,.0f} MB)'
      for kind, each in program.collectives.items()
  )


def summary(analyses: Sequence[Analysis], found: Slice) -> list[str]:
  """Sentences on the device-hours, how they are estimated, and what does not fit."""
  target = found.target
  hours = sum(analysis.device_hours for analysis in analyses)
  runs = sum(analysis.group.runs for analysis in analyses if not analysis.refusal)
  launch = LAUNCH_SECONDS[target.platform]
  launches = f', plus {launch * 1e6:g} us a kernel' if launch else ''
  lines = [
      f'{hours:,.2f} device-hours of {found.name.partition(":")[0]} for {runs:,} runs (estimate):'
      f' the larger of FLOPs at {target.bfloat16_flops / 1e12:g} TFLOP/s (bfloat16; float32'
      f' {target.float32_flops / 1e12:g}) and bytes at {target.bytes_per_second / 1e12:g} TB/s'
      f'{launches}, plus collectives at {target.link_bytes_per_second / 1e9:g} GB/s; real steps are'
      f' slower. Rates: {target.source}'
  ]
  unordered = sum(p.unordered_scatters for a in analyses for p in a.programs.values())
  if unordered and target.platform == 'gpu':
    lines.append(
        f'{unordered:,} scatters add up in no fixed order: two equal runs may round differently'
    )
  lines += [f'{a.group.name}: {a.refusal}' for a in analyses if a.refusal]
  return lines


def write(path: Path, analyses: Sequence[Analysis], found: Slice) -> None:
  """Writes all numbers as JSON."""
  files.write_json(
      path,
      {
          'target': found.name,
          'source': found.target.source,
          'device_hours': sum(analysis.device_hours for analysis in analyses),
          'groups': [
              {
                  'name': analysis.group.name,
                  'runs': analysis.group.runs,
                  'placement': dataclasses.asdict(analysis.placement),
                  'devices': analysis.devices,
                  'memory_by_arithmetic': dataclasses.asdict(analysis.estimate),
                  'programs': {
                      kind: dataclasses.asdict(program) | {'seconds': analysis.seconds[kind]}
                      for kind, program in analysis.programs.items()
                  },
                  'device_hours': analysis.device_hours,
                  'refusal': analysis.refusal,
              }
              for analysis in analyses
          ],
      },
  )
