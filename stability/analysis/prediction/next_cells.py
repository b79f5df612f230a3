"""Which cells of a sweep to train next, so that it says most for its FLOPs.

A cell is an arm, a size and a learning rate. The losses of some cells are known; wanted are the
critical learning rate and the LR sensitivity of every curve, which is an arm at a size. Joint draws
of all losses (loss_surface.py) give draws of these, too. The worth of a cell is the variance of
what is wanted that its result would explain: draws are sorted by the loss that a run in the cell
would have and cut into bins; the variance between bins is explained. The cell with the highest
worth per FLOP is next.

Suffixes of arrays: K curves, L learning rates, D draws, C cells (K x L, flattened), Q critical
rates that are wanted.

A critical rate above the grid has no finite interval and is never known. A run at the upper end of
its curve, which next_sweep.py extends step by step, is worth as much as one that explains half a
step. The same holds below the grid.

Intervals span 90 % of the draws. At a target, they hold the truth at least as often; at the sizes
of the sweep, in COVERAGE of the cases.
"""

import dataclasses
import functools

import numpy as np

from stability.analysis import instability
from stability.analysis.prediction import fits, loss_surface, next_target
from stability.analysis.prediction.loss_surface import Cells, LossSurface

# The share of intervals at trained sizes that hold the critical rate that the grid would show
# without noise, of simulated curves (launch/benchmarks/next_coverage.py).
COVERAGE = 0.89
DRAWS = 1024
BINS = 16  # of draws, by the loss of a cell
# Random bins explain a share of (BINS - 1) / DRAWS of a variance; less than twice that counts as 0.
_CHANCE = 2 * (BINS - 1) / DRAWS
# LR sensitivity differs by about this fraction between seeds: knowing it better says nothing.
SENSITIVITY_TOLERANCE = 0.1
_SENSITIVITY_WEIGHT = 0.1  # the critical rate comes first: training ends when that is known
_FIRST_RATES = 2  # of a sweep without runs, every second rate of the smallest size is first


@dataclasses.dataclass(frozen=True)
class Curves:
  """The curves of a sweep: loss against learning rate, for every arm at every size."""

  arm_K: np.ndarray  # number of the arm
  log_size_K: np.ndarray  # log10(parameters)
  initial_loss_K: np.ndarray  # nats
  log_rate_L: np.ndarray  # log10(learning rate), ascending; all curves have the same
  in_window_KxL: np.ndarray  # whether the LR sensitivity of a curve counts the learning rate

  @property
  def cells(self) -> Cells:
    """The cells [C], all learning rates of the first curve first."""
    rates = len(self.log_rate_L)
    return Cells(
        np.repeat(self.arm_K, rates),
        np.repeat(self.log_size_K, rates),
        np.tile(self.log_rate_L, len(self.arm_K)),
    )

  @property
  def step(self) -> float:
    """The distance of neighbouring learning rates, in decades."""
    return float(np.median(np.diff(self.log_rate_L)))


@dataclasses.dataclass(frozen=True)
class Posterior:
  """Draws of what is wanted, given the runs so far."""

  loss_DxC: np.ndarray  # nats, without the noise of a run
  # log10 of the critical learning rates that are wanted: of every curve or, at a target, every arm.
  # Infinite: beyond the grid. NaN: of an arm with too few sizes whose critical rate is within it.
  log_critical_DxQ: np.ndarray
  explainable_DxQ: np.ndarray  # the part that runs of the curves explain; always finite
  variance_Q: np.ndarray  # of all that makes the critical rates uncertain
  sensitivity_DxK: np.ndarray  # LR sensitivity, in nats
  noise_C: np.ndarray  # standard deviation of the noise of a run's log loss
  censored_K: np.ndarray  # 1: the curve's critical rate is above the grid, -1: below, 0: neither
  wanted_K: np.ndarray  # the number of the wanted critical rate to which each curve belongs

  @functools.cached_property
  def critical_3xQ(self) -> np.ndarray:
    """The lower end, the median and the upper end of intervals of 90 % of log_critical_DxQ."""
    return _quantiles(self.log_critical_DxQ)

  @property
  def widths_Q(self) -> np.ndarray:
    """The widths of these intervals, in decades; infinite if an end is beyond the grid."""
    return _width(self.critical_3xQ)


