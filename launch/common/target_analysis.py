"""launch.sweep --dry_run --analyze --target: a sweep's programs, compiled for other devices."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
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
from stability.devices import cost as cost_lib
from stability.devices import placement as placement_lib
from stability.devices import shapes, targets
from stability.devices.placement import Memory, Placement
from stability.devices.targets import Slice
from stability.errors import BadInput
from stability.storage import files

HELPS = 'more --config.parallel.microbatches, or remat=block, or layout=sharded, need less'
# Packages whose versions decide what is compiled.
_COMPILERS = (
    *('jax', 'jaxlib', 'jax-cuda13-pjrt', 'jax-cuda13-plugin', 'nvidia-cudnn-cu13', 'libtpu'),
)


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
  refusal: str = ''  # why the group cannot be trained there: 'does not fit: ...', for example


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
  usable = target.usable_bytes(os.environ)
  refusal = ''
  try:
    placement = placement_lib.choose(
        group.config,
        len(devices),
        usable,
        target.planned_as,
        group.runs,
        vocabulary_size,
    )
  except placement_lib.DoesNotFit as error:
    placement, refusal = error.smallest, f'does not fit: {error}'
  used = len(devices)
  if placement.layout in ('single', 'population'):
    used = 1 if placement.layout == 'single' else min(used, group.runs)
  static, hparams = config_lib.split(group.config)
  estimate = placement_lib.memory(
      group.config, placement, len(devices), vocabulary_size, target.planned_as
  )
  programs, lowered = {}, {}
  if not refusal:
    try:
      lowered = ahead_of_time.lower(
          static,
          train_step.arrays(hparams),
          vocabulary_size,
          placement,
          devices[:used],
          target.platform,
      )
    except RuntimeError as error:  # without cuDNN, for example
      refusal = f'cannot be lowered: {targets.reason(error)}'
    text_bytes = 0
    if placement.layout in ('single', 'population'):
      text_bytes = ahead_of_time.text_bytes(static, vocabulary_size)
    for kind, program in lowered.items():
      on_program(group.name, kind)
      try:
        programs[kind] = _compile(kind, program, found, text_bytes)
      except _Refused as error:
        refusal = str(error)
        break
    refusal = refusal or _too_large(programs.values(), usable)
  seconds = {
      kind: _seconds(program, group.config, placement, used, vocabulary_size, found)
      for kind, program in programs.items()
  }
  hours = 0.0 if refusal else _device_hours(group, placement, used, seconds)
  return Analysis(group, placement, used, estimate, programs, seconds, hours, refusal)


class _Refused(Exception):
  """The compiler refuses a program, for lack of memory or for another reason."""


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
  except Exception as error:  # of jaxlib, of several types
    reason = targets.reason(error)
    if 'RESOURCE_EXHAUSTED' in reason:
      reason = reason.partition('RESOURCE_EXHAUSTED: ')[2]
      raise _Refused(f'does not fit: the program {kind}: {reason}; {HELPS}') from error
    raise _Refused(f'refused by the compiler: the program {kind}: {reason}') from error
  seconds = time.monotonic() - started
  memory, profile = compiled.memory_analysis(), hlo.profile(compiled.as_text())
  left_out = 0 if kind == 'evaluate' else text_bytes
  program = Program(
      kind=kind,
      memory_bytes=hlo.memory_bytes(compiled) - left_out,
      arguments_bytes=memory.argument_size_in_bytes - left_out,
      temporary_bytes=memory.temp_size_in_bytes,
      kernels=profile.kernels,
      bytes=profile.bytes,
      collectives={name: dataclasses.asdict(c) for name, c in profile.collectives.items()},
      largest=profile.largest,
      unordered_scatters=profile.unordered_scatters,
      compile_seconds=seconds,
  )
  if file.parts[0] != '~':
    with contextlib.suppress(OSError):  # if the folder cannot be written, compile again next time
      files.write_json(file, dataclasses.asdict(program))
  return program


def _cache_folder() -> Path:
  return environment.cache_folder().parent / 'targets'


def _digest(text: str, found: Slice) -> str:
  """A hash of everything that decides what a compilation gives and what is read from it."""
  from stability.devices import hlo

  code = [Path(module).read_text() for module in (__file__, hlo.__file__, targets.__file__)]
  versions = []
  for name in _COMPILERS:
    try:
      versions.append(f'{name}={importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      continue
  flags = settings.xla_flags_text(os.environ)
  parts = [text, found.name, flags, json.dumps(settings.recorded()), *versions, *code]
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:32]


def _read(file: Path) -> dict[str, Any] | None:
  try:
    found = files.read_json(file) if file.is_file() else None
  except (BadInput, OSError):  # compiled anew
    return None
  names = {field.name for field in dataclasses.fields(Program)}
  return found if found is not None and found.keys() == names else None


def _too_large(programs: Sequence[Program], usable_bytes: float) -> str:
  """Why programs do not fit a device; empty if they do."""
  largest = max(programs, key=lambda program: program.memory_bytes)
  if largest.memory_bytes <= usable_bytes:
    return ''
  return (
      f'does not fit: the program {largest.kind} needs {largest.memory_bytes / 1e9:.1f} of'
      f' {usable_bytes / 1e9:.1f} GB; its largest array is {largest.largest}; {HELPS}'
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
  from stability.step import sharpness

  target = found.target
  gradient = shapes.gradient_flops(config, vocabulary_size)
  if program.kind == 'evaluate':
    flops = gradient / 3  # no backward pass
  else:
    flops = shapes.step_flops(config, vocabulary_size)
    if placement.remat == 'block':
      flops += gradient / 3
    if program.kind == 'sharp':
      flops += sharpness.cost_in_gradients(config['optimizer']['name']) * gradient
  flops *= placement.members
  if placement.layout in ('data_parallel', 'sharded'):
    flops /= devices
  model = config['model']
  rate = target.flops_per_second(model['dtype'], model['matmul_precision'])
  moved = sum(_sent(kind, each['bytes'], devices) for kind, each in program.collectives.items())
  return (
      max(flops / rate, program.bytes / target.bytes_per_second)
      + program.kernels * targets.LAUNCH_SECONDS[target.platform]
      + moved / target.link_bytes_per_second
  )


def _sent(kind: str, result_bytes: int, devices: int) -> float:
  """Bytes that each device sends for collectives whose results have these bytes, by rings."""
  others = (devices - 1) / devices
  if kind == 'all-reduce':
    return 2 * others * result_bytes  # a reduce-scatter and an all-gather
  if kind == 'reduce-scatter':
    return (devices - 1) * result_bytes  # a device keeps a part of what it sends
  return result_bytes if kind.startswith('collective-') else others * result_bytes


def _device_hours(
    group: cost_lib.Group, placement: Placement, devices: int, seconds: Mapping[str, float]
) -> float:
  """Hours of devices for all runs of a group, packed as they would be, with probes.

  Runs of different length count with their mean.
  """
  together = devices * placement.members if placement.layout == 'population' else 1
  rounds = math.ceil(group.runs / together)
  config = group.config
  data, probe = config['data'], config['probe']
  steps = group.tokens / (group.runs * data['batch_size'] * data['sequence_length'])
  sharp, probed = (
      1 / probe[name] if probe[name] else 0.0 for name in ('sharpness_every_steps', 'every_steps')
  )  # shares of all steps; a sharp step takes the place of a probed one
  shares = {'quiet': 1 - probed, 'probed': probed - sharp, 'sharp': sharp}
  total = steps * sum(share * seconds[kind] for kind, share in shares.items() if share)
  total += 2 * data['validation_batches'] * seconds['evaluate']
  return rounds * devices * total / 3600
