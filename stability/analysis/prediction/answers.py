"""Which learning rates a larger size is predicted to train at: an answer per arm and target.

Everything in an answer is read from the same draws of the critical and the best learning rate, as
are the probabilities of being unstable. So they agree: the probability rises with the learning
rate, is at most the risk up to the safe rate and a half at the critical rate.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import special

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.prediction import fits, power_law, predictors, rates
from stability.analysis.prediction import observations as observations_lib
from stability.analysis.prediction import predictor as predictor_lib
from stability.analysis.prediction import surface as surface_lib
from stability.analysis.prediction import targets as targets_lib
from stability.analysis.prediction.observations import Observations
from stability.analysis.prediction.predictor import InsufficientData
from stability.analysis.prediction.targets import Target
from stability.analysis.results import Results

MAX_DECADES = 2.0  # a wider 90 % interval is of no use
MIN_NEXT_FACTOR = 4  # the size to train next has at least this many times the largest's parameters


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A predicted number and its 90 % interval."""

  value: float
  low: float
  high: float

  @property
  def decades(self) -> float:
    """The width of the interval."""
    return float(np.log10(self.high / self.low))


@dataclasses.dataclass(frozen=True)
class PredictedProbe:
  """A probe at the end of training, predicted at the recommended learning rate."""

  estimate: Estimate
  learning_rate: float  # the nearest trained one, if the recommended one is outside the grid
  limit: float  # the attention logit at which runs diverged, or the optimizer's eps


@dataclasses.dataclass(frozen=True)
class FailedTest:
  """The test that an arm failed: its largest size, predicted from sizes at most a quarter of it."""

  parameters: float
  measured: float  # critical learning rate
  censored: int  # see observations.Observations
  predicted: Estimate


@dataclasses.dataclass(frozen=True)
class TrainNext:
  """The runs to train next, so that a prediction becomes usable."""

  parameters: float | None  # None: every size of the sweep
  learning_rates: tuple[float, float] | None  # the lowest and highest; None: another seed of all


@dataclasses.dataclass(frozen=True)
class Answer:
  """The prediction for one arm at one target; a field that cannot be predicted is None."""

  arm: tuple  # its values of results.groups
  target: Target
  largest: float  # parameters of the largest trained size
  best: Estimate | None
  safe: Estimate | None
  critical: Estimate | None
  insufficient: tuple[str, ...]  # the data that a prediction lacks
  failed_test: FailedTest | None
  train_next: TrainNext | None  # None: the prediction is usable
  attention_logit: PredictedProbe | None
  gradient_rms: PredictedProbe | None
  # A row per trained learning rate: learning_rate, probability (of being unstable), read_at_step,
  # attention_logit and gradient_rms, each with _low and _high; NaN: cannot be predicted.
  cells: pd.DataFrame

  @property
  def times(self) -> float:
    """The target's parameters over those of the largest trained size."""
    return self.target.parameters / self.largest

  @property
  def estimates(self) -> dict[str, Estimate | None]:
    """The predicted learning rates by name."""
    return {'best': self.best, 'safe': self.safe, 'critical': self.critical}

  @property
  def too_wide(self) -> dict[str, Estimate]:
    """The estimates whose interval spans more than MAX_DECADES, by name."""
    return {
        name: found
        for name, found in self.estimates.items()
        if found is not None and found.decades > MAX_DECADES
    }

  def is_reliable(self, name: str) -> bool:
    """Whether the estimate of this name can be trusted, even if others cannot."""
    return not (self.estimates[name] is None or name in self.too_wide or self.failed_test)

  @property
  def usable(self) -> bool:
    """Whether all three estimates can be trusted."""
    return not (self.insufficient or self.too_wide or self.failed_test)

  @property
  def recommended(self) -> float | None:
    """The best learning rate or, if that is not safe, the highest safe one."""
    known = [found.value for found in (self.best, self.safe) if found is not None]
    return min(known) if known else None


def answer(
    results: Results,
    by_arm: Mapping[tuple, Observations],
    held_out: pd.DataFrame,
    targets: Sequence[Target],
    surface: surface_lib.RateSurface,
) -> list[Answer]:
  """An answer per target and arm.

  Args:
    results: the runs of a sweep.
    by_arm: see observations.by_arm.
    held_out: see predict.hold_out.
    targets: the sizes, with the accepted risk.
    surface: see surface.fit_arms.
  """
  lacking = _lacking(by_arm)
  return [
      _answer(arm, of_arm, target, _failed_test(results, held_out, arm), surface, lacking)
      for target in targets
      for arm, of_arm in by_arm.items()
  ]


