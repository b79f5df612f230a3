"""What a leaderboard says of one curve of loss over learning rate.

All is relative to the curve's own best loss, since a better arm must not make others look unstable.
"""

import dataclasses

import numpy as np
import pandas as pd

from stability.analysis import instability, lr_sensitivity

WIDTHS = {'width_02': 0.02, 'width_05': 0.05, 'width_10': 0.1}  # excess over the best loss, nats
MULTIPLES = {'loss_at_3x': 3, 'loss_at_10x': 10}  # of the best learning rate
WINDOW = 3.0  # decades around the best rate of the grid, for LR sensitivity
# A rate belongs to the window if it is this close to it, in decades: grids have 3e-4, not 10^-3.5.
_SLACK = 0.05
RATIOS = ('best_learning_rate', 'critical_learning_rate', 'headroom')  # those with no zero
COLUMNS = (
    *('best_loss', 'best_learning_rate', 'lr_sensitivity', *WIDTHS),
    *('critical_learning_rate', 'headroom', *MULTIPLES, 'regret'),
)
BELOW, EXACT, ABOVE = -1, 0, 1


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Numbers of one curve.

  `values` has those of COLUMNS: losses and regret in nats, widths in decades; NaN where the grid
  does not tell: with the lowest loss at an end, all that is relative to it. `censored` names those
  that are only bounds: ABOVE if the true value is at least the one given, BELOW if it is at most
  that.
  """

  values: dict[str, float]
  censored: dict[str, int]
  edge: int  # the end of the grid at which the loss is lowest; EXACT (0) if it is lowest inside
  grid_rate: float = float('nan')  # the rate with the lowest loss; NaN at an edge


def statistics(
    learning_rates: np.ndarray,
    losses: np.ndarray,
    initial_loss: float,
    reference_rate: float = float('nan'),
) -> Statistics:
  """The statistics of a curve.

  Args:
    learning_rates: ascending.
    losses: min(final, initial) at each, nats; NaN does not count.
    initial_loss: nats.
    reference_rate: the grid_rate of the smallest size, for the regret.
  """
  counted = ~np.isnan(losses)
  log_rates, losses = np.log10(learning_rates[counted]), losses[counted]
  values = dict.fromkeys(COLUMNS, float('nan'))
  if not len(losses):
    return Statistics(values, {}, EXACT)
  lowest = int(losses.argmin())
  best = float(losses[lowest])
  values['best_loss'] = best
  if best >= initial_loss:  # nothing was learned at any rate: all may be too high
    return Statistics(values, {'best_loss': BELOW}, BELOW)
  log_best, edge = instability.log_best_rate(log_rates, losses)
  values['best_learning_rate'] = 10**log_best
  if edge:
    return Statistics(values, {'best_loss': BELOW, 'best_learning_rate': edge}, edge)
  censored = {}

  values['lr_sensitivity'] = _sensitivity(log_rates, losses, log_rates[lowest])
  for name, excess in WIDTHS.items():
    values[name], is_covered = width(log_rates, losses, excess)
    if not is_covered:
      censored[name] = ABOVE

  log_critical, is_censored = instability.log_critical_rate(log_rates, losses, initial_loss)
  values['critical_learning_rate'] = 10**log_critical
  # The vertex of a parabola between steep neighbours can lie above the interpolated crossing.
  values['headroom'] = 10 ** max(0.0, log_critical - log_best)
  if is_censored:
    censored |= {'critical_learning_rate': ABOVE, 'headroom': ABOVE}

  for name, factor in MULTIPLES.items():
    values[name] = at(log_rates, losses, log_best + np.log10(factor))
  values['regret'] = at(log_rates, losses, np.log10(reference_rate)) - best
  return Statistics(values, censored, EXACT, float(10 ** log_rates[lowest]))


def at(log_rates: np.ndarray, losses: np.ndarray, log_rate: float) -> float:
  """The loss at a rate, interpolated linearly in its logarithm; NaN outside of the grid."""
  return float(np.interp(log_rate, log_rates, losses, left=np.nan, right=np.nan))


def _sensitivity(log_rates: np.ndarray, losses: np.ndarray, centre: float) -> float:
  """LR sensitivity on the window around a rate; NaN if the grid does not cover the window."""
  inside = WINDOW / 2 - _SLACK
  if log_rates[0] > centre - inside or log_rates[-1] < centre + inside:
    return float('nan')
  reach = WINDOW / 2 + _SLACK
  limits = (10 ** (centre - reach), 10 ** (centre + reach))
  rates = pd.Index(10**log_rates)
  return float(lr_sensitivity.sensitivities(rates, losses[:, None], [limits])[0, 0])


def width(log_rates: np.ndarray, losses: np.ndarray, excess: float) -> tuple[float, bool]:
  """The decades around the best rate within `excess` nats of its loss; whether both ends are known.

  Args:
    log_rates: log10 of the learning rates, ascending.
    losses: at each, without NaN.
    excess: nats.
  """
  lowest = int(losses.argmin())
  above = losses - losses[lowest] - excess
  left = instability.crossing(log_rates[lowest::-1], above[lowest::-1])
  right = instability.crossing(log_rates[lowest:], above[lowest:])
  is_covered = not np.isnan([left, right]).any()
  left = log_rates[0] if np.isnan(left) else left
  right = log_rates[-1] if np.isnan(right) else right
  return float(right - left), is_covered
