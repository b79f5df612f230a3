"""A sweep of small sizes that predicts a large one, proposed from a target and a budget.

Of the regimes (stability/analysis/regimes.py), it takes the most trusted one that reaches a size
within MAX_DISTANCE of the target; if none does, the one that comes nearest. It takes the largest
size that the budget allows with one seed, all smaller ones, and then more seeds.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

from configs import arms as arms_lib
from configs import grid
from launch.common.budget import CORE_FLOPS, UTILISATION, Budget
from stability import config as config_lib
from stability.analysis import regimes
from stability.analysis.prediction.predictor import MIN_SIZES
from stability.analysis.regimes import Regime
from stability.config import Config
from stability.devices import cost, shapes
from stability.errors import BadInput
from stability.report import labels
from stability.storage import files

MOST_SEEDS = 3
QK_NORMS = ('layernorm', 'none')  # the arms, unless others are asked for
_UNIT = {'core_hours': 'core-hours', 'hours': 'hours', 'flops': 'FLOPs'}


@dataclasses.dataclass(frozen=True)
class Cost:
  """What all runs of one size cost."""

  runs: int
  flops: float
  amount: float  # in the unit of the budget


@dataclasses.dataclass(frozen=True)
class Proposal:
  """The sweep."""

  target: float  # parameters
  budget: Budget
  regime: Regime
  sizes: tuple[str, ...]
  seeds: int
  arms: tuple[str, ...] | None  # None: QK_NORMS
  costs: tuple[Cost, ...]  # of each size, with all seeds

  @property
  def unit(self) -> str:
    """The unit of the budget."""
    return _UNIT[_limited(self.budget)]

  @property
  def _distance(self) -> float:
    return self.target / _parameters(self.sizes[-1])

  def sentences(self) -> list[str]:
    """The choices with their reasons."""
    config, rates = _config(self.regime.scale), grid.learning_rates(self.regime.scale)
    schedule, data = config['schedule'], config['data']
    low, high = (rates[i]['optimizer.learning_rate'] for i in (0, -1))
    amount = sum(each.amount for each in self.costs)
    lines = [
        f'Regime: {self.regime.scale}, {schedule["steps"]:,} steps of {data["batch_size"]} x'
        f' {data["sequence_length"]} tokens with a warm-up of {schedule["warmup_steps"]:,}:'
        f' {self.regime.says}. It rests on {self.regime.rests_on}.',
        f'Sizes: {", ".join(self.sizes)}. A power law needs {MIN_SIZES};'
        f' {labels.parameters(self.target)} is {self._distance:.3g} times the largest.',
        f'Learning rates: {len(rates)} from {labels.rounded(low)} to {labels.rounded(high)}, half a'
        ' decade apart: LR sensitivity is defined over three decades.',
        f'Arms: {", ".join(self.arms or (f"qk_norm={name}" for name in QK_NORMS))}.',
        f'Seeds: {self.seeds} of at most {MOST_SEEDS}. A larger size comes before another seed.',
        f'Cost: {sum(each.runs for each in self.costs):,} runs,'
        f' {sum(each.flops for each in self.costs):.2e} FLOPs, {_of(amount, self.unit)} of'
        f' --budget={self.budget.text}, {self._assumption()}.',
    ]
    if self._distance > regimes.MAX_DISTANCE:
      lines.append(
          f'No prediction over more than {regimes.MAX_DISTANCE} times has been tested; a larger'
          ' budget reaches larger sizes.'
      )
    return lines

  def _assumption(self) -> str:
    if self.budget.core_hours is not None:
      return f'at {CORE_FLOPS / 1e9:g} GFLOP/s per core (measured; other machines differ)'
    if self.budget.hours is not None:
      return f'at {UTILISATION:.0%} of the peak rate (assumed), without compilation'
    return 'by a formula'

  def rows(self) -> list[tuple[str, str, str, str]]:
    """A row per size: name, runs, FLOPs and the cost in the unit of the budget."""
    return [
        (size, f'{each.runs:,}', f'{each.flops:.2e}', f'{each.amount:.3g}')
        for size, each in zip(self.sizes, self.costs, strict=True)
    ]

  def commands(self, path: Path) -> list[str]:
    """The commands that train the sweep in full, or as much of it as is needed."""
    seeds = f' --seeds={self.seeds}' if self.seeds > 1 else ''
    workdir = f'--workdir=runs/{path.stem}'
    return [
        f'All runs:         python -m launch.sweep --config={path} {workdir}{seeds}',
        f'As few as needed: python -m launch.next --config={path} {workdir} --train',
    ]

  def write(self, path: Path) -> None:
    """Writes the config file."""
    scale = self.regime.scale
    arms = f"hyper.sweep('model.qk_norm', {list(QK_NORMS)}),\n      grid.learning_rates(scale)"
    imports = 'grid'
    if self.arms is not None:
      arms, imports = f'arms.points(scale, {self.arms})', 'arms, grid'
    indent = {'initial_indent': '  ', 'subsequent_indent': '    '}
    reasons = '\n'.join(textwrap.fill(line, 98, **indent) for line in self.sentences())
    files.write_atomic(
        path,
        f'"""Proxies of {labels.parameters(self.target)} parameters, proposed by launch.next.\n\n'
        f'{reasons}\n"""\n\n'
        f'from configs import {imports}\n'
        'from stability import hyper\n\n'
        f'SIZES = {self.sizes}\n\n\n'
        f'def get_config(scale={scale!r}):\n'
        '  return grid.get_config(scale)\n\n\n'
        f'def get_sweep(scale={scale!r}):\n'
        '  return hyper.product([\n'
        '      grid.sizes(scale, SIZES),\n'
        f'      {arms},\n'
        '  ])\n',
    )