def _lacking(by_arm: Mapping[tuple, Observations]) -> dict[rates.RatePredictor, str]:
  """The learning rates that lie within the grid too rarely in every arm, with the reason.

  An arm in which none does is still predicted, from the other arms.
  """
  reasons = {}
  for rate in rates.RATES:
    try:
      most = max(by_arm.values(), key=lambda of_arm: power_law.exact_sizes(rate.points(of_arm)))
      rate.require_exact(most)
    except InsufficientData as reason:
      reasons[rate] = str(reason)
  return reasons


def _answer(
    arm: tuple,
    of_arm: Observations,
    target: Target,
    failed_test: FailedTest | None,
    surface: surface_lib.RateSurface,
    lacking: Mapping[rates.RatePredictor, str],
) -> Answer:
  log_size_C = np.array([np.log10(target.parameters)])
  insufficient = []
  draws = []
  for rate in rates.RATES:
    try:
      predictor_lib.require_sizes(of_arm)
      if rate in lacking:
        raise InsufficientData(lacking[rate])
      draws.append(rates.SurfacePredictor(rate, surface, arm).draws(log_size_C))
    except InsufficientData as reason:
      insufficient.append(str(reason))
      draws.append(None)
  of_critical, of_best = draws
  best = safe = critical = None
  if of_critical is not None:
    critical, safe = _critical(of_critical), _safe(of_critical, target.risk)
  if of_best is not None:
    best = _estimate(of_best.run_DxC[:, 0])
  found = Answer(
      arm,
      target,
      of_arm.sizes[-1],
      best,
      safe,
      critical,
      tuple(dict.fromkeys(insufficient)),
      failed_test,
      None,
      None,
      None,
      _cells(of_arm, target, of_critical),
  )
  if not found.usable:
    found = dataclasses.replace(found, train_next=_train_next(arm, of_arm, target, surface))
  if found.recommended is None:
    return found
  eps = of_arm.runs['eps'].unique()
  return dataclasses.replace(
      found,
      attention_logit=_predicted_probe(found, 'attention_logit', predictors.UNSTABLE_LOGIT),
      gradient_rms=_predicted_probe(found, 'gradient_rms', eps[0] if len(eps) == 1 else np.nan),
  )


def _estimate(log_D: np.ndarray) -> Estimate:
  low, value, high = np.percentile(log_D, (fits.INTERVAL[0], 50, fits.INTERVAL[1])).tolist()
  return Estimate(10**value, 10**low, 10**high)


def _highest_rate(draws: power_law.Draws, probability: float) -> float:
  """log10 of the highest learning rate at which rates.unstable_share is at most this."""
  log_critical_D = np.sort(draws.run_DxC[:, 0])
  return float(log_critical_D[int(probability * len(log_critical_D))])


def _critical(draws: power_law.Draws) -> Estimate:
  """The critical learning rate: above it, a run is more likely unstable than not."""
  found = _estimate(draws.run_DxC[:, 0])
  return dataclasses.replace(found, value=10 ** _highest_rate(draws, 0.5))


def _safe(draws: power_law.Draws, risk: float) -> Estimate:
  """The highest learning rate at which the probability of being unstable is at most the risk.

  The interval is that of the rate at which this share of many runs would be unstable: its
  uncertainty is that of the law and of the noise. It is extended to contain the value.
  """
  value = _highest_rate(draws, risk)
  of_many_D = draws.law_DxC[:, 0] + special.ndtri(risk) * draws.noise_D
  low, high = np.percentile(of_many_D, fits.INTERVAL).tolist()
  return Estimate(10**value, 10 ** min(low, value), 10 ** max(high, value))


