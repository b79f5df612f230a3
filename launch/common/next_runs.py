"""The sweep of a workdir for launch.next: what it has, what it may gain, and what that costs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.common import app, budget, extension_trace, start
from stability import config as config_lib
from stability.analysis import results as results_lib
from stability.analysis.prediction.next_sweep import NextRun, SweepState
from stability.analysis.prediction.predictor import MIN_SIZES
from stability.analysis.results import Results
from stability.config import Config
from stability.devices import cost
from stability.errors import BadInput
from stability.hyper import Runs, run_name
from stability.report import labels
from stability.storage import files, sweeps


@dataclasses.dataclass(frozen=True)
class Growing:
  """A sweep that is trained run by run.

  `request` has the runs that may be trained, those of the workdir among them.
  """

  workdir: Path
  request: app.SweepRequest
  state: SweepState
  stored: frozenset[str]  # the runs that are in the workdir
  vocabulary_size: int

  @property
  def flops_K(self) -> np.ndarray:
    """FLOPs of a run on each curve, by a formula for the default architecture."""
    return np.array([self._flops(name) for name in self.state.first_of_curves['run']])

  def _flops(self, name: str) -> float:
    return cost.estimated_flops(self.request.runs.configs[name], self.vocabulary_size)

  @property
  def seconds_K(self) -> np.ndarray:
    """Seconds that finished runs of the same size took, on average; NaN if there is none."""
    runs, firsts = self.state.runs, self.state.first_of_curves
    if 'seconds' not in runs:
      return np.full(len(firsts), np.nan)
    shape = self.state.results.sizes or ['parameters']
    means = runs.groupby(shape)['seconds'].transform('mean')
    return means[firsts.index].to_numpy(float)

  def spent(self) -> tuple[float, float]:
    """FLOPs (by the formula) and core-hours of all runs of the workdir that have a result."""
    runs = self.state.runs
    done = runs[runs['run'].isin(self.stored) & (runs['status'] != 'missing')]
    seconds = done['seconds'].sum() if 'seconds' in done else 0.0
    return sum(map(self._flops, done['run'])), seconds / 3600

  def affordable(self, found: Sequence[NextRun], allowed: budget.Budget) -> list[NextRun]:
    """The runs, in order, that the rest of a budget of FLOPs or core-hours pays for.

    The time of a run is that of runs of its size; without any, it follows from its FLOPs and the
    time of the runs so far.
    """
    flops, core_hours = self.spent()
    flops_K, seconds_K = self.flops_K, self.seconds_K
    if allowed.flops is not None:
      left, cost_K = allowed.flops - flops, flops_K
    else:
      left = allowed.core_hours - core_hours
      flops_per_hour = flops / core_hours if core_hours else 3600 * budget.CORE_FLOPS
      cost_K = np.where(np.isnan(seconds_K), flops_K / flops_per_hour, seconds_K / 3600)
    paid = []
    for run in found:
      if cost_K[run.choice.curve] <= left:
        paid.append(run)
        left -= cost_K[run.choice.curve]
    return paid

  def wanted_name(self, number: int) -> str:
    """A wanted critical rate in words: arm and size."""
    state = self.state
    arm = int(state.arm_of_wanted[number])
    size = state.target
    if size is None:
      size = state.first_of_curves['parameters'].iloc[number]
    return self._name(arm, size)

  def _name(self, arm: int, parameters: float) -> str:
    named = labels.pairs(self.state.results.groups, self.state.arm_values[arm])
    return f'{labels.parameters(parameters)}{", " if named else ""}{named}'

  def rows(self, found: Sequence[NextRun]) -> list[dict[str, str]]:
    """A row of text per run: run, reason, FLOPs, seconds, decades (now), after (expected)."""
    rows, flops_K, seconds_K = [], self.flops_K, self.seconds_K
    for run in found:
      choice = run.choice
      arm, seconds = self.state.curves.arm_K[choice.curve], seconds_K[choice.curve]
      name = self._name(int(arm), run.like['parameters'])
      widths = [choice.width, choice.width_after]
      rows.append({
          'run': f'{name}, learning rate {labels.rounded(run.learning_rate)}, seed {run.seed}',
          'reason': self._reason(run),
          'FLOPs': f'{flops_K[choice.curve]:.1e}',
          'seconds': '' if np.isnan(seconds) else f'{seconds:.0f}',
          **{
              key: f'{width:.2f}' if np.isfinite(width) else ''
              for key, width in zip(('decades', 'after'), widths, strict=True)
          },
      })
    return rows

  def _reason(self, run: NextRun) -> str:
    """Why a run is next, in a sentence."""
    if not len(self.state.surface.runs):
      return 'Nothing is known yet: every second learning rate of the smallest size comes first.'
    choice = run.choice
    if choice.about is None:
      what = 'All critical rates are known; it'
      if not self.state.is_known:
        what = 'No run says more about the critical rates; this one'
      return f'{what} says most about LR sensitivity.'
    about = self.wanted_name(choice.about)
    what, in_cell = 'It', self.state.in_cell(choice)
    if run.run is not None:
      if run.like['status'] == 'failed':
        what = 'It has failed; trained again, it'
    elif not self.state.in_grid_KxL[choice.curve, choice.rate]:
      what = 'The grid ends too early: a rate beyond it'
    elif in_cell['loss'].notna().any():
      what = 'The loss is noisy: another seed'
    elif len(in_cell):  # stopped, or acted on by a person
      what = 'No run there counts: another seed'
    if self.state.target is None and choice.about == choice.curve:
      return f'{what} says most about the critical rate of its own arm and size.'
    return f'{what} says most per FLOP about the critical rate of {about}.'

  def configs(self, found: Sequence[NextRun]) -> dict[str, Config]:
    """The configs of runs to train, by name."""
    configs: dict[str, Config] = {}
    for run in found:
      name, config = run.run, self.request.runs.configs[run.like['run']]
      if name is None:
        flat = config_lib.flatten(config)
        flat |= {'optimizer.learning_rate': run.learning_rate, 'seed': run.seed}
        config = config_lib.unflatten(config_lib.resolve(flat))
        name = run_name(self.request.runs.fields, config)
      configs[name] = config
    return configs

  def with_runs(self, configs: dict[str, Config]) -> app.SweepRequest:
    """The sweep of the workdir with these runs added."""
    known_configs = self.request.runs.configs
    stored = {name: config for name, config in known_configs.items() if name in self.stored}
    report, windows = self.request.report, self._windows(known_configs)
    outside = any(
        not low <= _rate(config) <= high
        for config in configs.values()
        for low, high in [windows[self._arm(config)]]
    )
    if outside and 'windows' not in report:  # LR sensitivity stays that of the grid
      distinct = windows if len(set(windows.values())) > 1 else {(): next(iter(windows.values()))}
      entries = [
          {'where': dict(arm), 'windows': [list(window)]} for arm, window in distinct.items()
      ]
      report = {**report, 'windows': entries}
    runs = Runs(self.request.runs.fields, {**stored, **configs})
    return dataclasses.replace(self.request, runs=runs, report=report)

  def _arm(self, config: Config) -> tuple[tuple[str, Any], ...]:
    """The fields of an arm with their values."""
    flat = config_lib.flatten(config)
    fields, _ = results_lib.groups_and_sizes(self.request.runs.fields)
    return tuple((field, flat[field]) for field in fields)

  def _windows(self, configs: Mapping[str, Config]) -> dict[tuple, tuple[float, float]]:
    """The lowest and the highest learning rate of each arm."""
    rates: dict[tuple, list[float]] = {}
    for config in configs.values():
      rates.setdefault(self._arm(config), []).append(_rate(config))
    return {arm: (min(of_arm), max(of_arm)) for arm, of_arm in rates.items()}


def _rate(config: Config) -> float:
  return config['optimizer']['learning_rate']


def load(
    workdir: Path,
    requested: app.SweepRequest | None,
    *,
    arms: Sequence[str] | None = None,
    width: float | None = None,
    target: float | None = None,
) -> Growing:
  """The sweep of a workdir.

  Args:
    workdir: a folder with a sweep; with `requested`, it need not exist.
    requested: the sweep of a config file, whose runs may be trained; None: only runs like those of
      the workdir may.
    arms: names of the arms that are wanted; None: all.
    width: decades; see next_sweep.SweepState.
    target: see there.

  Raises:
    BadInput: there is no sweep, or nothing can be planned for it.
  """
  files.refuse_links(workdir)
  sweeps.refuse_imported(workdir)
  has_sweep = (workdir / 'sweep.json').exists()
  if requested is None or has_sweep:
    stored = sweeps.read_sweep(workdir)
    results = results_lib.load_workdir(workdir)
    configs, vocabulary_size = stored.runs, stored.data.get('vocabulary_size')
    request = app.SweepRequest(
        stored.config_file,
        stored.scale,
        stored.overrides,
        Runs(stored.fields, configs),
        None,
        stored.report,
    )
  else:
    results, configs, vocabulary_size = None, {}, None
  if requested is not None:
    if results is not None and tuple(request.runs.fields) != requested.runs.fields:
      raise BadInput(f'--workdir={workdir}: holds another sweep than that of --config')
    if 'windows' in requested.report and not has_sweep:
      raise BadInput(
          f'--config={requested.config_file}: its get_report has windows, which need all runs;'
          ' train it with launch.sweep first'
      )
    if requested.extensions is not None and not has_sweep:
      extension_trace.check(requested.config_file, requested.runs.configs)
    counted = stored.parameters if has_sweep else {}
    parameters = start.count_parameters(requested.runs.configs, counted)
    results = _with_missing(results, requested.runs, parameters)
    request = dataclasses.replace(
        requested,
        runs=Runs(requested.runs.fields, {**configs, **requested.runs.configs}),
        report={**requested.report, **(request.report if has_sweep else {})},
    )
  _check(workdir, results)
  state = SweepState(results, width, target, _arms(results, arms))
  sizes = state.first_of_curves.groupby('arm_number')['parameters'].nunique()
  if target is not None and (sizes < MIN_SIZES).any():
    raise BadInput(
        f'--target: needs at least {MIN_SIZES} sizes of each arm in --workdir={workdir}'
    )
  return Growing(
      workdir, request, state, frozenset(configs), vocabulary_size or cost.BYTES_VOCABULARY
  )


def _with_missing(
    results: Results | None, runs: Runs, parameters: Mapping[str, int]
) -> Results:
  """The results with a row for each run that they lack."""
  known = set() if results is None else set(results.runs['run'])
  rows = [
      {
          'run': name,
          'status': 'missing',
          'parameters': parameters[name],
          'learning_rate': _rate(config),
          'initial_loss': np.nan,
          'final_loss': np.nan,
          'seconds': np.nan,
          **config_lib.flatten(config),
      }
      for name, config in runs.configs.items()
      if name not in known
  ]
  missing = pd.DataFrame(rows)
  if results is None:
    return Results(missing, *results_lib.groups_and_sizes(runs.fields))
  if not rows:
    return results
  columns = [name for name in results.runs if name in missing]
  together = pd.concat(
      [results.runs.astype(object), missing[columns].astype(object)], ignore_index=True
  )
  numbers = {'parameters': 'Int64', 'initial_loss': float, 'final_loss': float, 'seconds': float}
  return dataclasses.replace(results, runs=together.infer_objects().astype(numbers))


def _check(workdir: Path, results: Results) -> None:
  runs = results.runs
  if runs['parameters'].isna().any():
    raise BadInput(f'--workdir={workdir}: the parameters of some of its runs are unknown')
  if runs['learning_rate'].nunique() < 2:
    raise BadInput(f'--workdir={workdir}: its runs have only one learning rate, two are needed')


def _arms(results: Results, names: Sequence[str] | None) -> tuple[int, ...] | None:
  """The numbers of the arms with these names."""
  if names is None:
    return None
  shown = arm_names(results)
  for name in names:
    if name not in shown:
      raise BadInput(f'--arms={name}: must be of {"; ".join(shown) or "a sweep with arms"}')
  return tuple(i for i, each in enumerate(shown) if each in names)


def arm_names(results: Results) -> list[str]:
  """The arms as text, such as `qk_norm=none`."""
  if not results.groups:
    return []
  arms = results_lib.split(results.runs, results.groups)
  return [labels.pairs(results.groups, values) for values, _ in arms]
