"""What predictions are made from: the runs of one intervention, and what was read in them."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis import results as results_lib
from stability.analysis.prediction import fits
from stability.analysis.results import Results

GRADIENT = 'gradient_rms/block_0/mlp/up'  # the first MLP layer: paper section 3.4
CRITICAL = 'critical_sharpness_ratio'
PRECONDITIONED = 'preconditioned_sharpness_ratio'
PROBES = (results_lib.LOGIT, GRADIENT, CRITICAL, PRECONDITIONED)


@dataclasses.dataclass(frozen=True)
class Observations:
  """The runs of one intervention that count."""

  # run, parameters, learning_rate, seed; size and rate, their log10; row, a number for each shape
  # and seed; unstable; critical, log10 of the row's critical learning rate, and beyond: 1 where it
  # is above what critical says, -1 below; eps; warmup, in steps; gradient, log10 of its RMS at the
  # end.
  runs: pd.DataFrame
  # Probe -> log10 of the highest value so far, a row for each run, a column for each step.
  highest: dict[str, pd.DataFrame]

  def only(self, kept: pd.Series) -> 'Observations':
    """The runs for which it is true."""
    return dataclasses.replace(self, runs=self.runs[kept])

  @property
  def sizes(self) -> np.ndarray:
    """Their parameters, ascending."""
    return np.sort(self.runs['parameters'].unique())

  @property
  def learning_rates(self) -> np.ndarray:
    """All of them, ascending."""
    return np.sort(self.runs['learning_rate'].unique())

  def folds(self) -> Iterator[tuple['Observations', 'Observations']]:
    """(those below, those of the size) of each size from the third on."""
    parameters = self.runs['parameters']
    for size in self.sizes[2:]:
      yield self.only(parameters < size), self.only(parameters == size)

  def steps(self, probe: str) -> list[int]:
    """At which all runs, or what is left of them, have a reading of the probe."""
    if probe not in self.highest:
      return []
    values = self.highest[probe].reindex(self.runs.index)
    return list(values.columns[values.notna().all()])

  def points(self, value: pd.Series | np.ndarray) -> fits.Points:
    """What is to be fitted, a run each."""
    return fits.Points.of(self.runs[['size', 'rate', 'seed']].assign(value=value))


def targets(parameters: list[float], learning_rates: np.ndarray) -> pd.DataFrame:
  """All sizes at all learning rates."""
  cells = pd.DataFrame({'parameters': parameters}).merge(
      pd.DataFrame({'learning_rate': learning_rates}), how='cross'
  )
  return cells.assign(size=np.log10(cells['parameters']), rate=np.log10(cells['learning_rate']))


def of(results: Results, curves: pd.DataFrame) -> dict[tuple, Observations]:
  """The observations of each intervention, by its values of results.groups.

  Args:
    results: of a sweep.
    curves: with the columns of PROBES, see tables.load_curves.
  """
  runs = results.runs
  runs = runs.assign(
      parameters=runs['parameters'].astype(float),
      unstable=instability.unstable(results),
      excess=instability.loss_excess(results),
  )
  runs['size'], runs['rate'] = np.log10(runs['parameters']), np.log10(runs['learning_rate'])
  runs = _with_critical(runs, [*results.sizes, *results.groups])
  late = results_lib.at_end(curves, GRADIENT).rename(index=str)
  with np.errstate(divide='ignore'):
    runs['gradient'] = np.log10(runs['run'].map(late).astype(float))
  runs['eps'], runs['warmup'] = runs['optimizer.eps'], runs['schedule.warmup_steps']
  runs = runs[runs['unstable'].notna()].astype({'unstable': bool})
  highest = {
      probe: table.reindex(runs['run']).set_axis(runs.index)
      for probe in PROBES
      if probe != GRADIENT and not (table := _highest(curves, probe)).empty
  }
  return {
      values: Observations(of_group, highest)
      for values, of_group in results_lib.split(runs, results.groups)
  }


def _highest(curves: pd.DataFrame, probe: str) -> pd.DataFrame:
  """log10 of the highest reading so far: a row per run, a column per step at which any was read.

  A run that ended early keeps its last: what it would have come to is not less.
  """
  read = curves[curves[probe] > 0]
  table = read.pivot(index='run', columns='step', values=probe)
  return np.log10(table.ffill(axis='columns').cummax(axis='columns'))


def _with_critical(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
  runs = runs.assign(critical=np.nan, beyond=0, row=0)
  for row, (_, of_row) in enumerate(results_lib.split(runs, [*columns, 'parameters', 'seed'])):
    runs.loc[of_row.index, 'row'] = row
    counted = of_row[of_row['excess'].notna()].sort_values('rate')
    if len(counted):
      runs.loc[of_row.index, ['critical', 'beyond']] = critical_rate(counted)
  return runs


def critical_rate(runs: pd.DataFrame) -> tuple[float, int]:
  """log10 of the learning rate from which runs of a size and seed are unstable.

  Between the first unstable rate and the one before it, where the loss passes the margin, on a
  straight line over log10(learning rate). With it 1 if there is no unstable one, so that it lies
  above the highest rate; -1 if the lowest is unstable; else 0.

  Args:
    runs: with rate (ascending), excess and unstable.
  """
  rates, excess = runs['rate'].to_numpy(), runs['excess'].to_numpy()
  unstable = np.flatnonzero(runs['unstable'].to_numpy(bool))
  if not len(unstable):
    return rates[-1], 1
  first = unstable[0]
  if first == 0:
    return rates[0], -1
  # A loss that is too high at the best rate of the size, which is another intervention's, or at
  # one below, is not unstable by definition: the limit then lies between that rate and this.
  low, high = excess[first - 1], excess[first]
  share = low / (low - high) if low < 0 < high else 0.5
  return rates[first - 1] + share * (rates[first] - rates[first - 1]), 0
