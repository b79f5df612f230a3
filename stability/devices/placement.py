"""Where runs go on devices, chosen by arithmetic on tensors: layout, members, microbatches, remat.

stability/devices/layouts.py says what the layouts are. This file imports no jax: a plan needs no
accelerator. What is tried, in this order, and why:

  single         on a CPU, where one program a core is fastest (BUILD_NOTES.md)
  population     on accelerators: the runs are spread over the devices, and a device holds as many
                 as fit with whole batches; smaller parts of more runs would be no faster
  data_parallel  instead, where a device holds no second run and there are fewer runs than devices
  sharded        where params, optimizer state and gradients of one run outgrow a device

Within a layout, as few microbatches as fit while each has TOKENS on a device; then remat, which
costs a third more FLOPs; smaller microbatches last: there the weights' traffic costs more.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from stability.errors import BadInput

AnyConfig = Mapping[str, Any]  # resolved or static: nested mappings

MOST_MEMBERS = 32  # on a device: small models stop gaining well before
USABLE = 0.9  # of a device's memory; the text, workspaces and fragmentation have the rest
# To add up a gradient moves 12 bytes a weight, remat costs 2 FLOPs a weight and token: on an H100
# (3.3 TB/s, half of 990 TFLOP/s) they are equal near 900 tokens a microbatch.
TOKENS = 1_024

FLOAT32 = 4  # bytes: parameters, optimizer state, gradients, logits and softmax
_BYTES = {'float32': 4, 'bfloat16': 2}
# Numbers a parameter. muon: one for matrices, Adam's two for embedding, head and norms: 2 at most.
# adafactor: a row and a column of each matrix, 1/64 of it at the most where widths are 128 or more.
_OPTIMIZER_STATE = {
    'adamw': 2,
    'adam_atan2': 2,
    'stable_adamw': 2,
    'lion': 1,
    'muon': 2,
    'adafactor': 1 / 64,
}


@dataclasses.dataclass(frozen=True)
class Placement:
  """How the runs of one static config are trained."""

  layout: str  # single | population | data_parallel | sharded
  members: int  # runs on a device; 1 but in a population
  microbatches: int  # equal parts of a device's batch, one after another; gradients are added up
  remat: str  # none | block


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each device at the fullest moment of a step."""

  params: float
  optimizer: float
  gradients: float  # and what is copied to renew the optimizer's state
  activations: float

  @property
  def total(self) -> float:
    """All of them."""
    return self.params + self.optimizer + self.gradients + self.activations


class DoesNotFit(BadInput):
  """No placement of a run fits the devices."""

  def __init__(self, said: str, smallest: Placement):
    super().__init__(said)
    self.smallest = smallest  # the one that needs least


def choose(
    config: AnyConfig,
    devices: int,
    memory_bytes: float | None,
    platform: str,
    runs: int,
    vocabulary_size: int,
) -> Placement:
  """The placement of the runs of one static config. What the config states of it is kept.

  Args:
    config: resolved or static.
    devices: the worker's.
    memory_bytes: of each device; None: unknown, and everything is taken to fit.
    platform: of the devices: cpu, gpu or tpu.
    runs: that share the static config.
    vocabulary_size: of the tokens.

  Raises DoesNotFit where nothing fits, BadInput where what the config states cannot be.
  """
  usable = math.inf if memory_bytes is None else USABLE * memory_bytes

  def needed(placement: Placement) -> float:
    return memory(config, placement, devices, vocabulary_size).total

  layouts = _layouts(config, devices, platform)
  ways = {layout: list(_ways(config, layout, devices)) for layout in layouts}
  fitting = {layout: [way for way in ways[layout] if needed(way) <= usable] for layout in layouts}
  if fitting.get('population') and config['parallel']['members'] is None:
    found = fitting['population'][0]
    members = [dataclasses.replace(found, members=n) for n in range(2, MOST_MEMBERS + 1)]
    shared = [found, *(placement for placement in members if needed(placement) <= usable)]
    if len(shared) > 1 or runs >= devices or not fitting.get('data_parallel'):
      return shared[min(len(shared), math.ceil(runs / devices)) - 1]
    return fitting['data_parallel'][0]
  for found in fitting.values():
    if found:
      return found[0]
  every = [way for found in ways.values() for way in found]
  if not every:
    raise BadInput(
        f'config.parallel.microbatches={config["parallel"]["microbatches"]}: must divide'
        f' config.data.batch_size={config["data"]["batch_size"]}, and the part of each of'
        f' {devices} devices where they share a batch'
    )
  if len(every) == 1 and 'auto' not in (config['parallel']['layout'], config['parallel']['remat']):
    return every[0]  # the config states all of it: its word against arithmetic
  best = min(every, key=needed)
  raise DoesNotFit(
      f'config.model.width={config["model"]["width"]}, depth={config["model"]["depth"]}:'
      f' a run does not fit: it needs {needed(best) / 1e9:.1f} GB on each device'
      f' ({describe(best)}), there are {devices} x {memory_bytes / 1e9:.1f}'
      f' GB, of which {USABLE:.0%} are usable',
      best,
  )


def describe(placement: Placement) -> str:
  """In a few words."""
  return (
      f'{placement.layout}, {placement.members} members, {placement.microbatches} microbatches,'
      f' remat {placement.remat}'
  )


