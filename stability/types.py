"""Names for the types that model, optimizer and step share."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

Tree = Any  # of arrays
Params = dict[str, Any]  # nested: names of modules -> arrays
Carried = dict[str, Any]  # variables that modules carry from step to step, nested as Params are
HParams = Mapping[str, jax.Array]  # dotted config name -> a run's value, traced
Static = ml_collections.FrozenConfigDict  # the part of a config that shapes a program
State = dict[str, Any]  # of a run; its entries are in stability/step/train_step.py
Data = dict[str, jax.Array]  # `text` or `batch`, and `validation`
Metrics = dict[str, jax.Array]  # name -> scalar
