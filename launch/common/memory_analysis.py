"""launch.sweep --dry_run --analyze: XLA's own account of a step's memory beside the arithmetic."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

from launch.common import environment
from stability import config as config_lib
from stability.data import tokens
from stability.devices import cost as cost_lib
from stability.devices import placement as placement_lib
from stability.devices.placement import Memory, Placement
from stability.errors import BadInput

TEXT_TOKENS = 2**20  # of the text that a step is compiled for; its bytes are not counted


@dataclasses.dataclass(frozen=True)
class Analysis:
  """A group's step as it was compiled for one device."""

  group: cost_lib.Group
  placement: Placement
  arithmetic: Memory
  arguments: int  # bytes, the text apart: params and optimizer state
  outputs: int  # bytes that do not take the place of arguments
  temporary: int  # bytes: gradients and activations

  @property
  def total(self) -> int:
    """Bytes by XLA's account."""
    return self.arguments + self.outputs + self.temporary


def analyze(groups: Sequence[cost_lib.Group], vocabulary_size: int) -> Iterator[Analysis]:
  """Compiles each group's quiet step for the devices that are here, as a worker would.

  Raises BadInput for a group that does not fit, and for the layouts that spread one run over
  devices: their step is not a program of one device.
  """
  os.environ.update(environment.worker_environment())  # read when jax is first imported
  import jax

  devices = jax.local_devices()
  memory = (devices[0].memory_stats() or {}).get('bytes_limit')
  for group in groups:
    placement = placement_lib.choose(
        group.config, len(devices), memory, devices[0].platform, group.runs, vocabulary_size
    )
    if placement.layout not in ('single', 'population'):
      raise BadInput(
          f'--analyze: {group.name} is placed {placement.layout}, must be single or population;'
          ' choose with --config.parallel.layout'
      )
    yield _analyzed(group, placement, vocabulary_size)


def _analyzed(group: cost_lib.Group, placement: Placement, vocabulary_size: int) -> Analysis:
  import jax

  from stability.step import train_step

  static, hyper = config_lib.split(group.config)
  programs = train_step.programs(static, vocabulary_size)
  step, state = programs.steps['quiet'], jax.eval_shape(programs.init, train_step.arrays(hyper))
  if placement.layout == 'population':
    step = jax.vmap(step, (None, 0))
    state = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((placement.members, *a.shape), a.dtype), state
    )
  count = max(TEXT_TOKENS, 2 * (static.data.sequence_length + 1))
  text = jax.ShapeDtypeStruct((count,), tokens.smallest_dtype(vocabulary_size))
  lowered = jax.jit(step, donate_argnums=1).lower({'text': text}, state)
  found = lowered.compile().memory_analysis()
  return Analysis(
      group=group,
      placement=placement,
      arithmetic=placement_lib.memory(group.config, placement, 1, vocabulary_size),
      arguments=found.argument_size_in_bytes - count * text.dtype.itemsize,
      outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
      temporary=found.temp_size_in_bytes,
  )
