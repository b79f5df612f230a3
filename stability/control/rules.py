"""The rules behind alarms: measures of a run's instability, their limits and their remedies.

A measure is a function of a run's History, which holds the last logged row and a few numbers from
earlier rows. Its cost does not grow with the run, it needs no other runs, and rows may come at any
interval. Larger values are worse. A measure is NaN where it does not apply, for example between two
probes. A row breaks a rule if its measure is above the rule's limit.

The limits were chosen on some sweeps and are scored on others by analysis/alarm_scores.py.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence

from stability.control.rows import Row
from stability.storage.run_files import highest

SMOOTHED_LOSSES = 3  # number of losses averaged in a smoothed loss
SPIKE_LOSSES = 20  # maximum number of earlier losses that a loss is compared with
SPIKE_MIN_LOSSES = 8  # minimum number of earlier losses
LOSS_NOISE = 0.02  # minimum relative scatter of losses, as batches differ by chance
NOISE_DECREASE = 10  # minimum decrease of the loss, in units of this scatter, to take a fraction of
TREND_PROBES = 3  # number of probes that the trend of attention logits is fitted to
TREND_SPACING = 1.02  # minimum ratio of the steps of these probes: closer ones differ by chance
TREND_FACTOR = 2.0  # the trend is extrapolated to this many times the current step
INITIAL_STEP = 1  # a row up to this step shows the model before training


class History:
  """The values of a run that measures read, updated row by row.

  Their number does not grow with the length of the run. (Updates have one value per parameter.)
  """

  def __init__(self):
    self.row: Row = {}  # the last row
    self.first_loss = math.nan
    self.lowest_loss = math.inf  # lowest smoothed loss before the last row
    # Finite losses before the last row.
    self.losses: collections.deque[float] = collections.deque(maxlen=SPIKE_LOSSES)
    # (step, highest attention logit) of the last probes that are TREND_SPACING apart.
    self.logits: collections.deque[tuple[int, float]] = collections.deque(maxlen=TREND_PROBES)
    self.initial_output_rms = 0.0  # largest RMS of a block's output before training, if logged
    self.first_log_z = math.nan
    self.largest_updates: dict[str, float] = {}  # key of a parameter's update RMS -> largest so far

  def add(self, row: Row) -> None:
    """Adds the next row."""
    loss = finite(self.row, 'loss')
    if not math.isnan(loss):
      self.losses.append(loss)
      self.lowest_loss = min(self.lowest_loss, _smoothed(self.losses))
    self.row = row
    if math.isnan(self.first_loss):
      self.first_loss = finite(row, 'loss')
    logit = highest(row, 'attention_logit_max')
    if not math.isnan(logit):
      self._add_logit(row['step'], logit)
    output_rms = highest(row, 'output_rms')
    if row['step'] <= INITIAL_STEP and not math.isnan(output_rms):
      self.initial_output_rms = max(self.initial_output_rms, output_rms)
    if math.isnan(self.first_log_z):
      self.first_log_z = finite(row, 'log_z')
    for key, rms in _with_prefix(row, 'update_rms/'):
      self.largest_updates[key] = max(self.largest_updates.get(key, 0.0), rms)

  def _add_logit(self, step: int, logit: float) -> None:
    last, highest_then = self.logits[-1] if self.logits else (-1, math.nan)
    if step == last:  # a row for each block
      self.logits[-1] = step, max(highest_then, logit)
    elif step >= last * TREND_SPACING:
      self.logits.append((step, logit))


def finite(row: Row, key: str) -> float:
  """A value of a row; NaN if it is absent or not finite."""
  value = row.get(key)
  return float(value) if value is not None and math.isfinite(value) else math.nan


def _with_prefix(row: Row, prefix: str) -> Iterator[tuple[str, float]]:
  """The keys that start with a prefix and their values, if these are finite."""
  for key, value in row.items():
    if key.startswith(prefix) and value is not None and math.isfinite(value):
      yield key, value


def _smoothed(losses: collections.deque[float]) -> float:
  return _mean(list(losses)[-SMOOTHED_LOSSES:])


def _mean(values: Sequence[float]) -> float:
  """The mean, which is infinite if the sum overflows; statistics.fmean raises OverflowError."""
  return sum(values) / len(values)


# Measures.


def non_finite(history: History) -> float:
  """The number of logged values that are not finite."""
  return sum(value is None or not math.isfinite(value) for value in history.row.values())


def loss_spike(history: History) -> float:
  """The distance of the loss above the median of recent losses, in robust standard deviations.

  NaN where most of these losses are exactly 0, so that there is no scale to measure it on.
  """
  if len(history.losses) < SPIKE_MIN_LOSSES:
    return math.nan
  median = statistics.median(history.losses)
  scatter = 1.4826 * statistics.median(abs(loss - median) for loss in history.losses)
  scale = max(scatter, LOSS_NOISE * abs(median))
  return (finite(history.row, 'loss') - median) / scale if scale > 0 else math.nan


def loss_above_past(history: History) -> float:
  """The fraction of the smoothed loss's earlier decrease that has been lost again.

  A decrease as small as the scatter of losses counts as NOISE_DECREASE times that scatter.
  """
  loss = finite(history.row, 'loss')
  decrease = history.first_loss - history.lowest_loss
  if len(history.losses) < SMOOTHED_LOSSES or math.isnan(loss):
    return math.nan
  if decrease <= 0:
    return 0.0  # there is nothing to lose
  now = _mean([*list(history.losses)[1 - SMOOTHED_LOSSES :], loss])
  least = NOISE_DECREASE * LOSS_NOISE * abs(history.first_loss)
  return (now - history.lowest_loss) / max(decrease, least)


def attention_logit(history: History) -> float:
  """The highest attention logit of any block, before the soft cap."""
  return highest(history.row, 'attention_logit_max')


def attention_logit_course(history: History) -> float:
  """The highest attention logit expected at TREND_FACTOR times the current step.

  Attention logits grow like a power of the step, so the trend is a straight line fitted to the last
  probes on logarithmic scales.
  """
  if not history.logits or history.logits[-1][0] != history.row['step']:  # no probe of the trend
    return math.nan
  points = [
      (math.log(step), math.log(logit)) for step, logit in history.logits if step > 0 and logit > 0
  ]
  if len(points) < TREND_PROBES or len({step for step, _ in points}) < 2:
    return math.nan
  slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
  return math.exp(min(slope * math.log(TREND_FACTOR * history.row['step']) + intercept, 700))


def residual_growth(history: History) -> float:
  """The increase of the largest RMS of a block's output per update: residual stream growth.

  The RMS before training counts as 0 if no row shows it.
  """
  step = history.row['step']
  growth = highest(history.row, 'output_rms') - history.initial_output_rms
  return growth / step if step > 0 else math.nan


def log_z_drift(history: History) -> float:
  """The absolute difference between mean log Z and its first value."""
  return abs(finite(history.row, 'log_z') - history.first_log_z)


def gradient_under_eps(history: History) -> float:
  """The ratio of AdamW's eps to the smallest gradient RMS of any parameter."""
  ratios = [ratio for _, ratio in _with_prefix(history.row, 'gradient_over_eps/')]
  return 1 / max(min(ratios), 1e-30) if ratios else math.nan


