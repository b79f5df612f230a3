"""launch.sweep --dry_run --analyze --target: a sweep's programs, compiled for other devices."""

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.common import environment
from stability import config as config_lib
from stability import settings
from stability.config import Config
from stability.data import tokens
from stability.devices import cost as cost_lib
from stability.devices import placement as placement_lib
from stability.devices import shapes, targets
from stability.devices.placement import Memory, Placement
from stability.devices.targets import Slice
from stability.errors import BadInput
from stability.storage import files

HELPS = 'more --config.parallel.microbatches, or remat=block, or layout=sharded, need less'
# Packages whose versions decide what is compiled.
_COMPILERS = ('jax', 'jaxlib', 'jax-cuda13-pjrt', 'jax-cuda13-plugin', 'libtpu')


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program, by its compiler's own account; all numbers are per device."""

  kind: str  # quiet, probed, sharp or evaluate
  memory_bytes: int  # at its peak, without the text
  arguments_bytes: int  # of it, the state
  temporary_bytes: int  # of it, gradients, updates and activations
  kernels: int
  bytes: int  # that the kernels read and write
  collectives: Mapping[str, Mapping[str, int]]  # by kind: count, bytes
  largest: str  # shape of the largest array that a kernel writes
  unordered_scatters: int  # sums whose rounding may differ from one time to the next
  compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Analysis:
  """A group of runs, compiled for a slice."""

  group: cost_lib.Group
  placement: Placement
  devices: int  # that are used
  estimate: Memory
  programs: Mapping[str, Program]
  seconds: Mapping[str, float]  # estimated, of each program
  device_hours: float  # estimated, of all runs of the group
  refusal: str = ''  # why the group cannot be trained there


def analyze(
    groups: Sequence[cost_lib.Group],
    vocabulary_size: int,
    found: Slice,
    on_program: Callable[[str, str], None],
) -> Iterator[Analysis]:
  """Compiles the programs of each group; `on_program` is told the group and the kind of each."""
  devices = targets.devices(found)
  for group in groups:
    yield _analyze_group(group, vocabulary_size, found, devices, on_program)


def _analyze_group(
    group: cost_lib.Group,
    vocabulary_size: int,
    found: Slice,
    devices: Sequence[Any],
    on_program: Callable[[str, str], None],
) -> Analysis:
  from stability.devices import ahead_of_time
  from stability.step import train_step

  target = found.target
  refusal = ''
  try:
    placement = placement_lib.choose(
        group.config,
        len(devices),
        target.memory_bytes,
        target.platform,
        group.runs,
        vocabulary_size,
    )
  except placement_lib.DoesNotFit as error:
    placement, refusal = error.smallest, str(error)
  used = len(devices)
  if placement.layout in ('single', 'population'):
    used = 1 if placement.layout == 'single' else min(used, group.runs)
  static, hparams = config_lib.split(group.config)
  estimate = placement_lib.memory(group.config, placement, len(devices), vocabulary_size)
  programs = {}
  if not refusal:
    lowered = ahead_of_time.lower(
        static,
        train_step.arrays(hparams),
        vocabulary_size,
        placement,
        devices[:used],
        target.platform,
    )
    text_bytes = 0
    if placement.layout in ('single', 'population'):
      token = tokens.smallest_dtype(vocabulary_size)
      text_bytes = ahead_of_time.text_tokens(static) * int(token.removeprefix('uint')) // 8
    for kind, program in lowered.items():
      on_program(group.name, kind)
      try:
        programs[kind] = _compile(kind, program, found, text_bytes)
      except _TooLarge as error:
        refusal = str(error)
        break
    refusal = refusal or _too_large(programs.values(), target)
  seconds = {
      kind: _seconds(program, group.config, placement, used, vocabulary_size, found)
      for kind, program in programs.items()
  }
  hours = 0.0 if refusal else _device_hours(group, placement, used, seconds)
  return Analysis(group, placement, used, estimate, programs, seconds, hours, refusal)


class _TooLarge(Exception):
  """The compiler says that a program needs more memory than a device has."""


