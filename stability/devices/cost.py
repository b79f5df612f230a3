"""The cost of a sweep: tokens, FLOPs, executables, and hours on given devices."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stability import config as config_lib
from stability import hyper
from stability.config import Config
from stability.devices import placement as placement_lib
from stability.devices import shapes
from stability.devices.placement import Memory, Placement

BYTES_VOCABULARY = 256


def tokens(config: Config) -> int:
  """Tokens that a run trains on."""
  data = config['data']
  return config['schedule']['steps'] * data['batch_size'] * data['sequence_length']


def train_flops(config: Config, vocabulary_size: int) -> float:
  """FLOPs of the matrix products in all steps of a run, from traces; evaluation is not counted."""
  return config['schedule']['steps'] * shapes.step_flops(config, vocabulary_size)


def estimated_step_flops(config: Config, vocabulary_size: int = BYTES_VOCABULARY) -> float:
  """FLOPs of a step of the default architecture, by a formula that does not need jax.

  Each token passes through every weight of the blocks' matrices and of the head, at 2 FLOPs per
  weight. In each block it attends to every position of its sequence, at 2 width FLOPs for the logit
  and 2 width for the value. The backward pass costs twice the forward pass.
  """
  model, data = config['model'], config['data']
  weights = config_lib.parameters(config) + model['width'] * vocabulary_size
  attention = 4 * model['depth'] * model['width'] * data['sequence_length']
  return 3.0 * data['batch_size'] * data['sequence_length'] * (2 * weights + attention)


def estimated_flops(config: Config, vocabulary_size: int = BYTES_VOCABULARY) -> float:
  """FLOPs of a run by the formula of `estimated_step_flops`, to compare runs with each other."""
  return config['schedule']['steps'] * estimated_step_flops(config, vocabulary_size)


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs of a sweep that share executables."""

  name: str  # the static fields in which groups differ, such as width=64,qk_norm=none
  config: Config  # of one of the runs
  runs: int
  tokens: int
  flops: float


def groups(
    configs: Mapping[str, Config],
    vocabulary_size: int,
    step_flops: Callable[[Config, int], float] = shapes.step_flops,
) -> list[Group]:
  """The groups of a sweep, in the order of their first runs."""
  members: dict[tuple[tuple[str, Any], ...], list[Config]] = {}
  for config in configs.values():
    members.setdefault(config_lib.static_fields(config), []).append(config)
  if not members:
    return []
  first, *others = map(dict, members)
  varied = [field for field in first if any(first[field] != other[field] for other in others)]
  labels = hyper.labels(varied)
  found = []
  for fields, runs in members.items():
    values = dict(fields)
    found.append(
        Group(
            name=','.join(f'{labels[field]}={values[field]}' for field in varied) or 'all',
            config=runs[0],
            runs=len(runs),
            tokens=sum(map(tokens, runs)),
            flops=sum(run['schedule']['steps'] for run in runs)
            * step_flops(runs[0], vocabulary_size),
        )
    )
  return found


@dataclasses.dataclass(frozen=True)
class Plan:
  """Totals of a sweep."""

  runs: int
  tokens: int
  flops: float
  populations: int  # groups of runs that share executables
  executables: int


def plan(groups: Sequence[Group]) -> Plan:
  """The totals of all groups."""
  # A population needs init, a quiet step and evaluate; a probed and a sharp step if there are any.
  probes = [group.config['probe'] for group in groups]
  executables = sum(
      3 + (c['every_steps'] > 0) + (c['sharpness_every_steps'] > 0) for c in probes
  )
  return Plan(
      runs=sum(group.runs for group in groups),
      tokens=sum(group.tokens for group in groups),
      flops=sum(group.flops for group in groups),
      populations=len(groups),
      executables=executables,
  )


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices that train one group after another."""

  devices: int
  memory_bytes: float  # of each
  flops_per_second: float  # peak rate of each
  utilisation: float  # fraction of the peak rate that training reaches


@dataclasses.dataclass(frozen=True)
class Placed:
  """A group on a machine."""

  placement: Placement  # if none fits, the one that needs least memory
  memory: Memory
  hours: float | None  # of training only; None: the group does not fit


def shares(configs: Mapping[str, Config], count: int) -> list[list[str]]:
  """Splits runs into at most `count` shares of similar FLOPs; returns the names in each share.

  The runs are ordered by executables, and this sequence is cut. A share differs from the mean by
  less than the largest run, and the cuts add at most count - 1 compilations. Shares of whole groups
  would be uneven: the largest of the quickstart's six groups has a third of all FLOPs.
  """
  first: dict[tuple[tuple[str, Any], ...], int] = {}
  for position, config in enumerate(configs.values()):
    first.setdefault(config_lib.static_fields(config), position)
  ordered = sorted(configs, key=lambda name: first[config_lib.static_fields(configs[name])])
  flops = [estimated_flops(configs[name]) for name in ordered]
  ends = list(itertools.accumulate(flops))
  cut = [[] for _ in range(count)]
  for name, own, end in zip(ordered, flops, ends):
    middle = (end - own / 2) / ends[-1]
    cut[min(int(middle * count), count - 1)].append(name)
  return [share for share in cut if share]


def place(group: Group, machine: Machine, vocabulary_size: int) -> Placed:
  """The placement of a group on NVIDIA GPUs, with its memory and training time."""
  fits = True
  try:
    placement = placement_lib.choose(
        group.config,
        machine.devices,
        machine.memory_bytes,
        'gpu',
        group.runs,
        vocabulary_size,
    )
  except placement_lib.DoesNotFit as error:
    placement, fits = error.smallest, False
  memory = placement_lib.memory(
      group.config, placement, machine.devices, vocabulary_size, 'gpu'
  )
  fits = fits and memory.total <= placement_lib.USABLE * machine.memory_bytes
  return Placed(placement, memory, _hours(group, placement, machine) if fits else None)


def _hours(group: Group, placement: Placement, machine: Machine) -> float:
  """Training hours of the busiest device, if all runs are equal."""
  parallelism = machine.devices  # effective number of devices, judged by the busiest one
  if placement.layout == 'single':
    parallelism = 1
  if placement.layout == 'population':
    parallelism = group.runs / math.ceil(group.runs / machine.devices)
  # Remat adds a forward pass to the forward pass and a backward pass that costs two of them.
  remat = 4 / 3 if placement.remat == 'block' else 1
  rate = machine.flops_per_second * machine.utilisation
  return group.flops * remat / (parallelism * rate) / 3600