def _cells(
    of_arm: Observations, target: Target, of_critical: power_law.Draws | None
) -> pd.DataFrame:
  """See Answer.cells."""
  cells = observations_lib.cells([target.parameters], of_arm.learning_rates)
  found = cells[['learning_rate']].assign(probability=np.nan, read_at_step=np.nan)
  if of_critical is not None:
    found['probability'] = rates.unstable_share(
        of_critical.run_DxC, cells['log_rate'].to_numpy()
    )
  probes = {'gradient_rms': predictors.GradientPredictor()}
  if steps := of_arm.probe_steps(results_lib.LOGIT):
    probes['attention_logit'] = dataclasses.replace(predictors.ATTENTION_LOGIT, step=steps[-1])
  for name in ('attention_logit', 'gradient_rms'):
    columns = [name, f'{name}_low', f'{name}_high']
    found[columns] = np.nan
    try:
      predictor_lib.require_sizes(of_arm)
      if name not in probes:
        continue
      numbers = probes[name].forecast(of_arm, cells).cells[['value', 'low', 'high']]
    except InsufficientData:
      continue
    found[columns] = 10.0 ** numbers.to_numpy(float)
    if name == 'attention_logit':
      found['read_at_step'] = steps[-1]
  return found


def _predicted_probe(found: Answer, name: str, limit: float) -> PredictedProbe | None:
  """A probe at the recommended learning rate, interpolated between the trained ones."""
  cells = found.cells.dropna(subset=name)
  if cells.empty:
    return None
  learning_rates = cells['learning_rate'].to_numpy()
  rate = float(np.clip(found.recommended, learning_rates[0], learning_rates[-1]))
  numbers = [
      10 ** np.interp(np.log10(rate), np.log10(learning_rates), np.log10(cells[column]))
      for column in (name, f'{name}_low', f'{name}_high')
  ]
  return PredictedProbe(Estimate(*numbers), rate, limit)


def _failed_test(results: Results, held_out: pd.DataFrame, arm: tuple) -> FailedTest | None:
  """The test of an arm, if it failed: its critical rate is not where it was predicted.

  Each of the n tests of a sweep uses an interval of level 1 - 0.1 / n (Bonferroni), so that right
  predictions pass all of them in at least 90 % of cases.
  """
  if held_out.empty:
    return None
  rows = held_out[held_out['predictor'] == rates.CRITICAL_OF_ALL].dropna(subset='tail')
  # All runs of a shape have the same numbers.
  tests = rows.drop_duplicates([*results.groups, 'parameters', 'value', 'measured', 'beyond'])
  limit = fits.INTERVAL[0] / 100 / max(len(tests), 1)
  failed = tests[tests['tail'] < limit]
  for field, value in zip(results.groups, arm, strict=True):
    is_unset = failed[field].isna() & pd.isna(value)
    failed = failed[(failed[field] == value) | is_unset]
  if failed.empty:
    return None
  row = next(failed.itertuples())
  predicted = Estimate(row.value, row.low, row.high)
  return FailedTest(row.parameters, row.measured, row.beyond, predicted)


def _train_next(
    arm: tuple, of_arm: Observations, target: Target, surface: surface_lib.RateSurface
) -> TrainNext:
  lowest, highest = of_arm.learning_rates[[0, -1]]
  step = 10 ** np.nan_to_num(of_arm.curves['grid_step'].max(), nan=surface_lib.DEFAULT_STEP)
  below, above = (lowest / step**2, lowest / step), (highest * step, highest * step**2)
  if not lr_sensitivity.trains(of_arm.runs):  # nor would a larger size at these rates
    return TrainNext(None, below)
  largest = of_arm.sizes[-1]
  larger = [size for size in targets_lib.named_sizes() if size >= MIN_NEXT_FACTOR * largest]
  size = larger[0] if larger else MIN_NEXT_FACTOR * largest
  if len(of_arm.sizes) < predictor_lib.MIN_SIZES:
    if largest < target.parameters < size:  # to train the target itself is cheaper
      size = target.parameters
    return TrainNext(size, (lowest, highest))
  for rate in rates.RATES:
    points = rate.points(of_arm)
    if power_law.exact_sizes(points) < 2:
      is_below = (points.censored_K == -1).any()
      return TrainNext(None, below if is_below else above)
  if size > target.parameters:
    return TrainNext(None, None)
  log_size_C = np.array([np.log10(size)])
  low, high = (
      10 ** draws(arm, log_size_C).median_C[0] for draws in (surface.best, surface.critical)
  )
  return TrainNext(size, (min(low, high) / step, high * step))