def update_collapse(history: History) -> float:
  """The largest factor by which the update RMS of a parameter has shrunk from its maximum."""
  updates = _with_prefix(history.row, 'update_rms/')
  factors = [history.largest_updates[key] / max(rms, 1e-30) for key, rms in updates]
  return max(factors, default=math.nan)


# Remedies: a hyperparameter and the factor to multiply it by.
LEARNING_RATE = ('optimizer.learning_rate', 1 / 3)
SOFT_CAP = ('model.attention_soft_cap', 1 / 2)
Z_LOSS = ('objective.z_loss', 10.0)
EPS = ('optimizer.eps', 1e-2)
CLIP = ('optimizer.clip_norm', 1 / 3)


@dataclasses.dataclass(frozen=True)
class Rule:
  """A measure with the limit above which it raises an alarm."""

  measure: Callable[[History], float]
  reads: str  # the keys of a row that the measure needs besides step
  rows: int = dataclasses.field(kw_only=True, default=1)  # minimum number of rows with such keys
  limit: float
  precision: float  # fraction of the runs with this alarm that became unstable; see RULES
  message: str  # shown to a person; a format string with {value} and {limit}
  remedies: tuple[tuple[str, float], ...]  # best first

  @property
  def name(self) -> str:
    return self.measure.__name__

  @property
  def needs(self) -> str:
    """What a run must log for the measure to apply, such as `loss in 9 rows`."""
    return self.reads if self.rows == 1 else f'{self.reads} in {self.rows} rows'


