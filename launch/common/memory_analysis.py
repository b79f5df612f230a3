"""launch.sweep --dry_run --analyze: compares the memory of a compiled step with the estimate."""

import dataclasses
from collections.abc import Iterator, Sequence

from launch.common import environment
from stability import config as config_lib
from stability.data import tokens
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
  outputs: int  # bytes of outputs that do not reuse the memory of arguments
  temporary: int  # bytes of gradients, updates and activations

  @property
  def total(self) -> int:
    """Total bytes, as counted by XLA."""
    return self.arguments + self.outputs + self.temporary


def use_worker_environment() -> None:
  """Gives this process the environment of a worker, which jax reads when it is imported."""
  environment.set_here(environment.worker_environment())


def analyze(groups: Sequence[cost_lib.Group], vocabulary_size: int) -> Iterator[Analysis]:
  """Compiles the quiet step of each group for the devices here, as a worker does.

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
    yield _analyze_group(group, placement, vocabulary_size, platform)


def _analyze_group(
    group: cost_lib.Group, placement: Placement, vocabulary_size: int, platform: str
) -> Analysis:
  import jax

  from stability.devices import ahead_of_time
  from stability.step import train_step

  static, hparams = config_lib.split(group.config)
  programs = train_step.programs(
      static,
      vocabulary_size,
      microbatches=placement.microbatches,
      remat=placement.remat == 'block',
      fused=platform == 'gpu',
  )
  step = programs.steps['quiet']
  state = jax.eval_shape(programs.init, train_step.arrays(hparams))
  if placement.layout == 'population':
    step = jax.vmap(step, (None, 0))
    state = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((placement.members, *a.shape), a.dtype), state
    )
  count = ahead_of_time.text_tokens(static)
  text = jax.ShapeDtypeStruct((count,), tokens.smallest_dtype(vocabulary_size))
  lowered = jax.jit(step, donate_argnums=1).lower({'text': text}, state)
  found = lowered.compile().memory_analysis()
  return Analysis(
      group=group,
      placement=placement,
      estimate=placement_lib.memory(group.config, placement, 1, vocabulary_size, platform),
      arguments=found.argument_size_in_bytes - count * text.dtype.itemsize,
      outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
      temporary=found.temp_size_in_bytes,
  )
