"""A sweep, finished or not, as the curves and cells of next_cells.py."""

import dataclasses
import functools

import numpy as np
import pandas as pd

from stability.analysis import instability, lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.prediction import loss_surface, next_cells
from stability.analysis.prediction.loss_surface import Cells, LossSurface
from stability.analysis.prediction.next_cells import Choice, Curves, Posterior
from stability.analysis.results import Results

INITIAL_LOSS = np.log(256) + 0.5  # nats, of a byte model; used as long as no run has measured one


@dataclasses.dataclass(frozen=True)
class NextRun:
  """A run to train next."""

  choice: Choice
  like: pd.Series  # a row of Results.runs with its arm and size
  learning_rate: float
  seed: int
  run: str | None  # its name, if it is a run of the sweep; None: it must be added


@dataclasses.dataclass(frozen=True)
class SweepState:
  """The curves of a sweep, what is wanted of them and what is known.

  The window of a curve spans the learning rates that the sweep has for it. Runs in the window may
  be next, and runs one step beyond an end at which it ends too early.
  """

  results: Results
  width: float | None = None  # decades; see next_cells.choose. None: the default, see known_width
  target: float | None = None  # parameters of a size; see next_cells.posterior
  arms: tuple[int, ...] | None = None  # numbers of the arms that are wanted; None: all

  @functools.cached_property
  def runs(self) -> pd.DataFrame:
    """The runs with arm_number, curve_number and loss (NaN: does not count or was acted on)."""
    runs = self.results.runs
    loss = lr_sensitivity.counted_loss(runs)
    runs = runs.assign(loss=loss.mask(results_lib.steered(runs)))
    for name, columns in (('arm', self.results.groups), ('curve', self._of_curve)):
      number = pd.Series(0, runs.index)
      for i, (_, part) in enumerate(results_lib.split(runs, columns)):
        number[part.index] = i
      runs[f'{name}_number'] = number
    return runs

  @property
  def _of_curve(self) -> list[str]:
    return [*self.results.groups, *(self.results.sizes or ['parameters'])]

  @functools.cached_property
  def first_of_curves(self) -> pd.DataFrame:
    """The first run of each curve."""
    return self.runs.drop_duplicates('curve_number').sort_values('curve_number')

  @functools.cached_property
  def arm_values(self) -> list[tuple]:
    """The values of results.groups of each arm."""
    firsts = self.runs.drop_duplicates('arm_number').sort_values('arm_number')
    return list(firsts[self.results.groups].itertuples(index=False, name=None))

  @functools.cached_property
  def curves(self) -> Curves:
    """The curves, which all have the same learning rates."""
    firsts = self.first_of_curves
    initial = self.runs.groupby('curve_number')['initial_loss'].mean()
    initial = initial.fillna(initial.mean()).fillna(INITIAL_LOSS)
    rates = self._log_rates
    low_Kx1, high_Kx1 = self._windows[['low', 'high']].to_numpy()[..., None].swapaxes(0, 1)
    return Curves(
        firsts['arm_number'].to_numpy(),
        np.log10(firsts['parameters'].to_numpy(float)),
        initial.to_numpy(float),
        rates,
        (rates >= low_Kx1) & (rates <= high_Kx1),
    )

  @functools.cached_property
  def _windows(self) -> pd.DataFrame:
    """log10 of the learning rates of each curve: low, high; and whether it is too_low, too_high.

    A window is too low if its runs, that of the highest rate included, put the critical rate above
    it. It is too high if all its runs have a loss and the best rate is the lowest one or the
    critical rate is below the window.
    """
    losses = self.runs.pivot_table(
        index='learning_rate', columns='curve_number', values='loss', dropna=False
    )
    rows = []
    for curve, of_curve in self.runs.groupby('curve_number'):
      rates = np.sort(of_curve['learning_rate'].unique())
      loss_L = losses.loc[rates, curve].to_numpy(float)
      is_above = is_below = False
      if np.isfinite(loss_L[-1]):
        has_loss = np.isfinite(loss_L)
        _, censored = instability.log_critical_rate(
            np.log10(rates[has_loss]), loss_L[has_loss], of_curve['initial_loss'].mean()
        )
        is_above = censored == 1
        is_below = has_loss.all() and (censored == -1 or loss_L.argmin() == 0)
      rows.append((np.log10(rates[0]), np.log10(rates[-1]), is_above, is_below))
    return pd.DataFrame(rows, columns=['low', 'high', 'too_low', 'too_high'])

  @functools.cached_property
  def _log_rates(self) -> np.ndarray:
    """log10 of the learning rates of all curves, with those one step beyond their windows."""
    inner = np.log10(np.sort(self.runs['learning_rate'].unique()))
    step, windows = np.median(np.diff(inner)), self._windows
    is_below = (windows['too_high'] & (windows['low'] <= inner[0])).any()
    is_above = (windows['too_low'] & (windows['high'] >= inner[-1])).any()
    below, above = inner[:1] - step if is_below else [], inner[-1:] + step if is_above else []
    return np.array([*below, *inner, *above])

  @property
  def _may_be_next_KxL(self) -> np.ndarray:
    """The cells, by curve and learning rate, whose runs may be next."""
    windows, rates_L, step = self._windows, self.curves.log_rate_L, self.curves.step
    low_K = windows['low'] - 1.1 * step * windows['too_high']
    high_K = windows['high'] + 1.1 * step * windows['too_low']
    return (rates_L >= low_K.to_numpy()[:, None]) & (rates_L <= high_K.to_numpy()[:, None])

  @functools.cached_property
  def known_width(self) -> float:
    """The width of the interval of a critical rate that is known, in decades.

    By default, half a step of the grid; at a target, where a law of a few sizes says less, two.
    """
    if self.width is not None:
      return self.width
    return self.curves.step * (0.5 if self.target is None else 2.0)

  @functools.cached_property
  def surface(self) -> LossSurface:
    """The posterior given the runs that count."""
    runs = self.runs.dropna(subset='loss')
    return loss_surface.fit(
        Cells(
            runs['arm_number'].to_numpy(),
            np.log10(runs['parameters'].to_numpy(float)),
            np.log10(runs['learning_rate'].to_numpy()),
        ),
        runs['loss'].to_numpy(float),
    )

  @functools.cached_property
  def now(self) -> Posterior:
    """Draws of what is wanted, given the runs so far."""
    log_size = None if self.target is None else float(np.log10(self.target))
    return next_cells.posterior(self.surface, self.curves, log_size)

  @property
  def arm_of_wanted(self) -> np.ndarray:
    """The arm [Q] of each wanted critical rate."""
    arms = self.curves.arm_K
    return arms if self.target is None else np.unique(arms)

  @property
  def is_wanted(self) -> np.ndarray:
    """Which critical rates [Q] are wanted."""
    arms = self.arm_of_wanted
    return np.ones(len(arms), bool) if self.arms is None else np.isin(arms, self.arms)

  @property
  def is_known(self) -> bool:
    """Whether the critical rates of all wanted curves are known."""
    return next_cells.is_known(self.now, self.known_width, self.is_wanted)

  def next_runs(self, cost_K: np.ndarray, count: int) -> list[NextRun]:
    """The runs to train next, the best one first; `cost_K` are FLOPs of a run on each curve."""
    curves = self.curves
    is_candidate_KxL = self._may_be_next_KxL
    if self.arms is not None:
      is_candidate_KxL = is_candidate_KxL & np.isin(curves.arm_K, self.arms)[:, None]
    chosen = next_cells.choose(
        self.surface,
        self.now,
        curves,
        cost_K,
        is_candidate_KxL.ravel(),
        count,
        self.known_width,
        self.is_wanted,
        None if self.target is None else float(np.log10(self.target)),
    )
    return [self._next_run(choice) for choice in chosen]

  def _next_run(self, choice: Choice) -> NextRun:
    log_rate = self.curves.log_rate_L[choice.rate]
    runs = self.runs[self.runs['curve_number'] == choice.curve]
    in_cell = runs[np.isclose(np.log10(runs['learning_rate']), log_rate)]
    like = runs.iloc[0]
    missing = in_cell[in_cell['status'] == 'missing'].sort_values('seed')
    if len(missing):
      row = missing.iloc[0]
      return NextRun(choice, like, row['learning_rate'], int(row['seed']), row['run'])
    if len(in_cell):
      rate, seed = in_cell['learning_rate'].iloc[0], in_cell['seed'].max() + 1
    else:
      rates = self.runs['learning_rate']
      same = rates[np.isclose(np.log10(rates), log_rate)]
      rate = same.iloc[0] if len(same) else float(f'{10**log_rate:.2g}')
      seed = self.runs['seed'].min()
    return NextRun(choice, like, float(rate), int(seed), None)
