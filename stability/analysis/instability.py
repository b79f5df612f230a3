"""Which runs are unstable, and from which step on: the definitions that all others go by."""

import numpy as np
import pandas as pd

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.results import Results

MARGIN = 0.05  # of what the best run of the size learned: initial loss minus its final loss
SMOOTHED = 5  # logged steps that a smoothed loss is the mean of: the last one and those before it
UNSTABLE_LOGIT = 1e4  # runs with attention logits above it diverged (paper section 3.3)


def unstable(results: Results) -> pd.Series:
  """For each run, in the order of results.runs, whether it is unstable; NA where it does not count.

  Unstable: diverged, or at a learning rate above the best one of its size with a loss above the
  best one's by more than MARGIN. The best run of a size is that with the lowest loss, over all
  interventions and seeds. A run without another one of its size, as the paper's of 4.8B is, is held
  against the best of the smaller sizes as well, whatever its learning rate.
  """
  runs, best = results.runs, best_runs(results)
  excess = _excess(runs, best)
  of_others = best['parameters'] < runs['parameters']
  above_best = (runs['learning_rate'] > best['learning_rate']) | of_others
  found = (excess > 0) & above_best | (runs['status'] == 'diverged')
  return found.astype('boolean').where(excess.notna())


def loss_excess(results: Results) -> pd.Series:
  """For each run, by how much min(final, initial) misses the margin to the best of its size, nats.

  Above 0: too high. NaN where the run does not count.
  """
  return _excess(results.runs, best_runs(results))


def _excess(runs: pd.DataFrame, best: pd.DataFrame) -> pd.Series:
  margin = MARGIN * (runs['initial_loss'] - best['loss'])
  return lr_sensitivity.counted_loss(runs) - best['loss'] - margin


def onset(results: Results, curves: pd.DataFrame) -> pd.Series:
  """For each run, in the order of results.runs, the step from which its loss stays too high.

  The first logged step from which the smoothed training loss stays above that of the best run of
  its size by MARGIN; NaN where there is none. A loss that is not finite is above any. A learning
  rate that is too low gives an onset as well: only that of an unstable run is one of instability.

  Args:
    results: a sweep's runs.
    curves: with the columns run, step and loss, see tables.load_curves.
  """
  runs = results.runs
  best = best_runs(results)
  margin = MARGIN * (runs['initial_loss'] - best['loss'])
  smoothed = {
      name: (curve['step'].to_numpy(), _smoothed(curve['loss'].to_numpy()))
      for name, curve in curves.groupby('run', observed=True)
  }
  steps = [
      _first_step_above(*smoothed[name], *smoothed[best_name], above)
      if name in smoothed and best_name in smoothed
      else np.nan
      for name, best_name, above in zip(runs['run'], best['run'], margin, strict=True)
  ]
  return pd.Series(steps, runs.index, float)


def best_runs(results: Results) -> pd.DataFrame:
  """For each run, the run, loss, learning_rate and parameters of the best of its size, or NaN.

  Of a size with one run alone, whatever its seeds, the best of those not larger.
  """
  runs = results.runs.assign(
      loss=lr_sensitivity.counted_loss(results.runs),
      parameters=results.runs['parameters'].astype(float),
  ).reset_index(drop=True)
  best = np.full(len(runs), np.nan)  # rows
  for _, of_size in results_lib.split(runs, ['parameters', *results.sizes]):
    others = of_size
    if (of_size[['learning_rate', *results.groups]].nunique(dropna=False) == 1).all():
      smaller = runs['parameters'] < of_size['parameters'].iloc[0]
      others = runs[smaller | runs.index.isin(of_size.index)]
    if others['loss'].notna().any():
      best[of_size.index] = others['loss'].idxmin()
  columns = ['run', 'loss', 'learning_rate', 'parameters']
  return runs[columns].reindex(best).set_axis(results.runs.index)


def _smoothed(losses: np.ndarray) -> np.ndarray:
  """Means over the last SMOOTHED lines; infinite from the first loss that is not finite on."""
  finite = np.logical_and.accumulate(np.isfinite(losses))
  means = pd.Series(losses).rolling(SMOOTHED, min_periods=1).mean()
  return np.where(finite, means, np.inf)


def _first_step_above(
    steps: np.ndarray,
    losses: np.ndarray,
    best_steps: np.ndarray,
    best_losses: np.ndarray,
    margin: float,
) -> float:
  above = losses > np.interp(steps, best_steps, best_losses) + margin
  below = np.flatnonzero(~above)
  first = below[-1] + 1 if len(below) else 0
  return float(steps[first]) if first < len(steps) else np.nan