def propose(target: float, budget: Budget, arms: Sequence[str] | None) -> Proposal:
  """The sweep for a target (parameters) and the names of arms of configs/arms.py.

  Raises:
    BadInput: there is no such arm, the target is too small for proxies, or the budget too small.
  """
  if arms is not None:
    for name in arms:
      if name not in arms_lib.ARMS:
        raise BadInput(f'--arms={name}: must be arms of configs/arms.py, such as {_EXAMPLES}')
    arms = tuple(dict.fromkeys((arms_lib.BASELINE, *arms)))
  found: list[Proposal] = []
  for regime in regimes.REGIMES:
    if budget.core_hours is not None and regime.on_accelerators:
      continue
    proposal = _of_regime(regime, target, budget, arms)
    if proposal is not None:
      found.append(proposal)
      if target <= regimes.MAX_DISTANCE * _parameters(proposal.sizes[-1]):
        return proposal
  if found:
    return max(found, key=lambda each: _parameters(each.sizes[-1]))  # the first of equal ones
  smallest = regimes.REGIMES[-1]
  sizes = smallest.sizes[:MIN_SIZES]
  if target * regimes.MAX_FRACTION < _parameters(sizes[-1]):
    raise BadInput(
        f'--target={labels.parameters(target)}: too small for proxies: must be at least'
        f' {labels.parameters(_parameters(sizes[-1]) / regimes.MAX_FRACTION)}'
    )
  least = sum(_cost(smallest, size, budget, arms, 1).amount for size in sizes)
  unit = _UNIT[_limited(budget)]
  raise BadInput(
      f'--budget={budget.text}: too small: {", ".join(sizes)} at {smallest.scale} scale take'
      f' {_of(least, unit)}'
  )


_EXAMPLES = ', '.join([name for name in arms_lib.ARMS if name != arms_lib.BASELINE][:3])


def _limited(budget: Budget) -> str:
  """The field of the budget that is set."""
  return next(name for name in _UNIT if getattr(budget, name) is not None)


def _of(amount: float, unit: str) -> str:
  return f'{amount:.2e} {unit}' if unit == 'FLOPs' else f'{amount:.3g} {unit}'


def _of_regime(
    regime: Regime, target: float, budget: Budget, arms: tuple[str, ...] | None
) -> Proposal | None:
  """The largest sweep of a regime that the budget allows; None if it allows none."""
  allowed = getattr(budget, _limited(budget))
  costs: list[Cost] = []
  for size in regime.sizes:
    if _parameters(size) > target * regimes.MAX_FRACTION:
      break
    of_size = _cost(regime, size, budget, arms, 1)
    if sum(each.amount for each in costs) + of_size.amount > allowed:
      break
    costs.append(of_size)
  if len(costs) < MIN_SIZES:
    return None
  sizes, seeds = tuple(regime.sizes[: len(costs)]), 1
  for more in range(2, MOST_SEEDS + 1):
    repeated = [_cost(regime, size, budget, arms, more) for size in sizes]
    if sum(each.amount for each in repeated) > allowed:
      break
    costs, seeds = repeated, more
  return Proposal(target, budget, regime, sizes, seeds, arms, tuple(costs))


def _cost(
    regime: Regime, size: str, budget: Budget, arms: tuple[str, ...] | None, seeds: int
) -> Cost:
  """The cost of all runs of a size; arms are taken to cost as much as the baseline."""
  config = _config(regime.scale, size)
  points = len(grid.learning_rates(regime.scale)) * len(arms or QK_NORMS)
  runs, vocabulary_size = points * seeds, config['data']['vocabulary_size']
  if config['data']['tokenizer'] == 'bytes':
    vocabulary_size = cost.BYTES_VOCABULARY
  flops = runs * cost.estimated_flops(config, vocabulary_size)
  if budget.flops is not None:
    return Cost(runs, flops, flops)
  if budget.core_hours is not None:
    return Cost(runs, flops, flops / CORE_FLOPS / 3600)
  shapes.trace_on_cpu()
  group = cost.Group(size, config, runs, runs * cost.tokens(config), flops)
  model = config['model']
  machine = budget.machine(model['dtype'], model['matmul_precision'])
  hours = cost.place(group, machine, vocabulary_size).hours
  return Cost(runs, flops, float('inf') if hours is None else hours)


def _config(scale: str, size: str | None = None) -> Config:
  flat = config_lib.flatten(grid.get_config(scale).to_dict())
  if size is not None:
    flat |= config_lib.size(size)
  return config_lib.unflatten(config_lib.resolve(flat))


def _parameters(size: str) -> float:
  return float(config_lib.parameters(config_lib.unflatten(config_lib.size(size))))
