"""What a claim is decided on: some runs of a sweep, and statistics of them over resampled seeds.

Every statistic has a column, or an entry, per draw: the first is of all seeds as they are, each of
the others of seeds drawn with replacement, the same in all runs of a draw. Tables of statistics
have a row for each size and intervention, or for each learning rate of these, with the values that
tell them apart as levels of the index.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis import lr_sensitivity as lr_sensitivity_lib
from stability.analysis import results as results_lib
from stability.analysis import windows as windows_lib
from stability.analysis.results import Results

PAPER_STEPS, PAPER_READING = 100_000, 2_000
FEWEST_RATES = 3  # a row with fewer learning rates has no LR sensitivity that says anything


class Undecided(Exception):
  """A claim cannot be decided, for the reason given."""


class NotAbout(Undecided):
  """A claim is not about this sweep."""


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Runs of a sweep, what was measured in them, and the draws."""

  runs: pd.DataFrame  # those of Results, with loss (nats, NaN: does not count) and unstable
  results: Results  # the whole sweep
  curves: pd.DataFrame | None  # see tables.load_curves; None: there are none
  weights: pd.DataFrame  # a row per seed of the sweep, a column per draw

  @classmethod
  def of(cls, results: Results, curves: pd.DataFrame | None) -> 'Evidence':
    """All of a sweep."""
    runs = results.runs.assign(
        loss=lr_sensitivity_lib.counted_loss(results.runs),
        unstable=instability.unstable(results),
        parameters=results.runs['parameters'].astype(float),
    )
    seeds = sorted(runs['seed'].unique())
    weights = np.concatenate([np.ones((1, len(seeds))), lr_sensitivity_lib.draws(len(seeds))])
    return cls(runs, results, curves, pd.DataFrame(weights.T, seeds))

  def only(self, kept: pd.Series) -> 'Evidence':
    """The runs for which it is true."""
    return dataclasses.replace(self, runs=self.runs[kept])

  @property
  def keys(self) -> list[str]:
    """The levels of a row: what makes its size and intervention."""
    return ['parameters', *self.results.sizes, *self.results.groups]

  @property
  def seeds(self) -> int:
    """How many there are."""
    return self.runs['seed'].nunique()

  def with_learning_rates(self) -> 'Evidence':
    """Without the sizes and interventions that have too few learning rates."""
    rates = self.runs.groupby(self.keys, dropna=False)['learning_rate'].transform('nunique')
    return self.only(rates >= FEWEST_RATES)

  # Losses.

  def lr_sensitivity(self) -> pd.DataFrame:
    """LR sensitivity (nats) of each size and intervention with enough learning rates."""
    if self.results.not_comparable is not None:
      raise Undecided(f'not comparable: {self.results.not_comparable} changes what a rate means')
    found = {}
    for key, runs in results_lib.split(self.runs, self.keys):
      values = dict(zip(self.keys, key, strict=True))
      limits = windows_lib.of(self.results.windows, values)
      losses = lr_sensitivity_lib.within(runs, limits).pivot(
          index='learning_rate', columns='seed', values='loss'
      )
      if len(losses) >= FEWEST_RATES:
        weights_DxS = self.weights.loc[losses.columns].to_numpy().T
        spreads_WxD = lr_sensitivity_lib.spreads(losses, weights_DxS, limits)
        found[key] = np.fmin.reduce(spreads_WxD)
    if not found:
      raise Undecided(f'no size and intervention has {FEWEST_RATES} learning rates')
    return _table(found, self.keys)

  def best_loss(self) -> pd.DataFrame:
    """The lowest loss (nats) over learning rates of each size and intervention."""
    return self.mean(self.runs['loss']).groupby(level=self.keys, sort=False, dropna=False).min()

  def best_learning_rate(self) -> pd.DataFrame:
    """log10 of the learning rate with the lowest loss, between grid points by a parabola.

    Undecided where it is the lowest or the highest learning rate of its row: the optimum may lie
    anywhere beyond.
    """
    found = {}
    for key, losses in _groups(self.mean(self.runs['loss']), self.keys):
      rates_L = np.log10(losses.index.get_level_values('learning_rate').to_numpy(float))
      order = np.argsort(rates_L)
      found[key] = _vertices(rates_L[order], losses.to_numpy()[order])
    return _table(found, self.keys)

  # Whatever was measured.

  def mean(self, values: pd.Series) -> pd.DataFrame:
    """Means over seeds, a row for each size, intervention and learning rate; NaN where none is.

    Args:
      values: a number for each run, or NaN.
    """
    runs = self.runs[[*self.keys, 'learning_rate', 'seed']].assign(value=values)
    table = runs.set_index([*self.keys, 'learning_rate', 'seed'])['value'].unstack('seed')
    weights_DxS = self.weights.loc[table.columns].to_numpy().T
    means = lr_sensitivity_lib.mean_over_seeds(table.to_numpy(float), weights_DxS)
    return pd.DataFrame(means, table.index).dropna(how='all')

  def share(self, condition: pd.Series, among: pd.Series) -> pd.Series:
    """The share of the runs `among` for which the condition is true."""
    weights = self._weights()
    total = weights[among.to_numpy(bool)].sum()
    return weights[(condition & among).to_numpy(bool)].sum() / total.where(total > 0)

  def highest(self, values: pd.Series) -> pd.Series:
    """The highest value over all runs of the seeds that a draw holds."""
    drawn = self._weights().to_numpy() > 0
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', RuntimeWarning)  # a draw without a value: NaN
      return pd.Series(np.nanmax(np.where(drawn, values.to_numpy(float)[:, None], np.nan), axis=0))

  def average(self, values: pd.Series) -> pd.Series:
    """The mean over all runs that have a value."""
    weights = self._weights()[values.notna().to_numpy()]
    total = weights.mul(values.dropna().to_numpy(float), axis=0).sum()
    return total / weights.sum().where(lambda count: count > 0)

  def onsets(self) -> pd.Series:
    """The step from which each run's loss stays too high, as a share of its steps."""
    if self.curves is None:
      raise Undecided('there are no training curves')
    # Of the whole sweep: the best run of a size may be none of these.
    onset = instability.onset(self.results, self.curves)
    return onset[self.runs.index] / self.runs['schedule.steps']

  def _weights(self) -> pd.DataFrame:
    """A row per run, in their order."""
    return self.weights.loc[self.runs['seed']].set_axis(self.runs.index)

  # Probes: a number for each run.

  def over_training(self, probe: str) -> pd.Series:
    """The highest value over training."""
    return self._measured(probe, self._probed(probe).groupby('run', observed=True)[probe].max())

  def at_start(self, probe: str) -> pd.Series:
    """The first value."""
    return self._measured(probe, self._probed(probe).groupby('run', observed=True)[probe].first())

  def at_end(self, probe: str) -> pd.Series:
    """The mean of the values of the last steps, see tables.at_end."""
    return self._measured(probe, results_lib.at_end(self._probed(probe), probe))

  def after_warmup(self, probe: str) -> pd.Series:
    """The first value from the end of the warm-up on, when the learning rate is at its height.

    Of a run as long as the paper's 100,000 steps, the value at its step 2,000 (section 3.3), within
    the warm-up of 5,000: early enough that nothing had diverged and late enough to tell. Short runs
    have no such step.
    """
    curves = self._probed(probe)
    runs = self.runs.set_index('run')
    first = runs['schedule.warmup_steps'].where(runs['schedule.steps'] < PAPER_STEPS, PAPER_READING)
    later = curves[curves['step'] >= curves['run'].astype(object).map(first)]
    return self._measured(probe, later.groupby('run', observed=True)[probe].first())

  def _probed(self, probe: str) -> pd.DataFrame:
    if self.curves is None or probe not in self.curves or self.curves[probe].isna().all():
      raise Undecided(f'{probe} was not logged')
    curves = self.curves[['run', 'step', probe]]
    return curves[curves['run'].isin(self.runs['run'])].dropna()

  def _measured(self, probe: str, values: pd.Series) -> pd.Series:
    found = self.runs['run'].map(values.astype(float).rename(index=str))
    without = self.runs[found.isna() & (self.runs['status'] == 'done')]
    if len(without):
      raise Undecided(f'{probe} was not logged in {len(without)} of {len(self.runs)} runs')
    return found