# Limits and precisions were chosen together, from a coarse grid, on configs/width_and_depth.py,
# epsilon.py and weight_decay.py (181 runs, 55 of them unstable, probes every 20 steps), for a
# joint recall of 0.97 of all rules and few false alarms. The limits of non_finite and
# gradient_under_eps follow from their definitions.
RULES = (
    Rule(
        non_finite,
        'every value',
        limit=0,
        precision=1.0,
        message='{value:.0f} logged values are not finite',
        remedies=(LEARNING_RATE, CLIP),
    ),
    Rule(
        loss_spike,
        'loss',
        rows=SPIKE_MIN_LOSSES + 1,
        limit=5.0,
        precision=1.0,
        message='the loss is {value:.1f} robust standard deviations above its median;'
        ' limit {limit:g}',
        remedies=(LEARNING_RATE, CLIP),
    ),
    Rule(
        loss_above_past,
        'loss',
        rows=SMOOTHED_LOSSES + 1,
        limit=0.3,
        precision=0.93,
        message='{value:.0%} of the decrease of the loss is lost again; limit {limit:.0%}',
        remedies=(LEARNING_RATE, CLIP),
    ),
    Rule(
        attention_logit,
        'block_*/attention_logit_max',
        limit=300,
        precision=0.98,
        message='the highest attention logit is {value:,.0f}; limit {limit:,.0f}',
        remedies=(SOFT_CAP, LEARNING_RATE),
    ),
    Rule(
        attention_logit_course,
        'block_*/attention_logit_max',
        rows=TREND_PROBES,
        limit=3_000,
        precision=1.0,
        message='the highest attention logit is on course for {value:,.0f}; limit {limit:,.0f}',
        remedies=(SOFT_CAP, LEARNING_RATE),
    ),
    Rule(
        residual_growth,
        'block_*/output_rms',
        limit=8.0,
        precision=0.83,
        message="the RMS of a block's output grows by {value:.2g} per step; limit {limit:g}",
        remedies=(LEARNING_RATE,),
    ),
    Rule(
        log_z_drift,
        'log_z',
        limit=4.0,
        precision=1.0,
        message='mean log Z has moved by {value:.1f}; limit {limit:g}',
        remedies=(Z_LOSS, LEARNING_RATE),
    ),
    Rule(
        gradient_under_eps,
        'gradient_over_eps/*',
        limit=1.0,
        precision=0.79,
        message="a parameter's gradient RMS is {value:.1f} times below eps",
        remedies=(EPS,),
    ),
    Rule(
        update_collapse,
        'update_rms/*',
        limit=15.0,
        precision=1.0,
        message="a parameter's updates have shrunk by a factor of {value:.0f}; limit {limit:g}",
        remedies=(EPS, LEARNING_RATE),
    ),
)

# Changes to the rules for a run that the policy has rescued. A learning rate just below an unstable
# one is still not a good one: of 77 runs of these sweeps and configs/qk_layernorm.py (one
# seed) whose attention logits passed 100, 70 were unstable, and none ended within 2 % of the best
# loss of its size.
AFTER_RESCUE = {'attention_logit': {'limit': 100, 'precision': 0.92}}


RulesFor = Callable[[bool], Sequence[Rule]]  # whether the policy has rescued a run -> its rules


def rules_for(rescued: bool) -> tuple[Rule, ...]:
  """The rules for a run that the policy has or has not rescued."""
  if not rescued:
    return RULES
  return tuple(dataclasses.replace(rule, **AFTER_RESCUE.get(rule.name, {})) for rule in RULES)
