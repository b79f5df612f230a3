"""Configs and random data of the benchmarks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from stability import config as config_lib
from stability.config import Config
from stability.data import tokens


def resolve(c: ConfigDict, fields: Mapping[str, Any] | None = None) -> Config:
  """The resolved config with some fields replaced."""
  flat = config_lib.flatten(c.to_dict()) | dict(fields or {})
  return config_lib.unflatten(config_lib.resolve(flat))


def random_data(config: Config, vocabulary_size: int, length: int) -> dict[str, np.ndarray]:
  """Random data for a layout: a text of `length` tokens, and one validation batch."""
  rng = np.random.default_rng(0)
  dtype = tokens.smallest_dtype(vocabulary_size)
  batch = config['data']['batch_size'], config['data']['sequence_length'] + 1
  return {
      'text': rng.integers(0, vocabulary_size, length, dtype),
      'validation': rng.integers(0, vocabulary_size, (1, *batch), dtype),
  }
