"""The data that predictions are based on: the runs of one intervention and their probes."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from stability.analysis import instability, lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.prediction import fits
from stability.analysis.results import Results

GRADIENT_RMS = 'gradient_rms/block_0/mlp/up'  # the first MLP layer: paper section 3.4
CRITICAL_SHARPNESS = 'critical_sharpness_ratio'
PRECONDITIONED_SHARPNESS = 'preconditioned_sharpness_ratio'
PROBES = (results_lib.LOGIT, GRADIENT_RMS, CRITICAL_SHARPNESS, PRECONDITIONED_SHARPNESS)

_CURVE_COLUMNS = (
    'log_critical', 'critical_censored', 'log_best', 'best_censored', 'critical_spread', 'grid_step'
)  # fmt: skip

_COLUMNS = (
    'run', 'parameters', 'learning_rate', 'seed', 'log_size', 'log_rate', 'curve', 'loss',
    'initial_loss', 'unstable', *_CURVE_COLUMNS, 'eps', 'warmup_steps', 'log_gradient',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Observations:
  """The runs of one intervention, without those that failed, were stopped or are missing.

  `runs` has a row per run, with the columns:
    run, parameters, learning_rate, seed
    log_size, log_rate: log10 of parameters and learning rate
    curve: the number of the run's loss curve, which has one shape and all learning rates, and whose
      losses are averaged over seeds
    loss: min(final, initial) loss; initial_loss
    unstable: compared with the best run of the same size and intervention, as critical rates are
    log_critical, log_best: log10 of the curve's critical and best learning rates; NaN of a curve
      with one learning rate, and the best one also where none trains, see lr_sensitivity.trains
    critical_censored, best_censored: 0 if it is exact, 1 if the true value is above it, -1 if
      below; NaN where there is none
    critical_spread: standard deviation over seeds of log10(critical rate); NaN if it is unknown
    grid_step: the largest distance of neighbouring learning rates of the curve, in decades; NaN if
      there is only one
    eps, warmup_steps
    log_gradient: log10 of the gradient RMS at the end of training
    and those of Results.sizes

  `running_max` maps a probe to log10 of its highest value so far: a row per run, a column per step.
  """

  runs: pd.DataFrame
  running_max: dict[str, pd.DataFrame]

  def select(self, mask: pd.Series) -> 'Observations':
    """The runs for which the mask is true."""
    return dataclasses.replace(self, runs=self.runs[mask])

  @property
  def curves(self) -> pd.DataFrame:
    """A row per curve: its first run."""
    return self.runs.drop_duplicates('curve')

  @property
  def sizes(self) -> np.ndarray:
    """The distinct parameter counts, ascending."""
    return np.sort(self.runs['parameters'].unique())

  @property
  def has_curves(self) -> bool:
    """Whether a size has runs at two learning rates."""
    return bool(self.runs['grid_step'].notna().any())

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


def by_arm(results: Results, curves: pd.DataFrame) -> dict[tuple, Observations]:
  """The observations of each intervention, keyed by its values of results.groups.

  Runs that a person has steered are left out.

  Args:
    results: the runs of a sweep or of a CSV file.
    curves: see results.load_curves, with the columns of PROBES.
  """
  results = dataclasses.replace(results, runs=results.runs[~results_lib.steered(results.runs)])
  runs = results.runs
  runs = runs.assign(
      parameters=runs['parameters'].astype(float),
      unstable=instability.unstable(results),
      loss=lr_sensitivity.counted_loss(runs),
  )
  runs['log_size'] = np.log10(runs['parameters'])
  runs['log_rate'] = np.log10(runs['learning_rate'])
  runs = _add_curves(runs, [*results.sizes, *results.groups])
  final_gradient = results_lib.at_end(curves, GRADIENT_RMS)
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
  # Of some 90 columns, since predictors select rows very often.
  few = runs[list(dict.fromkeys([*_COLUMNS, *results.sizes]))].copy()
  return {
      values: Observations(few.loc[of_group.index], running_max)
      for values, of_group in results_lib.split(runs, results.groups)
  }


def _running_max(curves: pd.DataFrame, probe: str) -> pd.DataFrame:
  """log10 of a probe's highest value so far: a row per run, a column per step of any run.

  A run that ended early keeps its last value, a lower bound on what it would have reached.
  """
  positive = curves[curves[probe] > 0]
  table = positive.pivot(index='run', columns='step', values=probe)
  return np.log10(table.ffill(axis='columns').cummax(axis='columns'))


def _add_curves(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
  """Adds the columns of Observations.runs that belong to a curve.

  Runs belong to the same curve if they agree in `columns` and parameters.
  """
  parts = [
      of_curve.assign(curve=number, **_rates(of_curve[of_curve['loss'].notna()]))
      for number, (_, of_curve) in enumerate(results_lib.split(runs, [*columns, 'parameters']))
  ]
  return pd.concat(parts).loc[runs.index]


def _rates(runs: pd.DataFrame) -> dict[str, float]:
  """The best and the critical learning rate of the counted runs of one curve, by column."""
  if runs['log_rate'].nunique() < 2:  # the loss at one rate says nothing of the others
    return dict.fromkeys(_CURVE_COLUMNS, np.nan)
  log_critical, critical_censored = _log_critical(runs)
  losses = _mean_curve(runs)
  log_best, best_censored = np.nan, np.nan
  if lr_sensitivity.trains(runs):
    log_best, best_censored = instability.log_best_rate(
        losses.index.to_numpy(), losses.to_numpy()
    )
  of_seeds = [_log_critical(of_seed) for _, of_seed in with_best_rate(runs).groupby('seed')]
  exact = [value for value, censored in of_seeds if not censored]
  steps = np.diff(np.sort(runs['log_rate'].unique()))
  values = (
      *(log_critical, critical_censored, log_best, best_censored),
      np.std(exact, ddof=1) if len(exact) > 1 else np.nan,
      steps.max(),
  )
  return dict(zip(_CURVE_COLUMNS, values, strict=True))


def _mean_curve(runs: pd.DataFrame) -> pd.Series:
  """The losses of one curve by log_rate, averaged over seeds; see lr_sensitivity.mean_curve."""
  losses = runs.groupby(['log_rate', 'seed'])['loss'].mean().unstack('seed')  # shapes of one size
  losses = lr_sensitivity.paired(losses)
  return pd.Series(lr_sensitivity.mean_curve(losses), losses.index)


def with_best_rate(runs: pd.DataFrame) -> pd.DataFrame:
  """The runs of those seeds of a curve that have the rate of its lowest mean loss.

  Others, such as a few further seeds near the critical rate, would be judged against the best of
  the rates that they happen to have.

  Args:
    runs: with the columns seed, log_rate and loss, which is never NaN.
  """
  best_rate = _mean_curve(runs).idxmin()
  return runs[runs['seed'].isin(runs['seed'][runs['log_rate'] == best_rate])]


def _log_critical(runs: pd.DataFrame) -> tuple[float, int]:
  """log10 of the critical learning rate of runs of one curve, averaged over seeds; censored."""
  losses = _mean_curve(runs)
  return instability.log_critical_rate(
      losses.index.to_numpy(), losses.to_numpy(), runs['initial_loss'].mean()
  )
