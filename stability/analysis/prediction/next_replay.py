"""Replays of finished sweeps in other orders: how soon critical rates are known.

The orders: `next` (next_cells.choose), `random` with the same model, `bisection` for each curve by
itself, without a model. A replay reveals results of the sweep one cell after another. After each
it compares the critical rates known so far with those of the full grid.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis.prediction import loss_surface, next_cells
from stability.analysis.prediction.next_cells import Curves
from stability.analysis.prediction.next_sweep import SweepState
from stability.analysis.results import Results
from stability.errors import BadInput

ORDERS = ('next', 'random', 'bisection')
_REFIT = 1.1  # the covariance is fitted again after this factor of runs


@dataclasses.dataclass(frozen=True)
class Finished:
  """A sweep of which every cell is known."""

  curves: Curves
  loss_KxL: np.ndarray  # min(final, initial) averaged over seeds, nats
  cost_K: np.ndarray  # FLOPs of a run on each curve

  @property
  def log_critical_K(self) -> np.ndarray:
    """log10 of the critical learning rates by the full grid; see next_cells.critical_rates."""
    return next_cells.critical_rates(self.loss_KxL[None], self.curves)[0][0]


def of_results(results: Results, cost_K: np.ndarray) -> Finished:
  """A finished sweep; `cost_K` are FLOPs of a run on each curve of next_sweep.SweepState.

  Raises:
    BadInput: a cell has no loss.
  """
  state = SweepState(results)
  curves = state.curves
  in_grids_L = state.in_grid_KxL.all(axis=0)
  inner = dataclasses.replace(
      curves,
      log_rate_L=curves.log_rate_L[in_grids_L],
      in_window_KxL=curves.in_window_KxL[:, in_grids_L],
  )
  losses = state.runs.pivot_table(
      index='curve_number', columns='learning_rate', values='loss', dropna=False
  )
  if losses.isna().to_numpy().any():
    raise BadInput('the sweep is not finished: some of its cells have no loss')
  return Finished(inner, losses.to_numpy(float), cost_K)


def replay(finished: Finished, order: str, width: float, seed: int = 0) -> pd.DataFrame:
  """A row per trained cell: the share of the grid's FLOPs so far, and what is known then.

  Args:
    finished: the sweep.
    order: one of ORDERS.
    width: decades; see next_cells.choose.
    seed: of the random order.

  Returns:
    Columns: flops (share of the full grid's), within (share of the curves whose critical rate is
    within half a grid step of the full grid's), error (the largest, decades), widest (the widest
    interval, decades, without curves whose critical rate is known to be beyond the grid, which
    a replay cannot extend; NaN without a model).
  """
  if order == 'bisection':
    estimates = _bisection(finished)
  else:
    estimates = _modelled(finished, order, width, seed)
  total = finished.cost_K.sum() * finished.loss_KxL.shape[1]
  spent, rows = 0.0, []
  for curve, log_critical_K, widest in estimates:
    spent += finished.cost_K[curve]
    error_K = np.abs(log_critical_K - finished.log_critical_K)
    within = (error_K <= finished.curves.step / 2).mean()
    rows.append((spent / total, within, error_K.max(), widest))
  return pd.DataFrame(rows, columns=['flops', 'within', 'error', 'widest'])


def known_at(replayed: pd.DataFrame) -> float:
  """The share of FLOPs from which on every critical rate is within half a step; NaN: none."""
  wrong = np.flatnonzero(replayed['within'] < 1)
  after = wrong[-1] + 1 if len(wrong) else 0
  return float(replayed['flops'].iloc[after]) if after < len(replayed) else np.nan


def stops_at(replayed: pd.DataFrame, width: float) -> float:
  """The share of FLOPs at which all intervals are narrower than this; NaN: none."""
  stops = np.flatnonzero(replayed['widest'] <= width)
  return float(replayed['flops'].iloc[stops[0]]) if len(stops) else np.nan


def at(replayed: pd.DataFrame, flops: float) -> pd.Series:
  """The last row that a share of FLOPs allows."""
  return replayed[replayed['flops'] <= flops + 1e-9].iloc[-1]


def _modelled(
    finished: Finished, order: str, width: float, seed: int
) -> Iterator[tuple[int, np.ndarray, float]]:
  """Yields the curve of each trained cell, and the estimates and the widest interval after it."""
  curves, rng = finished.curves, np.random.default_rng(seed)
  rates = len(curves.log_rate_L)
  cells, loss_C = curves.cells, finished.loss_KxL.ravel()
  trained: list[int] = []
  surface, fitted = loss_surface.fit(cells[trained], loss_C[trained]), 0
  now = next_cells.posterior(surface, curves)
  queue = rng.permutation(len(cells)).tolist() if order == 'random' else []
  while len(trained) < len(cells):
    if not queue:
      is_candidate_C = ~np.isin(np.arange(len(cells)), trained)
      count = 1 if trained else len(cells)
      chosen = next_cells.choose(
          surface, now, curves, finished.cost_K, is_candidate_C, count, width
      )
      queue = [choice.curve * rates + choice.rate for choice in chosen]
    if not queue:
      return
    trained.append(queue.pop(0))
    runs, loss_N = cells[trained], loss_C[trained]
    if len(trained) >= _REFIT * fitted:
      surface, fitted = loss_surface.fit(runs, loss_N, surface.covariance), len(trained)
    else:
      surface = surface.with_runs(runs[-1:], np.log(loss_N[-1:]))
    now = next_cells.posterior(surface, curves)
    widest = now.widths_Q[now.censored_K == 0].max(initial=0.0)
    yield trained[-1] // rates, np.median(now.explainable_DxQ, axis=0), float(widest)


def _bisection(finished: Finished) -> Iterator[tuple[int, np.ndarray, float]]:
  """Searches each curve by itself: first the lowest loss, then the crossing of the margin."""
  curves = finished.curves
  found_K = np.full(len(curves.arm_K), np.inf)  # nothing is known of a curve before its search
  for curve, loss_L in enumerate(finished.loss_KxL):
    visited: list[int] = []
    low, high = 0, len(loss_L) - 1
    while low < high:
      at = (low + high) // 2
      visited += [at, at + 1]
      low, high = (low, at) if loss_L[at + 1] > loss_L[at] else (at + 1, high)
    best, initial = low, curves.initial_loss_K[curve]
    margin = instability.MARGIN * (initial - loss_L[best])
    low, high = best, len(loss_L)
    while high - low > 1:
      at = (low + high) // 2
      visited.append(at)
      low, high = (low, at) if loss_L[at] > loss_L[best] + margin else (at, high)
    visited = list(dict.fromkeys(visited))
    for _ in visited[:-1]:
      yield curve, found_K.copy(), np.nan
    found_K[curve] = finished.log_critical_K[curve]
    if high < len(loss_L):
      excess = loss_L[[low, high]] - loss_L[best] - margin
      found_K[curve] = instability.crossing(curves.log_rate_L[[low, high]], excess)
    yield curve, found_K.copy(), np.nan
