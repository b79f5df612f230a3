"""launch.sweep --dry_run --analyze: compares the memory of a compiled step with the estimate."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from stability import config as config_lib
from stability.devices import cost as cost_lib
from stability.devices import placement as placement_lib
from stability.devices.placement import Memory, Placement
from stability.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Analysis:
  """The memory of a group's step, compiled for one device."""

  group: cost_lib.Group
  placement: Placement
  estimate: Memory
  arguments: int  # bytes of params and optimizer state; the text is left out
  temporary: int  # bytes of gradients, updates and activations
  total: int  # bytes of these and of outputs that do not reuse the memory of arguments


def analyze(groups: Sequence[cost_lib.Group], vocabulary_size: int) -> Iterator[Analysis]:
  """Compiles the quiet step of each group for a device here, as a worker does.

  Raises BadInput for a group that does not fit, and for layouts that spread one run over several
  devices: their step is not a program of one device.
  """
  import jax

  from stability.devices import make_layout

  devices = jax.local_devices()
  platform = make_layout.platform(devices[0])
  memory = (devices[0].memory_stats() or {}).get('bytes_limit')
  for group in groups:
    placement = placement_lib.choose(
        group.config, len(devices), memory, platform, group.runs, vocabulary_size
    )
    if placement.layout not in ('single', 'population'):
      raise BadInput(
          f'--analyze: {group.name} is placed {placement.layout}, must be single or population;'
          ' choose with --config.parallel.layout'
      )
    yield _analyze_group(group, placement, vocabulary_size, devices[:1])


def _analyze_group(
    group: cost_lib.Group, placement: Placement, vocabulary_size: int, devices: Sequence[Any]
) -> Analysis:
  from stability.devices import ahead_of_time, hlo, make_layout
  from stability.step import train_step

  static, hparams = config_lib.split(group.config)
  platform = make_layout.platform(devices[0])
  lowered = ahead_of_time.lower(
      static,
      train_step.arrays(hparams),
      vocabulary_size,
      placement,
      devices,
      platform,
      kinds=('quiet',),
  )
  compiled = lowered['quiet'].compile()
  text_bytes = ahead_of_time.text_bytes(static, vocabulary_size)
  return Analysis(
      group=group,
      placement=placement,
      estimate=placement_lib.memory(group.config, placement, 1, vocabulary_size, platform),
      arguments=compiled.memory_analysis().argument_size_in_bytes - text_bytes,
      temporary=compiled.memory_analysis().temp_size_in_bytes,
      total=hlo.memory_bytes(compiled) - text_bytes,
  )
