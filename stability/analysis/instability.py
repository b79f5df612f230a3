"""The definitions of unstable runs, of best and critical learning rates and of onsets."""

import numpy as np
import pandas as pd

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.results import Results

MARGIN = 0.05  # a fraction of the run's initial loss minus the best loss
FLAT = 0.25  # fraction of the margin by which a loss curve may rise from an end that is its best
SMOOTHING_WINDOW = 5  # logged steps in a moving average that ends at the current step
STEPS = 'schedule.steps'  # a run is compared with runs of its own length
UNSTABLE_LOGIT = 1e4  # the paper's runs with higher attention logits diverged (section 3.3)


def unstable(results: Results) -> pd.Series:
  """Whether each run is unstable, in the order of results.runs.

  NA for a run that does not count: it failed, was stopped or is missing. A run is unstable if it
  diverged, or if its loss has a rise above MARGIN. It is not compared with the best of all
  interventions: a better one would make others look unstable, and one with a higher best rate would
  hide failures below that rate.
  A run at the only learning rate of its size and intervention is compared with the best of the
  smaller sizes, like the paper's 4.8B model, whatever its learning rate; without smaller sizes, as
  in a random search, with the best of all interventions.
  """
  rises = rise(results)
  is_unstable = (rises > MARGIN) | (results.runs['status'] == 'diverged')
  return is_unstable.astype('boolean').where(rises.notna())


def rise(results: Results) -> pd.Series:
  """How far the loss of each run is above the best one, in the order of results.runs.

  It is a fraction of the run's initial loss minus the best loss of its size and intervention. It is
  0 at learning rates up to that of the best loss, where a run is only slow; NaN for a run that does
  not count.
  """
  runs, best = results.runs, best_runs(results)
  excess = lr_sensitivity.counted_loss(runs) - best['loss']
  best_is_smaller = best['parameters'] < runs['parameters']
  above_best = (runs['learning_rate'] > best['learning_rate']) | best_is_smaller
  learned = runs['initial_loss'] - best['loss']
  share = (excess / learned).where(learned > 0, np.where(excess > 0, np.inf, 0.0))
  return share.where(above_best, 0.0).where(excess.notna())


def log_best_rate(log_rates: np.ndarray, losses: np.ndarray) -> tuple[float, int]:
  """log10 of the best learning rate of one loss curve, and how it is censored.

  It is the vertex of a parabola; see vertex. If the lowest loss is at an end of the grid, the best
  rate is censored: it is on that side (-1: below, 1: above) of the midpoint to the only neighbour.

  Args:
    log_rates: log10 of the learning rates, ascending.
    losses: at each, without NaN.
  """
  lowest = losses.argmin()
  if lowest == 0:
    return log_rates[:2].mean(), -1
  if lowest == len(losses) - 1:
    return log_rates[-2:].mean(), 1
  return vertex(log_rates, losses), 0


