"""What a sweep will cost, by arithmetic alone."""

import dataclasses
from collections.abc import Mapping

from stability import config as config_lib
from stability.config import Config

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
  executables = sum(4 if dict(fields)['probe.every_steps'] else 3 for fields in populations)
  return Plan(
      runs=len(configs),
      tokens=sum(map(tokens, configs.values())),
      flops=sum(train_flops(config, vocabulary_size) for config in configs.values()),
      populations=len(populations),
      executables=executables,  # init, step, evaluate and, where there are probes, the probed step
  )