# Statistics of tables.


def pairs(
    table: pd.DataFrame, field: str, base: object, along: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
  """The rows whose field is not `base`, and for each the one that is and that is else alike.

  Args:
    table: with `field` among its levels.
    field: what is compared.
    base: its value that the others are compared with.
    along: levels that move with the field and need not be alike.
  """
  dropped = [field, *(level for level in along if level in table.index.names)]
  is_base = table.index.get_level_values(field) == base
  partners, others = table[is_base].droplevel(dropped), table[~is_base]
  found = others.index.droplevel(dropped)
  together = found.isin(partners.index)
  if not together.any():
    raise Undecided(f'no two rows differ in {field} alone')
  partners = partners.groupby(level=partners.index.names, sort=False, dropna=False).mean()
  matched = partners.reindex(found[together]).set_axis(others.index[together])
  return others[together], matched


def ratios(
    table: pd.DataFrame, field: str, base: object, along: Sequence[str] = ()
) -> pd.DataFrame:
  """Each row over the one alike whose field is `base`."""
  others, matched = pairs(table, field, base, along)
  return others / matched.where(matched > 0)


def differences(
    table: pd.DataFrame, field: str, base: object, along: Sequence[str] = ()
) -> pd.DataFrame:
  """Each row minus the one alike whose field is `base`."""
  others, matched = pairs(table, field, base, along)
  return others - matched


def slopes(
    table: pd.DataFrame, level: str, without: Iterable[str] = (), *, fewest: int = 2
) -> pd.DataFrame:
  """Least-squares slope of the values on ln(level), a row for each value of the other levels.

  Args:
    table: of logarithms, for the slopes of power laws.
    level: the abscissa, above 0.
    without: levels that change with it and tell no lines apart.
    fewest: lines with fewer points are left out.
  """
  table = table.droplevel([name for name in without if name in table.index.names])
  others = [name for name in table.index.names if name != level]
  found = {}
  for key, rows in _groups(table, others):
    x = np.log(rows.index.get_level_values(level).to_numpy(float))
    if len(set(x)) >= fewest:
      x = x - x.mean()
      found[key] = x @ rows.to_numpy() / (x @ x)
  if not found:
    raise Undecided(f'no line has {fewest} values of {level}')
  return _table(found, others)


def at_highest(table: pd.DataFrame, level: str) -> pd.DataFrame:
  """The rows whose level is the highest there is."""
  values = table.index.get_level_values(level)
  return table[values == values.max()]


def at_lowest(table: pd.DataFrame, level: str) -> pd.DataFrame:
  """The rows whose level is the lowest there is."""
  values = table.index.get_level_values(level)
  return table[values == values.min()]


def at(table: pd.DataFrame, level: str, value: object) -> pd.DataFrame:
  """The rows whose level has this value; there must be some."""
  found = table[table.index.get_level_values(level) == value]
  if found.empty:
    raise Undecided(f'{level} = {value} has no rows')
  return found


def _groups(table: pd.DataFrame, levels: list[str]) -> Iterable[tuple[tuple, pd.DataFrame]]:
  if not levels:
    yield (), table
  else:
    yield from table.groupby(level=levels, sort=False, dropna=False)


def _table(rows: dict[tuple, np.ndarray], levels: list[str]) -> pd.DataFrame:
  # A single line has nothing to be told apart by; a level without a name stands for that.
  index = pd.MultiIndex.from_tuples(list(rows), names=levels) if levels else ['']
  return pd.DataFrame(np.array(list(rows.values())), index)


def _vertices(rates_L: np.ndarray, losses_LxD: np.ndarray) -> np.ndarray:
  """Where the parabola through the lowest point and its neighbours is lowest, per draw."""
  if np.isnan(losses_LxD[:, 0]).any() or len(rates_L) < FEWEST_RATES:
    raise Undecided(f'an optimum needs {FEWEST_RATES} learning rates')
  filled_LxD = np.where(np.isnan(losses_LxD), np.inf, losses_LxD)
  lowest_D = filled_LxD.argmin(axis=0)
  if lowest_D[0] in (0, len(rates_L) - 1):
    raise Undecided('the best learning rate is the first or the last one of its row')
  inner_D = lowest_D.clip(1, len(rates_L) - 2)
  draws = np.arange(losses_LxD.shape[1])
  (x0, y0), (x1, y1), (x2, y2) = (
      (rates_L[inner_D + i], losses_LxD[inner_D + i, draws]) for i in (-1, 0, 1)
  )
  left, right = (y0 - y1) / (x1 - x0), (y2 - y1) / (x2 - x1)
  # left, right >= 0 at an inner lowest point; a flat bottom has its vertex in the middle.
  total = np.where(left + right > 0, left + right, np.nan)
  vertex_D = ((x0 + x1) * right + (x1 + x2) * left) / (2 * total)
  vertex_D = np.where(np.isnan(total), x1, vertex_D)
  return np.where(lowest_D == inner_D, vertex_D, rates_L[lowest_D])