def vertex(log_rates: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """The vertex of the parabola through the lowest loss of each curve and its two neighbours.

  It lies between their midpoints. Without two finite neighbours, it is the rate of the lowest loss.

  Args:
    log_rates: log10 of the learning rates [L], ascending.
    losses: at each [..., L], without NaN.
  """
  lowest = losses.argmin(axis=-1)
  middle = lowest.clip(1, len(log_rates) - 2)
  (x0, y0), (x1, y1), (x2, y2) = (
      (log_rates[at], np.take_along_axis(losses, at[..., None], -1)[..., 0])
      for at in (middle - 1, middle, middle + 1)
  )
  with np.errstate(divide='ignore', invalid='ignore'):  # of curves without a vertex
    left, right = (y0 - y1) / (x1 - x0), (y2 - y1) / (x2 - x1)
    found = ((x0 + x1) * right + (x1 + x2) * left) / (2 * (left + right))
  return np.where((middle == lowest) & np.isfinite(left + right), found, log_rates[lowest])[()]


def log_critical_rate(
    log_rates: np.ndarray, losses: np.ndarray, initial_loss: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """log10 of the critical learning rate of each loss curve of an arm, and how it is censored.

  It is the lowest learning rate above the best one at which the loss, interpolated linearly in
  log(learning rate), exceeds the curve's own best by MARGIN.

  Args:
    log_rates: log10 of the learning rates [L], ascending.
    losses: min(final, initial) [..., L] in nats, without NaN.
    initial_loss: nats, of all curves or of each.

  Returns:
    log10 of the critical learning rate and 0; if the grid ends below it, of the highest rate and 1;
    if the loss falls steeply to the lowest rate, so that the best one is below the grid and the
    margin counts from a loss that is too high, of an upper bound and -1; if no rate of the grid
    reduces the loss, of the lowest rate and -1.
  """
  lowest = losses.min(axis=-1)
  margin = MARGIN * (initial_loss - lowest)
  excess = losses - (lowest + margin)[..., None]
  from_best = np.arange(len(log_rates)) >= losses.argmin(axis=-1)[..., None]
  crossed = crossing(log_rates, np.where(from_best, excess, -np.inf))
  trains = lowest < initial_loss
  is_above = np.isnan(crossed) & trains
  found = np.where(trains, np.where(is_above, log_rates[-1], crossed), log_rates[0])
  # With a parabola to an optimum up to a decade lower, its loss is lower by about the first rise.
  first_rise = losses[..., :2].max(axis=-1) - losses[..., 0]
  is_steep = from_best[..., 0] & (first_rise > FLAT * margin)
  is_below = ~trains | is_steep & ~is_above
  return found[()], is_above.astype(int) - is_below


def crossing(log_rates: np.ndarray, excess: np.ndarray) -> np.ndarray:
  """The first point at which each curve exceeds 0, by linear interpolation; NaN if there is none.

  Args:
    log_rates: log10 of learning rates [L], in the order in which the curves are followed.
    excess: the value [..., L] at each; the first is at most 0.
  """
  is_above = excess > 0
  after = is_above.argmax(axis=-1)
  low, high = (np.take_along_axis(excess, at[..., None], -1)[..., 0] for at in (after - 1, after))
  with np.errstate(divide='ignore', invalid='ignore'):  # of curves without a crossing
    share = low / (low - high)
    crossed = log_rates[after - 1] * (1 - share) + log_rates[after] * share
  return np.where(is_above.any(axis=-1), crossed, np.nan)[()]


def onset(results: Results, curves: pd.DataFrame) -> pd.Series:
  """The step from which each run's loss stays too high, in the order of results.runs.

  It is the first logged step from which the smoothed training loss stays above that of the best run
  of its size by MARGIN; NaN if there is none. A loss that is not finite counts as infinite. A run
  whose learning rate is too low also has an onset, so an onset means instability only in an
  unstable run.

  Args:
    results: the runs of a sweep.
    curves: see results.load_curves; needs the columns run, step and loss.
  """
  runs = results.runs
  best = best_runs(results)
  margin = MARGIN * (runs['initial_loss'] - best['loss'])
  smoothed = {
      name: (curve['step'].to_numpy(), _smooth(curve['loss'].to_numpy()))
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
  """The best run with which each run is compared: run, loss, learning_rate and parameters.

  It is the best run of the same size and intervention and, if lengths differ, of the same length.
  If there is only one learning rate, with any number of seeds, it is the best run of all sizes up
  to this one or, if there is none smaller, of all interventions of the size. A run that a person or
  the policy acted on is the best one only if all others were acted on, too. The rows are those of
  results.runs; NaN if no run counts.
  """
  runs = results.runs.assign(
      loss=lr_sensitivity.counted_loss(results.runs),
      parameters=results.runs['parameters'].astype(float),
      is_own=results_lib.actions(results.runs) == 0,
  ).reset_index(drop=True)
  best_row = np.full(len(runs), np.nan)  # row numbers in `runs`
  size = ['parameters', *results.sizes, *(field for field in results.groups if field == STEPS)]
  of_sizes = {results_lib.key(key): of_size for key, of_size in results_lib.split(runs, size)}
  for _, of_arm in results_lib.split(runs, results.groups):
    for key, of_size in results_lib.split(of_arm, size):
      candidates = of_size
      if of_size['learning_rate'].nunique() == 1:
        is_smaller = of_arm['parameters'] < of_size['parameters'].iloc[0]
        candidates = of_arm[is_smaller | of_arm.index.isin(of_size.index)]
        if not is_smaller.any():
          candidates = of_sizes[results_lib.key(key)]
      of_own = candidates[candidates['is_own']]
      if of_own['loss'].notna().any():
        candidates = of_own
      if candidates['loss'].notna().any():
        best_row[of_size.index] = candidates['loss'].idxmin()
  columns = ['run', 'loss', 'learning_rate', 'parameters']
  return runs[columns].reindex(best_row).set_axis(results.runs.index)


def _smooth(losses: np.ndarray) -> np.ndarray:
  """Moving averages of the losses; infinite from the first loss that is not finite."""
  finite = np.logical_and.accumulate(np.isfinite(losses))
  means = pd.Series(losses).rolling(SMOOTHING_WINDOW, min_periods=1).mean()
  return np.where(finite, means, np.inf)


def _first_step_above(
    steps: np.ndarray,
    losses: np.ndarray,
    best_steps: np.ndarray,
    best_losses: np.ndarray,
    margin: float,
) -> float:
  """The first step from which all losses exceed the best losses by the margin; NaN if none."""
  above = losses > np.interp(steps, best_steps, best_losses) + margin
  below = np.flatnonzero(~above)
  first = below[-1] + 1 if len(below) else 0
  return float(steps[first]) if first < len(steps) else np.nan
