"""Statistics of the selected runs of a sweep, each computed for many draws of the seeds.

The first draw holds every seed once; each of the others is a sample of the seeds with replacement,
the same for all runs. A statistic is a Series with an entry for each draw, or a table with a column
for each draw. Tables have a row for each size and intervention, or for each of their learning
rates; the levels of the index hold the values that distinguish the rows (see tables.py).
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from stability.analysis import instability, same_rates
from stability.analysis import lr_sensitivity as lr_sensitivity_lib
from stability.analysis import results as results_lib
from stability.analysis import windows as windows_lib
from stability.analysis.claims import common_seeds, tables
from stability.analysis.claims.columns import Column
from stability.analysis.claims.undecided import NotApplicable, Undecided
from stability.analysis.leaderboard import curve
from stability.analysis.results import Results
from stability.analysis.same_rates import MIN_LEARNING_RATES

# The paper reads attention logits at step 2,000 of 100,000 (section 3.3).
PAPER_STEPS, PAPER_PROBE_STEP = 100_000, 2_000


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Selected runs of a sweep with their curves, and the draws of the seeds."""

  # Rows of Results.runs, with loss (nats; NaN: does not count), unstable and trains: whether a run
  # of the size and intervention ends below its initial loss, or there is only one learning rate.
  runs: pd.DataFrame
  results: Results  # the whole sweep
  curves: pd.DataFrame | None  # see results.load_curves; None: there are none
  weights: pd.DataFrame  # how often each seed (row) of the sweep occurs in each draw (column)
  # Field -> the value at which the runs were selected: the paper's or one that replaces it.
  variants: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_results(cls, results: Results, curves: pd.DataFrame | None) -> 'Evidence':
    """All runs of a sweep."""
    runs = results.runs.assign(
        loss=lr_sensitivity_lib.counted_loss(results.runs),
        unstable=instability.unstable(results),
        parameters=results.runs['parameters'].astype(float),
        trains=True,
    )
    for _, row in results_lib.split(runs, ['parameters', *results.sizes, *results.groups]):
      if row['learning_rate'].nunique() > 1:
        runs.loc[row.index, 'trains'] = lr_sensitivity_lib.trains(row)
    seeds = sorted(runs['seed'].unique())
    weights_DxS = lr_sensitivity_lib.with_draws(len(seeds))
    return cls(runs, results, curves, pd.DataFrame(weights_DxS.T, seeds))

  def only(self, condition: pd.Series | np.ndarray) -> 'Evidence':
    """The runs for which a condition is true."""
    return dataclasses.replace(self, runs=self.runs[condition])

  def with_common_seeds(self) -> 'Evidence':
    """The runs of the seeds, and of the learning rates, that every size and intervention has.

    Draws of other seeds would leave some rows as they are, and an effect would seem too certain. If
    most cells (a learning rate of a row) have several seeds, two or more seeds are chosen: the set
    that most cells have, and the largest one if several tie. Cells that lack any are left out, so
    that a single run at a further learning rate changes nothing. Each row must keep
    MIN_LEARNING_RATES, or all if it has fewer. Otherwise, the seeds are those that all cells have.
    Cells outside the windows of LR sensitivity do not choose the seeds.
    """
    columns = [*self.keys, 'learning_rate']
    cells = self.runs.groupby(columns, dropna=False).ngroup().rename('cell')
    has_CxS = pd.crosstab(cells, self.runs['seed']) > 0
    row_C = self.runs.groupby(self.keys, dropna=False).ngroup().groupby(cells).first()
    inside = cells[self._is_inside_windows()]
    if inside.empty:
      raise Undecided('no run is within the windows of learning rates')
    inside_C = has_CxS.index.isin(inside)
    seeds = common_seeds.choose(has_CxS[inside_C], row_C[inside_C])
    weights = pd.DataFrame(lr_sensitivity_lib.with_draws(len(seeds)).T, seeds)
    kept = has_CxS.index[has_CxS[seeds].all(axis='columns')]
    common = self.only(cells.isin(kept) & self.runs['seed'].isin(seeds))
    return dataclasses.replace(common, weights=weights)

  def _is_inside_windows(self) -> pd.Series:
    """Which runs have a learning rate inside the windows of their size and intervention."""
    found = pd.Series(not self.results.windows, self.runs.index)
    if not self.results.windows:
      return found
    for key, runs in results_lib.split(self.runs, self.keys):
      limits = windows_lib.find(self.results.windows, dict(zip(self.keys, key, strict=True)))
      found[lr_sensitivity_lib.within(runs, limits).index] = True
    return found

  def with_variants(self, variants: Mapping[str, Any]) -> 'Evidence':
    """The same runs, with a record that they were selected at these values of fields."""
    return dataclasses.replace(self, variants=variants)

  def only_variant(self, field: str) -> 'Evidence':
    """The runs at the value of a field that with_variants recorded."""
    return self.only(self.runs[field] == self.variants[field])

  def column(self, field: str) -> Column:
    """A field of the runs."""
    if field not in self._columns:
      self._columns[field] = Column.of(self.runs[field])
    return self._columns[field]

  @functools.cached_property
  def _columns(self) -> dict[str, Column]:
    return {}  # filled by `column`: all claims ask for the same ones

  @property
  def keys(self) -> list[str]:
    """The columns that identify a size and intervention."""
    return ['parameters', *self.results.sizes, *self.results.groups]

  @property
  def seeds(self) -> int:
    """The number of seeds."""
    return self.runs['seed'].nunique()

  def with_learning_rates(self) -> 'Evidence':
    """The runs of sizes and interventions with at least MIN_LEARNING_RATES learning rates."""
    rates = self.runs.groupby(self.keys, dropna=False)['learning_rate'].transform('nunique')
    return self.only(rates >= MIN_LEARNING_RATES)

  def at_highest_rate(self) -> 'Evidence':
    """The runs at the highest learning rate.

    Raises Undecided unless it is that of each size and intervention: one whose grid ends below it
    would drop out. Those with a single learning rate, like the paper's 4.8B model, have no grid.
    """
    return self._at_end_of_rates('max', 'highest')

  def at_lowest_rate(self) -> 'Evidence':
    """The runs at the lowest learning rate; see at_highest_rate."""
    return self._at_end_of_rates('min', 'lowest')

  def _at_end_of_rates(self, end: str, name: str) -> 'Evidence':
    rates = self.runs.groupby(self.keys, dropna=False)['learning_rate'].agg([end, 'nunique'])
    has_grid = rates['nunique'] > 1
    ends = sorted(set(rates[end][has_grid if has_grid.any() else slice(None)]))
    if len(ends) > 1:
      raise Undecided(
          f'sizes and interventions have different {name} learning rates, {ends[0]:g} to'
          f' {ends[-1]:g}'
      )
    return self.only(self.runs['learning_rate'] == ends[0])

  # Losses.

  def lr_sensitivity(self, *, across_sizes: bool = False) -> pd.DataFrame:
    """LR sensitivity (nats) of each size and intervention with at least MIN_LEARNING_RATES.

    NaN where no run trains: the losses do not depend on the learning rate, but nothing is stable.

    Interventions of a size are compared at the same learning rates if their windows are the same,
    see same_rates.of_all; Undecided if they have too few.

    Args:
      across_sizes: whether sizes of an intervention are compared instead.
    """
    if self.results.not_comparable is not None:
      field = self.results.not_comparable
      raise Undecided(f'not comparable: {field} changes what a learning rate means')
    curves, trains = {}, {}
    for key, runs in results_lib.split(self.runs, self.keys):
      values = dict(zip(self.keys, key, strict=True))
      limits = windows_lib.find(self.results.windows, values)
      inside = lr_sensitivity_lib.within(runs, limits)
      losses = lr_sensitivity_lib.loss_table(inside)
      if len(losses) >= MIN_LEARNING_RATES:
        curves[key] = losses, limits
        trains[key] = lr_sensitivity_lib.trains(inside)
    if not curves:
      raise Undecided(f'no size and intervention has {MIN_LEARNING_RATES} learning rates')
    rates = self._compared_rates(curves, across_sizes)
    found = {}
    for key, (losses, limits) in curves.items():
      chosen = losses.loc[list(rates[key])]
      weights_DxS = self.weights.loc[chosen.columns].to_numpy().T
      mean_LxD = lr_sensitivity_lib.mean_over_seeds(chosen.to_numpy(), weights_DxS)
      sensitivities_WxD = lr_sensitivity_lib.sensitivities(chosen.index, mean_LxD, limits)
      found[key] = np.fmin.reduce(sensitivities_WxD)
      if not trains[key]:
        found[key] = np.full_like(found[key], np.nan)
    return tables.of_rows(found, self.keys)

  def _compared_rates(self, curves: Mapping[tuple, tuple], across_sizes: bool) -> dict:
    """The learning rates of each row at which it is compared; raises Undecided if there are none.

    Args:
      curves: row -> its losses, with the learning rates as index, and its windows.
      across_sizes: see lr_sensitivity.
    """
    shape = len(self.keys) - len(self.results.groups)  # the first of the keys
    grids, compared = [], {}
    for key, (losses, limits) in curves.items():
      size, arm = results_lib.key(key[:shape]), results_lib.key(key[shape:])
      grids.append((arm, tuple(losses.index)))
      together = (arm if across_sizes else size, str(limits))
      compared.setdefault(together, []).append((key, arm))
    whole, found = same_rates.with_one_grid(grids), {}
    for members in compared.values():
      keys, arms = zip(*members, strict=True)
      rates = same_rates.of_all(
          [tuple(curves[key][0].index) for key in keys],
          curves[keys[0]][1],
          are_whole=not across_sizes and whole.issuperset(arms),
      )
      if rates is None:
        what = 'sizes of an intervention' if across_sizes else 'interventions of a size'
        raise Undecided(f'{what} have LR sensitivities over different learning rates')
      found |= dict(zip(keys, rates, strict=True))
    return found

  def best_loss(self) -> pd.DataFrame:
    """The lowest loss (nats) over learning rates of each size and intervention."""
    return self.mean(self.runs['loss']).groupby(level=self.keys, sort=False, dropna=False).min()

  def best_learning_rate(self) -> pd.DataFrame:
    """log10 of the optimal learning rate of each size and intervention.

    It is interpolated between grid points by a parabola. Raises Undecided if the loss is lowest at
    the lowest or highest learning rate of a row: the optimum may then lie outside the grid.
    """
    found = {}
    for key, rows in tables.groups(self.mean(self.runs['loss']), self.keys):
      losses = rows.sort_index(level='learning_rate')
      log_rates_L = np.log10(losses.index.get_level_values('learning_rate').to_numpy(float))
      found[key] = _best_rates(log_rates_L, losses.to_numpy())
    return tables.of_rows(found, self.keys)

  def best_grid_rate(self) -> tuple[pd.DataFrame, pd.Series]:
    """log10 of the learning rate with the lowest mean loss, of each size and intervention.

    Returns:
      The rates, and whether each is inside its grid: at an end, the optimum may lie beyond it.
    """

    def of(_, log_rates_L, losses_L):
      lowest = losses_L.argmin()
      return log_rates_L[lowest], 0 < lowest < len(log_rates_L) - 1

    return self._of_curves(of)

  def headroom(self) -> tuple[pd.DataFrame, pd.Series]:
    """log10 of the critical learning rate over the best one of the grid, of each row.

    Returns:
      The headroom, and whether the critical learning rate is within the grid.
    """
    initial = self.runs.groupby(self.keys, dropna=False)['initial_loss'].mean()

    def of(key, log_rates_L, losses_L):
      start = initial[key if len(self.keys) > 1 else key[0]]
      log_critical, side = instability.log_critical_rate(log_rates_L, losses_L, start)
      return log_critical - log_rates_L[losses_L.argmin()], not side

    return self._of_curves(of)

  def width(self, excess: float) -> tuple[pd.DataFrame, pd.Series]:
    """The decades of learning rate within `excess` nats of the best loss of each row.

    Returns:
      The widths, and whether both ends are within the grid, so that the width is no lower bound.
    """
    return self._of_curves(
        lambda _, log_rates_L, losses_L: curve.width(log_rates_L, losses_L, excess)
    )

  def _of_curves(
      self, of: Callable[[tuple, np.ndarray, np.ndarray], tuple[float, bool]]
  ) -> tuple[pd.DataFrame, pd.Series]:
    """A number of each row's curve of mean loss, and whether the grid tells it exactly."""
    found, is_exact = {}, {}
    means = self.mean(self.runs['loss']).dropna(axis='columns').sort_index(level='learning_rate')
    for key, losses in tables.groups(means, self.keys):
      log_rates_L = np.log10(losses.index.get_level_values('learning_rate').to_numpy(float))
      numbers = [of(key, log_rates_L, losses_L) for losses_L in losses.to_numpy().T]
      found[key] = np.array([number for number, _ in numbers])
      is_exact[key] = numbers[0][1]
    table = tables.of_rows(found, self.keys)
    return table, pd.Series(list(is_exact.values()), table.index)

  # Aggregates of a number per run.

  def mean(self, values: pd.Series) -> pd.DataFrame:
    """Means over seeds: a row for each size, intervention and learning rate.

    Args:
      values: a number for each run; NaNs are left out of the means.
    """
    runs = self.runs[[*self.keys, 'learning_rate', 'seed']].assign(value=values)
    table = runs.set_index([*self.keys, 'learning_rate', 'seed'])['value'].unstack('seed')
    weights_DxS = self.weights.loc[table.columns].to_numpy().T
    means = lr_sensitivity_lib.mean_over_seeds(table.to_numpy(float), weights_DxS)
    return pd.DataFrame(means, table.index).dropna(how='all')

  def fraction(self, condition: pd.Series, among: pd.Series) -> pd.Series:
    """The fraction of the runs in `among` for which a condition is true."""
    weights = self._weights()
    total = weights[among.to_numpy(bool)].sum()
    return weights[(condition & among).to_numpy(bool)].sum() / total.where(total > 0)

  def maximum(self, values: pd.Series) -> pd.Series:
    """The maximum over all runs whose seed is in a draw."""
    drawn = self._weights().to_numpy() > 0
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', RuntimeWarning)  # a draw without values gives NaN
      return pd.Series(np.nanmax(np.where(drawn, values.to_numpy(float)[:, None], np.nan), axis=0))

  def average(self, values: pd.Series) -> pd.Series:
    """The mean over all runs with a value."""
    weights = self._weights()[values.notna().to_numpy()]
    total = weights.mul(values.dropna().to_numpy(float), axis=0).sum()
    return total / weights.sum().where(lambda count: count > 0)

  def unstable(self) -> pd.Series:
    """Whether each run is unstable; raises Undecided where no run of its row trains."""
    failed = self.runs[~self.runs['trains']]
    if len(failed):
      row = dict(zip(self.keys, failed[self.keys].iloc[0], strict=True))
      raise Undecided(f'no run of {tables.name(row)} trains')
    return self.runs['unstable']

  def unstable_fraction(self) -> pd.Series:
    """The fraction of the runs that are unstable."""
    return self.fraction(self.unstable(), self.runs['unstable'].notna())

  def onsets(self) -> pd.Series:
    """The onset of instability (see instability.onset) of each run as a fraction of its steps."""
    if self.curves is None:
      raise Undecided('there are no training curves')
    self.require('schedule.steps')
    # From the whole sweep, since the best run of a size may not be among the selected ones.
    onset = instability.onset(self.results, self.curves)
    return onset[self.runs.index] / self.runs['schedule.steps']

  def _weights(self) -> pd.DataFrame:
    """The weight of each run (row) in each draw (column)."""
    return self.weights.loc[self.runs['seed']].set_axis(self.runs.index)

  # Probes, reduced to a number per run.

  def max_over_training(self, probe: str) -> pd.Series:
    """The maximum of a probe over training."""
    by_run = self._probe_curves(probe).groupby('run', observed=True)
    return self._per_run(probe, by_run[probe].max())

  def at_start(self, probe: str) -> pd.Series:
    """The first value of a probe."""
    by_run = self._probe_curves(probe).groupby('run', observed=True)
    return self._per_run(probe, by_run[probe].first())

  def at_end(self, probe: str) -> pd.Series:
    """The mean of a probe over the last steps, see results.at_end."""
    return self._per_run(probe, results_lib.at_end(self._probe_curves(probe), probe))

  def after_warmup(self, probe: str) -> pd.Series:
    """The first value of a probe after the warm-up, when the learning rate is at its maximum.

    Runs of PAPER_STEPS or more are read at PAPER_PROBE_STEP instead, as in the paper: this step of
    the warm-up is late enough to be informative, and no run has diverged before it. Shorter runs
    have no comparable step.
    """
    self.require('schedule.steps')
    self.require('schedule.warmup_steps')
    curves = self._probe_curves(probe)
    runs = self.runs.set_index('run')
    is_short = runs['schedule.steps'] < PAPER_STEPS
    first = runs['schedule.warmup_steps'].where(is_short, PAPER_PROBE_STEP)
    later = curves[curves['step'] >= curves['run'].astype(object).map(first)]
    return self._per_run(probe, later.groupby('run', observed=True)[probe].first())

  def max_after_warmup(self, probe: str) -> pd.Series:
    """The highest value of a probe from the end of the warm-up on."""
    self.require('schedule.warmup_steps')
    curves = self._probe_curves(probe)
    first = curves['run'].astype(object).map(self.runs.set_index('run')['schedule.warmup_steps'])
    by_run = curves[curves['step'] >= first].groupby('run', observed=True)
    return self._per_run(probe, by_run[probe].max())

  def require(self, field: str) -> None:
    """Raises NotApplicable if the configs of imported runs do not have a field."""
    if field not in self.runs or self.runs[field].isna().all():
      raise NotApplicable(f'{field} of the runs is unknown')

  def _probe_curves(self, probe: str) -> pd.DataFrame:
    """The logged values of a probe in the selected runs; raises Undecided if there are none."""
    if self.curves is None or probe not in self.curves or self.curves[probe].isna().all():
      raise Undecided(f'{probe} was not logged')
    curves = self.curves[['run', 'step', probe]]
    return curves[curves['run'].isin(self.runs['run'])].dropna()

  def _per_run(self, probe: str, values: pd.Series) -> pd.Series:
    """Values by run name as values by row of `runs`; raises Undecided if a done run has none."""
    found = self.runs['run'].map(values.astype(float).rename(index=str))
    without = self.runs[found.isna() & (self.runs['status'] == 'done')]
    if len(without):
      raise Undecided(f'{probe} was not logged in {len(without)} of {len(self.runs)} runs')
    return found


def _best_rates(log_rates_L: np.ndarray, losses_LxD: np.ndarray) -> np.ndarray:
  """log10 of the best learning rate per draw, which may be an end of the grid in other draws."""
  if np.isnan(losses_LxD[:, 0]).any() or len(log_rates_L) < MIN_LEARNING_RATES:
    raise Undecided(f'an optimum needs {MIN_LEARNING_RATES} learning rates')
  if losses_LxD[:, 0].argmin() in (0, len(log_rates_L) - 1):
    raise Undecided('the best learning rate is the first or the last one of its row')
  return instability.vertex(log_rates_L, np.where(np.isnan(losses_LxD), np.inf, losses_LxD).T)