@dataclasses.dataclass(frozen=True)
class Choice:
  """A cell to train next."""

  curve: int
  rate: int  # number of the learning rate
  about: int | None  # the wanted critical rate that it says most about; None: about none
  width: float  # of its interval, in decades; may be infinite; NaN: about none
  width_after: float  # expected after the run; NaN: about none


def critical_rates(loss_DxKxL: np.ndarray, curves: Curves) -> tuple[np.ndarray, np.ndarray]:
  """log10 of the critical learning rates [D, K]; see instability.log_critical_rate.

  One above the learning rates is given as half a step above the highest.
  """
  loss = np.minimum(loss_DxKxL, curves.initial_loss_K[:, None])
  found, censored = instability.log_critical_rate(curves.log_rate_L, loss, curves.initial_loss_K)
  return found + (censored == 1) * curves.step / 2, censored


def sensitivities(loss_DxKxL: np.ndarray, curves: Curves) -> np.ndarray:
  """LR sensitivities [D, K] in nats; 0 for a curve without a learning rate that counts."""
  loss = np.minimum(loss_DxKxL, curves.initial_loss_K[:, None])
  is_counted_K = curves.in_window_KxL.any(axis=1)
  counts_KxL = curves.in_window_KxL | ~is_counted_K[:, None]
  lowest = loss.min(axis=2, where=counts_KxL, initial=np.inf)
  return np.where(is_counted_K, loss.mean(axis=2, where=counts_KxL) - lowest, 0.0)


def posterior(surface: LossSurface, curves: Curves, target: float | None = None) -> Posterior:
  """Draws of what is wanted from a surface; equal arguments give equal draws.

  Args:
    surface: the posterior.
    curves: the curves of the sweep.
    target: log10 of the parameters of a size at which critical rates are wanted; None: those of the
      curves themselves are.
  """
  loss_DxC = np.exp(surface.draw(curves.cells, DRAWS, np.random.default_rng(0)))
  loss_DxKxL = loss_DxC.reshape(DRAWS, len(curves.arm_K), len(curves.log_rate_L))
  bounded, censored_DxK = critical_rates(loss_DxKxL, curves)
  log_critical = np.where(censored_DxK, np.copysign(np.inf, censored_DxK), bounded)
  low_K, _, high_K = _quantiles(log_critical)
  explainable, variance_Q, wanted_K = bounded, bounded.var(axis=0), np.arange(len(curves.arm_K))
  if target is not None:
    is_within_K = np.isfinite(low_K) & np.isfinite(high_K)
    explainable, at_target, has_enough_Q = _of_arms(
        np.clip(bounded, *curves.log_rate_L[[0, -1]]), censored_DxK, is_within_K, curves, target
    )
    variance_Q = at_target.var(axis=0)
    log_critical = np.where(has_enough_Q, at_target, np.nan)
    wanted_K = np.unique(curves.arm_K, return_inverse=True)[1]
  return Posterior(
      loss_DxC,
      log_critical,
      explainable,
      variance_Q,
      sensitivities(loss_DxKxL, curves),
      surface.covariance.noise_at(loss_surface.rises(curves.cells, np.log(loss_DxC).mean(axis=0))),
      np.isposinf(low_K).astype(int) - np.isneginf(high_K),
      wanted_K,
  )