def _layouts(config: AnyConfig, devices: int, platform: str) -> tuple[str, ...]:
  """The layouts that may be chosen, in their order."""
  stated, members = config['parallel']['layout'], config['parallel']['members']
  shared = f'config.data.batch_size={config["data"]["batch_size"]}'
  divides = config['data']['batch_size'] % devices == 0
  if stated in ('data_parallel', 'sharded') and not divides:
    raise BadInput(f'config.parallel.layout={stated}: {devices} devices must divide {shared}')
  if stated not in ('auto', 'population') and members not in (None, 1):
    raise BadInput(f'config.parallel.members={members}: must be unset or 1 in the layout {stated}')
  if stated != 'auto':
    return (stated,)
  if members is not None:
    return ('population',)
  if platform == 'cpu':
    return ('single',)
  several = devices > 1 and divides
  return ('population', 'data_parallel', 'sharded') if several else ('population',)


def _ways(config: AnyConfig, layout: str, devices: int) -> Iterator[Placement]:
  """The placements of a layout from the fastest to the smallest, with one member if unstated."""
  stated = config['parallel']
  members = stated['members'] or 1
  sequences = _sequences(config, layout, devices)
  parts = [stated['microbatches'] or 1]
  while stated['microbatches'] is None and sequences % (2 * parts[-1]) == 0:
    parts.append(2 * parts[-1])
  parts = [n for n in parts if sequences % n == 0]
  least = TOKENS / config['data']['sequence_length']
  roomy = [n for n in parts if n == 1 or sequences / n >= least]
  for some in (roomy, [n for n in parts if n not in roomy]):
    for remat in ('none', 'block') if stated['remat'] == 'auto' else (stated['remat'],):
      yield from (Placement(layout, members, n, remat) for n in some)


def _sequences(config: AnyConfig, layout: str, devices: int) -> int:
  """Of a run's batch, on one device."""
  return config['data']['batch_size'] // (devices if layout in ('data_parallel', 'sharded') else 1)


def memory(config: AnyConfig, placement: Placement, devices: int, vocabulary_size: int) -> Memory:
  """What each device holds at the fullest moment of a step, the text apart.

  A step fills up as it goes forward; backward, a block's activations make room for its gradients.
  So the fullest moment is at the head, or in the last block, or in the first, or at the end.
  """
  model = config['model']
  width, depth = model['width'], model['depth']
  size = _BYTES[model['dtype']]
  tokens = _sequences(config, placement.layout, devices) // placement.microbatches
  tokens *= config['data']['sequence_length']
  shards = devices if placement.layout == 'sharded' else 1

  # Norm scales are next to nothing.
  gate = 1 if model['attention_gate'] != 'none' else 0
  block_weights, head_weights = (12 + gate) * width**2, width * vocabulary_size
  weights = depth * block_weights + 2 * head_weights  # the embedding is as large as the head
  # Cast, or gathered from the other devices, they are there once more, to be multiplied with.
  copy = size if size != FLOAT32 or shards > 1 else 0

  stream = tokens * width * size
  logits = tokens * vocabulary_size * FLOAT32
  pairs = tokens * config['data']['sequence_length'] * (width // model['head_dim'])
  kept = whole = _block_bytes(model, stream, pairs) + copy * block_weights
  if placement.remat == 'block':
    kept = stream
  # In a block: the gradient of the hidden layer or, the MLP's activations gone, that of attention;
  # and of the stream, twice.
  working = whole - kept + max(4 * stream, pairs * FLOAT32 - 13 * stream) + 2 * stream

  moments = [  # activations, weights whose gradients are there
      (depth * kept + copy * 2 * head_weights + 2 * stream + 2 * logits, 0),
      (stream, weights),
  ]
  if depth:
    moments += [
        (depth * kept + copy * head_weights + working, head_weights + block_weights),
        (kept + copy * head_weights + working, weights - head_weights),
    ]
  activations, made = max(moments, key=lambda moment: moment[0] + FLOAT32 * moment[1] / shards)
  summed = weights if placement.microbatches > 1 else 0
  state = _OPTIMIZER_STATE[config['optimizer']['name']]
  # Both it and the params are renewed from the old state: of each parameter XLA copies a number.
  renewed = weights * min(1, state)
  bytes_each = placement.members * FLOAT32 / shards
  return Memory(
      params=bytes_each * weights,
      optimizer=bytes_each * weights * state,
      gradients=bytes_each * (made + summed + renewed),
      activations=placement.members * activations,
  )


def _block_bytes(model: AnyConfig, stream: float, pairs: float) -> float:
  """What a block keeps for its backward pass: what XLA's CPU compiler was seen to keep.

  Args:
    model: the config's.
    stream: bytes of the residual stream, [B, T, D].
    pairs: of queries and keys, [B, H, T, S].
  """
  size = _BYTES[model['dtype']]
  streams = 2 + 2  # before attention and MLP, as they are and normalised
  streams += 3 + 3  # queries, keys, values as projected; and as they meet, by heads
  streams += 1  # attention's output
  streams += 3 * 4  # the hidden layer before GELU, its tanh, and after
  numbers = 2  # of each pair, in float32: its exponential and the softmax
  if model['qk_norm'] == 'none':
    streams -= 2  # a rotation is linear: queries and keys as projected are not needed
  if model['norm_position'] == 'peri':
    streams += 2  # what attention and MLP put out, before it is normalised
  if model['attention_gate'] != 'none':
    streams += 2  # the gate and what it is multiplied with
  if model['attention_soft_cap']:
    numbers += 1  # the tanh
  values = size if size != FLOAT32 else 0  # the softmax once more, as it meets the values
  return streams * stream + pairs * (numbers * FLOAT32 + values)
