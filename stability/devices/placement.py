"""Where runs are trained: layout, runs on a device, microbatches and remat, chosen by arithmetic.

The layouts are listed in stability/devices/layout.py. They are tried in this order:

  single         on a CPU, where one program per core is fastest (BUILD_NOTES.md)
  population     on accelerators: the runs are spread over the devices, and a device holds as many
                 as fit with whole batches; smaller parts of more runs would be no faster
  data_parallel  instead, where a device holds no second run and there are fewer runs than devices
  sharded        where parameters, optimizer state and gradients of one run outgrow a device

Within a layout, as few microbatches as fit while each has MIN_TOKENS on a device; then remat, which
costs a third more FLOPs; smaller microbatches last, since there moving the weights costs more.

Bytes come from traced programs (stability/devices/shapes.py); importing this module imports no jax.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from stability.devices import shapes
from stability.errors import BadInput

AnyConfig = Mapping[str, Any]  # resolved or static: nested mappings

MOST_MEMBERS = 32  # on a device: small models stop gaining well before
USABLE = 0.9  # of a device's memory; the rest is for the text, workspaces and fragmentation
# Adding up a gradient moves 12 bytes per weight, remat costs 2 FLOPs per weight and token: on an
# H100 (3.3 TB/s, half of 990 TFLOP/s) they are equal near 900 tokens per microbatch.
MIN_TOKENS = 1_024


@dataclasses.dataclass(frozen=True)
class Placement:
  """How the runs of one static config are trained."""

  layout: str  # single | population | data_parallel | sharded
  members: int  # runs on a device; 1 except in a population
  microbatches: int  # equal parts of a device's batch, one after another; gradients are added up
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
    """All of them."""
    return self.params + self.optimizer + self.gradients + self.activations


class DoesNotFit(BadInput):
  """No placement of a run fits the devices."""

  def __init__(self, message: str, smallest: Placement):
    super().__init__(message)
    self.smallest = smallest  # the placement that needs least


def choose(
    config: AnyConfig,
    devices: int,
    memory_bytes: float | None,
    platform: str,
    runs: int,
    vocabulary_size: int,
) -> Placement:
  """The placement of the runs of one static config; whatever the config states of it is kept.

  Args:
    config: resolved or static.
    devices: number of devices of the worker.
    memory_bytes: of each device; None: unknown, and everything is taken to fit.
    platform: of the devices: cpu, gpu or tpu.
    runs: that share the static config.
    vocabulary_size: of the tokens.

  Raises DoesNotFit where nothing fits, BadInput where what the config states is impossible.
  """

  def fits(placement: Placement) -> bool:
    if memory_bytes is None:
      return True
    needed = memory(config, placement, devices, vocabulary_size).total
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
        f' config.data.batch_size={config["data"]["batch_size"]}, and the part of each of'
        f' {devices} devices where they share a batch'
    )
  stated = config['parallel']['layout'], config['parallel']['remat']
  if len(candidates) == 1 and 'auto' not in stated:
    return candidates[0]  # the config states all of it, and arithmetic may be wrong

  def needed(placement: Placement) -> float:
    return memory(config, placement, devices, vocabulary_size).total

  smallest = min(candidates, key=needed)
  raise DoesNotFit(
      f'config.model.width={config["model"]["width"]}, depth={config["model"]["depth"]}:'
      f' a run does not fit: it needs {needed(smallest) / 1e9:.1f} GB on each device'
      f' ({describe(smallest)}), there are {devices} x {memory_bytes / 1e9:.1f}'
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
  """The layouts that may be chosen, in the order in which they are tried."""
  stated, members = config['parallel']['layout'], config['parallel']['members']
  batch_size = f'config.data.batch_size={config["data"]["batch_size"]}'
  divides = config['data']['batch_size'] % devices == 0
  if stated in ('data_parallel', 'sharded') and not divides:
    raise BadInput(f'config.parallel.layout={stated}: {devices} devices must divide {batch_size}')
  if stated not in ('auto', 'population') and members not in (None, 1):
    raise BadInput(f'config.parallel.members={members}: must be unset or 1 in the layout {stated}')
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
  """The placements of a layout, from the fastest to the smallest; one member unless stated."""
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
  """Sequences of a run's batch on one device."""
  return config['data']['batch_size'] // (devices if layout in ('data_parallel', 'sharded') else 1)


def memory(config: AnyConfig, placement: Placement, devices: int, vocabulary_size: int) -> Memory:
  """The peak memory of a step on each device, without the text.

  The peak is reached in the gradient or in the optimizer. XLA was seen to reserve one more number
  per parameter throughout: for the update, or for a copy of what it is computed from.
  """
  shards = devices if placement.layout == 'sharded' else 1
  rows = _sequences(config, placement.layout, devices) // placement.microbatches
  state = shapes.state_bytes(config, vocabulary_size)
  stored = shapes.gradient_bytes(
      config, vocabulary_size, rows=rows, shards=shards, remat=placement.remat == 'block'
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