def _compile(kind: str, lowered: Any, found: Slice, text_bytes: int) -> Program:
  """Compiles a program, or reads what an earlier compilation of the same program has shown."""
  from stability.devices import hlo

  text = lowered.as_text()
  file = _cache_folder() / f'{_digest(text, found)}.json'
  if (cached := _read(file)) is not None:
    return Program(**cached | {'kind': kind})
  started = time.monotonic()
  try:
    compiled = lowered.compile()
  except Exception as error:
    message = str(error).strip().splitlines()
    if 'RESOURCE_EXHAUSTED' in message[0]:
      reason = message[0].partition('RESOURCE_EXHAUSTED: ')[2]
      raise _TooLarge(f'the program {kind}: {reason}; {HELPS}') from error
    raise BadInput(
        f'--target={found.name}: its compiler refuses the program {kind}: {message[0]}'
    ) from error
  seconds = time.monotonic() - started
  memory, profile = compiled.memory_analysis(), hlo.profile(compiled.as_text())
  arguments = memory.argument_size_in_bytes - (0 if kind == 'evaluate' else text_bytes)
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  program = Program(
      kind=kind,
      memory_bytes=arguments + outputs + memory.temp_size_in_bytes,
      arguments_bytes=arguments,
      temporary_bytes=memory.temp_size_in_bytes,
      kernels=profile.kernels,
      bytes=profile.bytes,
      collectives={name: dataclasses.asdict(c) for name, c in profile.collectives.items()},
      largest=profile.largest,
      unordered_scatters=profile.unordered_scatters,
      compile_seconds=seconds,
  )
  if file.parts[0] != '~':
    files.write_json(file, dataclasses.asdict(program))
  return program


def _cache_folder() -> Path:
  return environment.cache_folder().parent / 'targets'


def _digest(text: str, found: Slice) -> str:
  """Of everything that decides the result of a compilation."""
  versions = []
  for name in _COMPILERS:
    try:
      versions.append(f'{name}={importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      continue
  flags = settings.xla_flags_text(os.environ)
  parts = [text, found.name, repr(found.target), flags, *versions]
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:32]


def _read(file: Path) -> dict[str, Any] | None:
  try:
    found = files.read_json(file) if file.is_file() else None
  except (BadInput, OSError):  # compiled anew
    return None
  names = {field.name for field in dataclasses.fields(Program)}
  return found if found is not None and found.keys() == names else None


def _too_large(programs: Sequence[Program], target: targets.Target) -> str:
  """Why programs do not fit a device; empty if they do."""
  largest = max(programs, key=lambda program: program.memory_bytes)
  if largest.memory_bytes <= target.memory_bytes:
    return ''
  return (
      f'the program {largest.kind} needs {largest.memory_bytes / 1e9:.1f} of'
      f' {target.memory_bytes / 1e9:.1f} GB; its largest array is {largest.largest}; {HELPS}'
  )


def _seconds(
    program: Program,
    config: Config,
    placement: Placement,
    devices: int,
    vocabulary_size: int,
    found: Slice,
) -> float:
  """An estimate of the time of one execution, a roofline.

  The larger of FLOPs over their peak rate and bytes over the memory's; then a launch for every
  kernel, and the collectives' bytes over the links. No kernel reaches its peak, so that real steps
  are slower; where kernels overlap, they are faster.
  """
  target = found.target
  flops = shapes.step_flops(config, vocabulary_size)
  if program.kind == 'evaluate':
    flops /= 3  # no backward pass
  elif placement.remat == 'block':
    flops *= 4 / 3
  flops *= placement.members
  if placement.layout in ('data_parallel', 'sharded'):
    flops /= devices
  model = config['model']
  rate = target.flops_per_second(model['dtype'], model['matmul_precision'])
  moved = sum(each['bytes'] for each in program.collectives.values())
  return (
      max(flops / rate, program.bytes / target.bytes_per_second)
      + program.kernels * targets.LAUNCH_SECONDS[target.platform]
      + moved / target.link_bytes_per_second
  )


def _device_hours(
    group: cost_lib.Group, placement: Placement, devices: int, seconds: Mapping[str, float]
) -> float:
  """Hours of devices for all runs of a group, packed as they would be, with probes."""
  together = devices * placement.members if placement.layout == 'population' else 1
  rounds = math.ceil(group.runs / together)
  config = group.config
  steps = config['schedule']['steps']
  probe = config['probe']
  total = steps * seconds['quiet']
  for kind, every in (('probed', probe['every_steps']), ('sharp', probe['sharpness_every_steps'])):
    if every:
      total += steps / every * (seconds[kind] - seconds['quiet'])
  total += 2 * config['data']['validation_batches'] * seconds['evaluate']
  return rounds * devices * total / 3600
