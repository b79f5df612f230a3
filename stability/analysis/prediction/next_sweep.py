"""A sweep, finished or not, as the curves and cells of next_cells.py."""

import dataclasses
import functools

import numpy as np
import pandas as pd

from stability.analysis import instability, lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis import windows as windows_lib
from stability.analysis.prediction import loss_surface, next_cells
from stability.analysis.prediction.loss_surface import Cells, LossSurface
from stability.analysis.prediction.next_cells import Choice, Curves, Posterior
from stability.analysis.results import Results

INITIAL_LOSS = np.log(256) + 0.5  # nats, of a byte model; used as long as no run has measured one


@dataclasses.dataclass(frozen=True)
class NextRun:
  """A run to train next."""

  choice: Choice
  like: pd.Series  # a row of SweepState.runs: itself, or one of its arm, size and parent
  learning_rate: float
  seed: int
  run: str | None  # its name, if it is a run of the sweep; None: it must be added


@dataclasses.dataclass(frozen=True)
class SweepState:
  """The curves of a sweep, what is wanted of them and what is known.

  The grid of a curve spans the learning rates that the sweep has for it. Runs in the grid may be
  next, and runs one step beyond an end at which it ends too early. If results.windows apply to the
  curve, LR sensitivity is that of the rates in them.
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
    return Curves(
        firsts['arm_number'].to_numpy(),
        np.log10(firsts['parameters'].to_numpy(float)),
        initial.to_numpy(float),
        self._log_rates,
        self.in_grid_KxL & self._in_windows_KxL,
    )

  @property
  def in_grid_KxL(self) -> np.ndarray:
    """A mask of the learning rates between the lowest and the highest one of each curve."""
    low_Kx1, high_Kx1 = self._grids[['low', 'high']].to_numpy()[..., None].swapaxes(0, 1)
    return (self._log_rates >= low_Kx1) & (self._log_rates <= high_Kx1)

  @property
  def _in_windows_KxL(self) -> np.ndarray:
    """A mask of the learning rates within the windows that apply to each curve."""
    in_windows_KxL = np.ones((len(self.first_of_curves), len(self._log_rates)), bool)
    for curve, values in enumerate(self.first_of_curves[self._of_curve].to_dict('records')):
      if (found := windows_lib.find(self.results.windows, values)) is not None:
        in_windows_KxL[curve] = [
            any(windows_lib.inside(rate, window) for window in found)
            for rate in 10**self._log_rates
        ]
    return in_windows_KxL

  @functools.cached_property
  def _grids(self) -> pd.DataFrame:
    """log10 of the learning rates of each curve: low, high; and whether it is too_low, too_high.

    A grid is too low if its runs, that of the highest rate included, put the critical rate above
    it. It is too high if all its runs have a loss and the best rate is the lowest one or the
    critical rate is below the grid.
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
    """log10 of the learning rates of all curves, with those one step beyond their grids."""
    inner = np.log10(np.sort(self.runs['learning_rate'].unique()))
    step, grids = np.median(np.diff(inner)), self._grids
    is_below = (grids['too_high'] & (grids['low'] <= inner[0])).any()
    is_above = (grids['too_low'] & (grids['high'] >= inner[-1])).any()
    below, above = inner[:1] - step if is_below else [], inner[-1:] + step if is_above else []
    return np.array([*below, *inner, *above])

  @property
  def _may_be_next_KxL(self) -> np.ndarray:
    """The cells, by curve and learning rate, whose runs may be next."""
    grids, rates_L, step = self._grids, self.curves.log_rate_L, self.curves.step
    low_K = grids['low'] - 1.1 * step * grids['too_high']
    high_K = grids['high'] + 1.1 * step * grids['too_low']
    in_reach_KxL = (rates_L >= low_K.to_numpy()[:, None]) & (rates_L <= high_K.to_numpy()[:, None])
    return in_reach_KxL & self._can_be_trained_KxL

  @functools.cached_property
  def _can_be_trained_KxL(self) -> np.ndarray:
    """The cells that have a run to train or can get one."""
    can_be_trained_KxL = np.ones((len(self.first_of_curves), len(self._log_rates)), bool)
    if not self._parents_vary:
      return can_be_trained_KxL
    for curve, of_curve in self.runs.groupby('curve_number'):
      in_cells = [_at(of_curve, log_rate) for log_rate in self._log_rates]
      can_be_trained_KxL[curve] = [
          len(_untrained(in_cell)) > 0 or self._new_seed(of_curve, in_cell) is not None
          for in_cell in in_cells
      ]
    return can_be_trained_KxL

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

  def in_cell(self, choice: Choice) -> pd.DataFrame:
    """The runs of a cell, with the columns of `runs`."""
    return _at(self._of_choice(choice), self.curves.log_rate_L[choice.rate])

  def _of_choice(self, choice: Choice) -> pd.DataFrame:
    return self.runs[self.runs['curve_number'] == choice.curve]

  def _next_run(self, choice: Choice) -> NextRun:
    of_curve, in_cell = self._of_choice(choice), self.in_cell(choice)
    untrained = _untrained(in_cell)
    if len(untrained):
      row = untrained.iloc[0]
      return NextRun(choice, row, row['learning_rate'], int(row['seed']), row['run'])
    seed = self._new_seed(of_curve, in_cell)
    of_seed = of_curve[of_curve['seed'] == seed]
    like = (of_seed if len(of_seed) else of_curve).iloc[0]
    log_rate = self.curves.log_rate_L[choice.rate]
    same = in_cell if len(in_cell) else _at(self.runs, log_rate)
    rate = same['learning_rate'].iloc[0] if len(same) else float(f'{10**log_rate:.2g}')
    return NextRun(choice, like, float(rate), seed, None)

  def _new_seed(self, of_curve: pd.DataFrame, in_cell: pd.DataFrame) -> int | None:
    """The seed of a run that a cell lacks; None: there is none whose parent is known."""
    if not self._parents_vary:
      return int(in_cell['seed'].max() + 1 if len(in_cell) else self.runs['seed'].min())
    parents = of_curve.groupby('seed')['init.checkpoint'].nunique(dropna=False)
    seeds = set(parents.index[parents == 1]) - set(in_cell['seed'])
    return int(min(seeds)) if seeds else None

  @functools.cached_property
  def _parents_vary(self) -> bool:
    """Whether a curve has runs of several parents, such as one for each seed."""
    if 'init.checkpoint' not in self.runs:
      return False
    parents = self.runs.groupby('curve_number')['init.checkpoint'].nunique(dropna=False)
    return bool((parents > 1).any())


def _at(runs: pd.DataFrame, log_rate: float) -> pd.DataFrame:
  """The runs at a learning rate."""
  return runs[np.isclose(np.log10(runs['learning_rate']), log_rate)]


def _untrained(in_cell: pd.DataFrame) -> pd.DataFrame:
  """The runs of a cell that training will not skip: missing ones, then failed ones, by seed."""
  found = in_cell[in_cell['status'].isin(('missing', 'failed'))]
  return found.sort_values(['status', 'seed'], ascending=[False, True])
