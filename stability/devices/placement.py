"""Placement of runs on devices: chooses layout, runs per device, microbatches and remat.

The choice is made by arithmetic. The layouts, which are described in stability/devices/layout.py,
are tried in this order:

  single         on a CPU, where one program per core is fastest (BUILD_NOTES.md)
  population     on accelerators: the runs are spread over the devices, and each device holds as
                 many as fit; splitting batches further to fit more runs would be no faster
  data_parallel  instead, if a second run does not fit a device and there are fewer runs than
                 devices
  sharded        if parameters, optimizer state and gradients of one run do not fit a device

Within a layout, the first choice is as few microbatches as fit, as long as each has MIN_TOKENS on a
device; the second is remat, which costs a third more FLOPs; the last is smaller microbatches, where
moving the weights costs more than remat.

Byte counts come from traced programs (stability/devices/shapes.py). Importing this module does not
import jax.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from stability.devices import shapes
from stability.errors import BadInput

AnyConfig = Mapping[str, Any]  # resolved or static: nested mappings

MOST_MEMBERS = 32  # runs per device; small models stop gaining well below this
USABLE = 0.9  # of a device's memory; the rest is for the text, workspaces and fragmentation
# Accumulating a gradient moves 12 bytes per weight; remat costs 2 FLOPs per weight and token. On an
# H100 (3.3 TB/s, half of 990 TFLOP/s) both take equally long near 900 tokens per microbatch.
MIN_TOKENS = 1_024


@dataclasses.dataclass(frozen=True)
class Placement:
  """How the runs of one static config are trained."""

  layout: str  # single | population | data_parallel | sharded
  members: int  # runs per device; 1 except in a population
  microbatches: int  # equal parts of a device's batch, for gradient accumulation
  remat: str  # none | block


@dataclasses.dataclass(frozen=True)
class Memory:
  """Peak memory of a step on each device, in bytes."""

  params: float
  optimizer: float
  gradients: float  # and updates
  activations: float

  @property
  def total(self) -> float:
    """The sum of all four."""
    return self.params + self.optimizer + self.gradients + self.activations


class DoesNotFit(BadInput):
  """No placement of a run fits the devices."""

  def __init__(self, message: str, smallest: Placement):
    super().__init__(message)
    self.smallest = smallest  # the placement that needs the least memory


def choose(
    config: AnyConfig,
    devices: int,
    memory_bytes: float | None,
    platform: str,
    runs: int,
    vocabulary_size: int,
) -> Placement:
  """Chooses the placement of the runs of one static config; keeps whatever the config states.

  Args:
    config: a resolved or static config.
    devices: number of devices of the worker.
    memory_bytes: memory of each device; None: unknown, in which case everything is assumed to fit.
    platform: of the devices, see make_layout.platform.
    runs: number of runs with this static config that are to be trained.
    vocabulary_size: number of different tokens.

  Raises:
    DoesNotFit: no placement fits.
    BadInput: the placement that the config states is impossible.
  """

  def fits(placement: Placement) -> bool:
    if memory_bytes is None:
      return True
    needed = memory(config, placement, devices, vocabulary_size, platform).total
    return needed <= USABLE * memory_bytes

  def first_fit(layout: str) -> Placement | None:
    return next(filter(fits, _candidates(config, layout, devices)), None)

  layouts = _layouts(config, devices, platform)
  for layout in layouts:
    found = first_fit(layout)
    if found is None:
      continue
    if layout == 'population' and config['parallel']['members'] is None:
      members = [dataclasses.replace(found, members=n) for n in range(2, MOST_MEMBERS + 1)]
      fitting = [found, *filter(fits, members)]
      if len(fitting) == 1 and runs < devices and 'data_parallel' in layouts:
        return first_fit('data_parallel') or found
      return fitting[min(len(fitting), math.ceil(runs / devices)) - 1]
    return found
  candidates = [each for layout in layouts for each in _candidates(config, layout, devices)]
  if not candidates:
    raise BadInput(
        f'config.parallel.microbatches={config["parallel"]["microbatches"]}: must divide'
        f' config.data.batch_size={config["data"]["batch_size"]}, or the part of it on each of'
        f' {devices} devices in a layout that splits batches'
    )
  stated = config['parallel']['layout'], config['parallel']['remat']
  if len(candidates) == 1 and 'auto' not in stated:
    return candidates[0]  # the config states everything, and the estimate may be wrong

  def needed(placement: Placement) -> float:
    return memory(config, placement, devices, vocabulary_size, platform).total

  smallest = min(candidates, key=needed)
  raise DoesNotFit(
      f'config.model.width={config["model"]["width"]}, depth={config["model"]["depth"]}:'
      f' a run does not fit: it needs {needed(smallest) / 1e9:.1f} GB on each device'
      f' ({describe(smallest)}), but there are {devices} x {memory_bytes / 1e9:.1f}'
      f' GB, of which {USABLE:.0%} are usable',
      smallest,
  )


def describe(placement: Placement) -> str:
  """A placement in a few words."""
  return (
      f'{placement.layout}, {placement.members} members, {placement.microbatches} microbatches,'
      f' remat {placement.remat}'
  )


def _layouts(config: AnyConfig, devices: int, platform: str) -> tuple[str, ...]:
  """The layouts to try, in order; raises BadInput if the config states an impossible one."""
  stated, members = config['parallel']['layout'], config['parallel']['members']
  batch_size = f'config.data.batch_size={config["data"]["batch_size"]}'
  divides = config['data']['batch_size'] % devices == 0
  if stated in ('data_parallel', 'sharded') and not divides:
    raise BadInput(f'config.parallel.layout={stated}: {devices} devices must divide {batch_size}')
  if stated != 'auto':
    return (stated,)
  if members is not None:
    return ('population',)
  if platform == 'cpu':
    return ('single',)
  if devices > 1 and divides:
    return 'population', 'data_parallel', 'sharded'
  return ('population',)


def _candidates(config: AnyConfig, layout: str, devices: int) -> Iterator[Placement]:
  """The placements of a layout from fastest to smallest, with one member unless stated."""
  stated = config['parallel']
  members = stated['members'] or 1
  sequences = _sequences(config, layout, devices)
  parts = [stated['microbatches'] or 1]
  while stated['microbatches'] is None and sequences % (2 * parts[-1]) == 0:
    parts.append(2 * parts[-1])
  parts = [n for n in parts if sequences % n == 0]
  least = MIN_TOKENS / config['data']['sequence_length']
  large = [n for n in parts if n == 1 or sequences / n >= least]
  for some in (large, [n for n in parts if n not in large]):
    for remat in ('none', 'block') if stated['remat'] == 'auto' else (stated['remat'],):
      yield from (Placement(layout, members, n, remat) for n in some)


def _sequences(config: AnyConfig, layout: str, devices: int) -> int:
  """Number of sequences of a run's batch on each device."""
  return config['data']['batch_size'] // (devices if layout in ('data_parallel', 'sharded') else 1)


def memory(
    config: AnyConfig, placement: Placement, devices: int, vocabulary_size: int, platform: str
) -> Memory:
  """The peak memory of a step on each device, without the text.

  The peak is reached while computing the gradient or the optimizer's update. XLA was observed to
  reserve one more number per parameter throughout, for the update or for a copy of its inputs.
  """
  shards = devices if placement.layout == 'sharded' else 1
  rows = _sequences(config, placement.layout, devices) // placement.microbatches
  state = shapes.state_bytes(config, vocabulary_size)
  stored = shapes.gradient_bytes(
      config,
      vocabulary_size,
      rows=rows,
      shards=shards,
      remat=placement.remat == 'block',
      platform=platform,
  )
  summed = state.params if placement.microbatches > 1 else 0
  gradients = stored.gradients + (summed + state.params) / shards
  activations = stored.activations
  at_update = (summed + state.params + state.update) / shards
  if at_update > gradients + activations:
    gradients, activations = at_update, 0.0
  return Memory(
      params=placement.members * state.params / shards,
      optimizer=placement.members * state.optimizer / shards,
      gradients=placement.members * gradients,
      activations=placement.members * activations,
  )