def _of_arms(
    log_critical_DxK: np.ndarray,
    censored_DxK: np.ndarray,
    is_within_K: np.ndarray,
    curves: Curves,
    target: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean and value [D, Q] at a target by next_target.py, and which arms have enough sizes."""
  centre, found = curves.log_rate_L[[0, -1]].mean(), []
  for arm in np.unique(curves.arm_K):
    of_arm_K = curves.arm_K == arm
    found.append((
        *next_target.extrapolate(
            log_critical_DxK[:, of_arm_K],
            censored_DxK[:, of_arm_K],
            curves.log_size_K[of_arm_K],
            target,
            centre,
            curves.step,
        ),
        len(np.unique(curves.log_size_K[of_arm_K & is_within_K])) >= next_target.MIN_EXACT,
    ))
  mean, value, has_enough = zip(*found, strict=True)
  return np.stack(mean, axis=1), np.stack(value, axis=1), np.array(has_enough)


def choose(
    surface: LossSurface,
    now: Posterior,
    curves: Curves,
    cost_K: np.ndarray,
    is_candidate_C: np.ndarray,
    count: int,
    width: float,
    wanted_Q: np.ndarray | slice = slice(None),
    target: float | None = None,
) -> list[Choice]:
  """The cells to train next, the best one first; each as if those before it were trained.

  Args:
    surface: the posterior given the runs so far.
    now: what it says of the curves; see known.
    curves: the curves that are wanted.
    cost_K: FLOPs of a run on each curve.
    is_candidate_C: which cells may be chosen; a cell may be chosen once in a call.
    count: the number of cells. Fewer are returned if no other cell says anything.
    width: critical rates with a narrower interval are known; decades.
    wanted_Q: which of the critical rates are wanted.
    target: see posterior.
  """
  is_candidate_C, chosen = is_candidate_C.copy(), []
  is_end_C = _ends(now, curves, is_candidate_C)
  if not len(surface.runs):
    first = _first(curves, is_candidate_C)[:count]
    return [Choice(*divmod(c, len(curves.log_rate_L)), None, np.nan, np.nan) for c in first]
  for _ in range(count):
    found = _best(now, curves, cost_K, is_candidate_C, is_end_C, width, wanted_Q)
    if found is None:
      break
    chosen.append(found)
    cell = found.curve * len(curves.log_rate_L) + found.rate
    is_candidate_C[cell] = False
    # The variance that remains hardly depends on the result, so the expected one stands for it.
    expected = np.log(now.loss_DxC[:, cell]).mean(keepdims=True)
    surface = surface.with_runs(curves.cells[cell : cell + 1], expected)
    if len(chosen) < count:
      now = posterior(surface, curves, target)
  return chosen


def _first(curves: Curves, is_candidate_C: np.ndarray) -> list[int]:
  """The cells to begin with, without any run: every second rate of the smallest size."""
  smallest_K = curves.log_size_K == curves.log_size_K.min()
  number_KxL = np.cumsum(curves.in_window_KxL, axis=1)
  is_first_KxL = smallest_K[:, None] & curves.in_window_KxL & (number_KxL % _FIRST_RATES == 1)
  return np.flatnonzero(is_first_KxL.ravel() & is_candidate_C).tolist()


def _ends(now: Posterior, curves: Curves, is_candidate_C: np.ndarray) -> np.ndarray:
  """Which candidates [C] are the outermost of a curve whose critical rate is beyond them.

  This is found once per call, so that a curve is extended by one rate per call.
  """
  is_candidate_KxL = is_candidate_C.reshape(len(curves.arm_K), -1)
  number_KxL = np.cumsum(is_candidate_KxL, axis=1)
  end_K = np.where(now.censored_K > 0, number_KxL[:, -1], np.abs(now.censored_K))
  return (is_candidate_KxL & (number_KxL == end_K[:, None])).ravel()


def _best(
    now: Posterior,
    curves: Curves,
    cost_K: np.ndarray,
    is_candidate_C: np.ndarray,
    is_end_C: np.ndarray,
    width: float,
    wanted_Q: np.ndarray | slice,
) -> Choice | None:
  """The candidate that explains the most variance per FLOP; None if none explains any."""
  candidates = np.flatnonzero(is_candidate_C)
  if not len(candidates):
    return None
  rng = np.random.default_rng(1)
  noise_DxC = now.noise_C[candidates] * rng.standard_normal((DRAWS, 1))
  log_loss = np.log(now.loss_DxC[:, candidates]) + noise_DxC
  order_DxC = np.minimum(log_loss, _log_initial(curves)[candidates]).argsort(axis=0)
  open_Q = np.zeros(len(now.widths_Q), bool)
  open_Q[wanted_Q] = now.widths_Q[wanted_Q] > width
  known_sd = width / (2 * fits.NORMAL_HALF_WIDTH)
  curve_C = candidates // len(curves.log_rate_L)
  critical_CxQ = _explained(now.explainable_DxQ, now.variance_Q, order_DxC)
  unbounded_C = is_end_C[candidates] & np.isinf(now.widths_Q[now.wanted_K[curve_C]])
  critical_CxQ[unbounded_C, now.wanted_K[curve_C[unbounded_C]]] += (curves.step / 2) ** 2
  critical_CxQ *= open_Q / known_sd**2
  tolerance_K = SENSITIVITY_TOLERANCE * now.sensitivity_DxK.mean(axis=0)
  sensitivity_CxK = _explained(now.sensitivity_DxK, now.sensitivity_DxK.var(axis=0), order_DxC)
  # A curve with one learning rate has no LR sensitivity.
  sensitivity_CxK = sensitivity_CxK / np.where(tolerance_K > 0, tolerance_K, np.inf) ** 2
  worth_C = critical_CxQ.sum(axis=1) + _SENSITIVITY_WEIGHT * sensitivity_CxK.sum(axis=1)
  best = int((worth_C / cost_K[curve_C]).argmax())
  if worth_C[best] <= 0:
    return None
  cell = divmod(int(candidates[best]), len(curves.log_rate_L))
  if not critical_CxQ[best].any():
    return Choice(*cell, None, np.nan, np.nan)
  about = int(critical_CxQ[best].argmax())
  bins = np.split(now.log_critical_DxQ[order_DxC[:, best], about], BINS)
  after = np.mean([_width(_quantiles(each)) for each in bins])
  width_now = float(now.widths_Q[about])
  return Choice(*cell, about, width_now, min(float(after), width_now))


def _quantiles(draws: np.ndarray) -> np.ndarray:
  """The lower end, the median and the upper end of intervals of 90 % of the draws, each a draw."""
  low, high = fits.INTERVAL
  return np.percentile(draws, (low, 50, high), axis=0, method='nearest')


def _width(interval: np.ndarray) -> np.ndarray:
  low, _, high = interval
  has_ends = np.isfinite(low) & np.isfinite(high)
  return np.subtract(high, low, out=np.full_like(low, np.inf), where=has_ends)


def _log_initial(curves: Curves) -> np.ndarray:
  return np.repeat(np.log(curves.initial_loss_K), len(curves.log_rate_L))


def _explained(values_DxK: np.ndarray, variance_K: np.ndarray, order_DxC: np.ndarray) -> np.ndarray:
  """The variance [C, K] of the values that each cell's loss explains.

  It is 0 if it may be chance, or if it is a negligible part of all that is uncertain, `variance_K`.
  """
  between_CxK = np.array([
      values_DxK[order_D].reshape(BINS, -1, values_DxK.shape[1]).mean(axis=1).var(axis=0)
      for order_D in order_DxC.T
  ])
  return np.where(between_CxK > _CHANCE * variance_K, between_CxK, 0.0)


def is_known(now: Posterior, width: float, wanted_Q: np.ndarray | slice = slice(None)) -> bool:
  """Whether the interval of every wanted critical rate is at most this wide (decades).

  At the sizes of a sweep, the truth is then within it in COVERAGE of the cases.
  """
  return bool((now.widths_Q[wanted_Q] <= width).all())
