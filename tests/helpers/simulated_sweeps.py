"""Simulated sweeps: the outcome of a run is a function of its config."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.analysis import results
from stability.storage import run_files

Fields = dict[str, Any]  # a run's config by dotted field
Number = Callable[[Fields], float]
FirstAndLast = tuple[float, float]

INITIAL_LOSS = 5.5
STEPS = np.array([20, 60, 100, 200, 300, 400, 480, 500])


@dataclasses.dataclass(frozen=True)
class Outcomes:
  """The outcome of every run as functions of its fields."""

  loss: Number  # final loss
  # Probe -> its first and last value; it changes by equal factors per step.
  probes: dict[str, FirstAndLast | Callable[[Fields], FirstAndLast]] = dataclasses.field(
      default_factory=dict
  )
  # Training loss over the fraction of steps; None: a straight line from initial to final loss.
  curve: Callable[[Fields, np.ndarray], np.ndarray] | None = None


def simulate(
    points: list[hyper.Point],
    outcomes: Outcomes,
    config: config_lib.Config | None = None,
    **report: Any,
) -> tuple[results.Results, pd.DataFrame]:
  """Results and curves of a sweep with these outcomes, like load_workdir and load_curves."""
  runs = hyper.expand(config or base.get_config('cpu').to_dict(), points)
  rows, curves = [], []
  for name, config in runs.configs.items():
    c = config_lib.flatten(config)
    loss = outcomes.loss(c)
    row = {'run': name, 'status': run_files.final_status(INITIAL_LOSS, loss)}
    row |= {'parameters': config_lib.parameters(config), 'learning_rate': rate(c)}
    rows.append(row | {'initial_loss': INITIAL_LOSS, 'final_loss': loss} | c)
    fraction = STEPS / STEPS[-1]
    falling = INITIAL_LOSS + (min(loss, INITIAL_LOSS) - INITIAL_LOSS) * fraction
    curve = {'loss': falling if outcomes.curve is None else outcomes.curve(c, fraction)}
    exponent = (STEPS - STEPS[0]) / (STEPS[-1] - STEPS[0])
    for probe, of in outcomes.probes.items():
      first, last = of(c) if callable(of) else of
      curve[probe] = first * (last / first) ** exponent
    curves.append(pd.DataFrame({'run': name, 'step': STEPS, **curve}))
  frame = pd.DataFrame(rows).astype({'parameters': 'Int64'})
  groups, sizes = results.groups_and_sizes(runs.fields)
  return results.Results(frame, groups, sizes, **report), pd.concat(curves, ignore_index=True)


# Losses.


def rate(c: Fields) -> float:
  return c['optimizer.learning_rate']


def highest(c: Fields) -> bool:
  return rate(c) == 1.0


def size(c: Fields) -> float:
  """1 for the smallest of WIDTHS, 16 for the largest."""
  return c['model.depth'] * c['model.width'] ** 2 / (3 * 16**2)


def bowl(c: Fields, steep: float = 0.1, best_rate: float = 1e-2, best: float = 2.0) -> float:
  """A loss that is lowest at best_rate."""
  return best + steep * math.log10(rate(c) / best_rate) ** 2


def steep(of: Number) -> Outcomes:
  """Losses whose curvature over ln(learning rate) is a function of the fields."""
  return Outcomes(lambda c: bowl(c, steep=of(c)))


def centred(of: Number) -> Outcomes:
  """Losses whose best learning rate is a function of the fields."""
  return Outcomes(lambda c: bowl(c, best_rate=of(c)))


def best(of: Number) -> Outcomes:
  """Losses whose minimum is a function of the fields."""
  return Outcomes(lambda c: bowl(c, best=of(c)))


def flat(c: Fields) -> float:
  """A loss with which no run is unstable."""
  return bowl(c, steep=0.01)


def cliff(c: Fields) -> float:
  """A loss with which runs at the highest learning rate are unstable."""
  return 4.0 if highest(c) else flat(c)


def cliff_without_qk_norm(c: Fields) -> float:
  return cliff(c) if c['model.qk_norm'] == 'none' else flat(c)


def where(field: str, value: Any, then: Any, otherwise: Any) -> Callable[[Fields], Any]:
  """A function of one field."""
  return lambda c: then if c[field] == value else otherwise


def late(fraction: float) -> Callable[[Fields, np.ndarray], np.ndarray]:
  """Training losses that jump at this fraction of the steps at the highest learning rate."""

  def curve(c: Fields, fractions: np.ndarray) -> np.ndarray:
    falling = 5.5 - 3.5 * fractions
    return np.where(highest(c) & (fractions >= fraction), falling + 2.0, falling)

  return curve


# Sweeps.


def sweep(field: str, *values: Any) -> list[hyper.Point]:
  return hyper.sweep(field, values)


def grid(*sweeps: list[hyper.Point]) -> list[hyper.Point]:
  return hyper.product(sweeps)


def together(first: str, second: str, *pairs: tuple[Any, Any]) -> list[hyper.Point]:
  return [{first: one, second: other} for one, other in pairs]


WIDTHS = sweep('model.width', 16, 32, 64)
RATES = sweep('optimizer.learning_rate', 1e-3, 1e-2, 1e-1, 1.0)
BOTH_QK = sweep('model.qk_norm', 'layernorm', 'none')
QK = grid(WIDTHS, BOTH_QK, RATES)
