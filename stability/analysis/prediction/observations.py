"""The data that predictions are based on: the runs of one intervention and their probes."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis import results as results_lib
from stability.analysis.prediction import fits
from stability.analysis.results import Results

GRADIENT_RMS = 'gradient_rms/block_0/mlp/up'  # the first MLP layer: paper section 3.4
CRITICAL_SHARPNESS = 'critical_sharpness_ratio'
PRECONDITIONED_SHARPNESS = 'preconditioned_sharpness_ratio'
PROBES = (results_lib.LOGIT, GRADIENT_RMS, CRITICAL_SHARPNESS, PRECONDITIONED_SHARPNESS)


@dataclasses.dataclass(frozen=True)
class Observations:
  """The runs of one intervention, without those that failed, were stopped or are missing.

  `runs` has a row per run, with the columns:
    run, parameters, learning_rate, seed
    log_size, log_rate: log10 of parameters and learning rate
    curve: the number of the run's loss curve, which has one shape, one seed and all learning rates
    unstable
    log_critical: log10 of the curve's critical learning rate
    censored: 0 if log_critical is exact, 1 if the true value is above it, -1 if below
    eps, warmup_steps
    log_gradient: log10 of the gradient RMS at the end of training

  `running_max` maps a probe to log10 of its highest value so far: a row per run, a column per step.
  """

  runs: pd.DataFrame
  running_max: dict[str, pd.DataFrame]

  def select(self, mask: pd.Series) -> 'Observations':
    """The runs for which the mask is true."""
    return dataclasses.replace(self, runs=self.runs[mask])

  @property
  def sizes(self) -> np.ndarray:
    """The distinct parameter counts, ascending."""
    return np.sort(self.runs['parameters'].unique())

  @property
  def learning_rates(self) -> np.ndarray:
    """The distinct learning rates, ascending."""
    return np.sort(self.runs['learning_rate'].unique())

  def validation_splits(self) -> Iterator[tuple['Observations', 'Observations']]:
    """(smaller sizes, held-out size) for each size from the third smallest on."""
    parameters = self.runs['parameters']
    for size in self.sizes[2:]:
      yield self.select(parameters < size), self.select(parameters == size)

  def probe_steps(self, probe: str) -> list[int]:
    """The steps at which `running_max` has a value of the probe for every run."""
    if probe not in self.running_max:
      return []
    values = self.running_max[probe].reindex(self.runs.index)
    return list(values.columns[values.notna().all()])

  def points(self, value: pd.Series | np.ndarray) -> fits.Points:
    """The runs as points to fit, with the given values."""
    return fits.Points.from_table(self.runs[['log_size', 'log_rate', 'seed']].assign(value=value))


def cells(parameters: list[float], learning_rates: np.ndarray) -> pd.DataFrame:
  """The cells to predict: every size at every learning rate.

  Columns: parameters, learning_rate, log_size, log_rate.
  """
  grid = pd.DataFrame({'parameters': parameters}).merge(
      pd.DataFrame({'learning_rate': learning_rates}), how='cross'
  )
  return grid.assign(
      log_size=np.log10(grid['parameters']), log_rate=np.log10(grid['learning_rate'])
  )


def by_intervention(results: Results, curves: pd.DataFrame) -> dict[tuple, Observations]:
  """The observations of each intervention, keyed by its values of results.groups.

  Args:
    results: the runs of a sweep or of a CSV file.
    curves: see results.load_curves, with the columns of PROBES.
  """
  runs = results.runs
  runs = runs.assign(
      parameters=runs['parameters'].astype(float),
      unstable=instability.unstable(results),
      excess=instability.loss_excess(results),
  )
  runs['log_size'] = np.log10(runs['parameters'])
  runs['log_rate'] = np.log10(runs['learning_rate'])
  runs = _add_critical_rates(runs, [*results.sizes, *results.groups])
  final_gradient = results_lib.at_end(curves, GRADIENT_RMS).rename(index=str)
  with np.errstate(divide='ignore'):
    runs['log_gradient'] = np.log10(runs['run'].map(final_gradient).astype(float))
  # A CSV file may lack these fields, but they are used only with probes, which it lacks as well.
  runs['eps'] = runs.get('optimizer.eps', np.nan)
  runs['warmup_steps'] = runs.get('schedule.warmup_steps', np.nan)
  runs = runs[runs['unstable'].notna()].astype({'unstable': bool})
  running_max = {
      probe: table.reindex(runs['run']).set_axis(runs.index)
      for probe in PROBES
      if probe != GRADIENT_RMS and not (table := _running_max(curves, probe)).empty
  }
  return {
      values: Observations(of_group, running_max)
      for values, of_group in results_lib.split(runs, results.groups)
  }


def _running_max(curves: pd.DataFrame, probe: str) -> pd.DataFrame:
  """log10 of a probe's highest value so far: a row per run, a column per step of any run.

  A run that ended early keeps its last value, a lower bound on what it would have reached.
  """
  positive = curves[curves[probe] > 0]
  table = positive.pivot(index='run', columns='step', values=probe)
  return np.log10(table.ffill(axis='columns').cummax(axis='columns'))


def _add_critical_rates(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
  """Adds the columns log_critical, censored and curve.

  Runs belong to the same curve if they agree in `columns`, parameters and seed.
  """
  runs = runs.assign(log_critical=np.nan, censored=0, curve=0)
  keys = [*columns, 'parameters', 'seed']
  for number, (_, of_curve) in enumerate(results_lib.split(runs, keys)):
    runs.loc[of_curve.index, 'curve'] = number
    counted = of_curve[of_curve['excess'].notna()].sort_values('log_rate')
    if len(counted):
      runs.loc[of_curve.index, ['log_critical', 'censored']] = log_critical_rate(counted)
  return runs


def log_critical_rate(runs: pd.DataFrame) -> tuple[float, int]:
  """log10 of the critical learning rate of one loss curve, and how it is censored.

  The loss is interpolated linearly in log10(learning rate) between the first unstable rate and the
  one before it; the critical rate is where it crosses the margin. If no run is unstable, the
  critical rate is above the highest rate (censored: 1). If the lowest rate is unstable, it is below
  that (censored: -1). Otherwise it is exact (0).

  Args:
    runs: with the columns log_rate (ascending), excess and unstable.
  """
  log_rates, excess = runs['log_rate'].to_numpy(), runs['excess'].to_numpy()
  unstable = np.flatnonzero(runs['unstable'].to_numpy(bool))
  if not len(unstable):
    return log_rates[-1], 1
  first = unstable[0]
  if first == 0:
    return log_rates[0], -1
  # By definition no run is unstable at or below the best learning rate of its size, even if its
  # loss is above the margin: the best rate may be that of another intervention. The loss then does
  # not cross the margin between the two rates, and their midpoint is used.
  low, high = excess[first - 1], excess[first]
  share = low / (low - high) if low < 0 < high else 0.5
  return log_rates[first - 1] + share * (log_rates[first] - log_rates[first - 1]), 0
