"""What a sweep will cost, by arithmetic alone."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

from stability import config as config_lib
from stability import hyper
from stability.config import Config
from stability.devices import placement as placement_lib
from stability.devices.placement import Memory, Placement

BYTES_VOCABULARY = 256


def tokens(config: Config) -> int:
  """Tokens a run trains on."""
  data = config['data']
  return config['schedule']['steps'] * data['batch_size'] * data['sequence_length']


def train_flops(config: Config, vocabulary_size: int = BYTES_VOCABULARY) -> float:
  """Floating-point operations of a run's matrix products; a backward pass is two forward ones.

  A token passes forward through every weight of the blocks, gates included, and the head (2 FLOPs
  each) and meets every position of its sequence twice a layer, for logits and for values (2 width
  each).
  """
  model = config['model']
  weights = config_lib.parameters(config) + model['width'] * vocabulary_size
  if model['attention_gate'] != 'none':
    weights += model['depth'] * model['width'] ** 2
  attention = 4 * model['depth'] * model['width'] * config['data']['sequence_length']
  return 3.0 * tokens(config) * (2 * weights + attention)


@dataclasses.dataclass(frozen=True)
class Plan:
  """The sums over a sweep."""

  runs: int
  tokens: int
  flops: float
  populations: int  # sets of runs that share their executables
  executables: int


def plan(configs: Mapping[str, Config], vocabulary_size: int) -> Plan:
  """What training all the runs takes."""
  populations = {config_lib.static_fields(config) for config in configs.values()}
  steps = ('probe.every_steps', 'probe.sharpness_every_steps')  # each asks for one of its own
  executables = sum(3 + sum(dict(fields)[every] > 0 for every in steps) for fields in populations)
  return Plan(
      runs=len(configs),
      tokens=sum(map(tokens, configs.values())),
      flops=sum(train_flops(config, vocabulary_size) for config in configs.values()),
      populations=len(populations),
      executables=executables,  # init, step, evaluate, and the probed and sharp steps there are
  )


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of a sweep that share executables."""

  name: str  # the static fields in which the groups differ: width=64,qk_norm=none
  config: Config  # of one of them
  runs: int
  tokens: int
  flops: float


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices that train one group after another."""

  devices: int
  memory_bytes: float  # of each
  flops_per_second: float  # of each, at its best
  utilisation: float  # the share of its best that training is taken to reach


@dataclasses.dataclass(frozen=True)
class Placed:
  """A group on a machine."""

  placement: Placement  # the smallest there is, where it does not fit
  memory: Memory
  hours: float | None  # of training alone; None: it does not fit


def groups(configs: Mapping[str, Config], vocabulary_size: int) -> list[Group]:
  """The groups of a sweep, in the order of their first runs."""
  members: dict[tuple[tuple[str, Any], ...], list[Config]] = {}
  for config in configs.values():
    members.setdefault(config_lib.static_fields(config), []).append(config)
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
            flops=sum(train_flops(config, vocabulary_size) for config in runs),
        )
    )
  return found


def shares(configs: Mapping[str, Config], count: int) -> list[list[str]]:
  """The runs in at most `count` shares of like FLOPs, runs of the same executables together.

  The runs stand in a row, ordered by executables, and the row is cut: a share is off the mean by
  less than the FLOPs of its largest run, and the cuts add at most count - 1 compilations.
  """
  first: dict[tuple[tuple[str, Any], ...], int] = {}
  for position, config in enumerate(configs.values()):
    first.setdefault(config_lib.static_fields(config), position)
  row = sorted(configs, key=lambda name: first[config_lib.static_fields(configs[name])])
  flops = [train_flops(configs[name]) for name in row]
  ends = list(itertools.accumulate(flops))
  cut = [[] for _ in range(count)]
  for name, own, end in zip(row, flops, ends):
    middle = (end - own / 2) / ends[-1]
    cut[min(int(middle * count), count - 1)].append(name)
  return [share for share in cut if share]


def place(group: Group, machine: Machine, vocabulary_size: int) -> Placed:
  """Where a group's runs go on accelerators, what they fill and how long they take."""
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
  memory = placement_lib.memory(group.config, placement, machine.devices, vocabulary_size)
  fits = fits and memory.total <= placement_lib.USABLE * machine.memory_bytes
  return Placed(placement, memory, _hours(group, placement, machine) if fits else None)


def _hours(group: Group, placement: Placement, machine: Machine) -> float:
  """Of the device that has most to do, all runs being taken for equal."""
  shares = machine.devices  # of a run
  if placement.layout in ('single', 'population'):
    shares = group.runs / math.ceil(group.runs / machine.devices)
  remat = 4 / 3 if placement.remat == 'block' else 1  # forward twice, backward is two forward
  rate = machine.flops_per_second * machine.utilisation
  return group.flops * remat / (shares * rate) / 3600
