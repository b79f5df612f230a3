"""Alarms: rules on what a run has logged so far. A rule is a measure and the limit that it passes.

A measure looks at a run's own rows of metrics.jsonl: the last one, and a few numbers kept of those
before it. So it costs the same at every step, needs no other run, and rows may come at any
interval; rules on the inside wait for probes. The limits stand in RULES. They were chosen on some
runs and are scored on others by stability/analysis/alarm_scores.py.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stability import config as config_lib
from stability.config import Config

Row = Mapping[str, Any]  # a line of metrics.jsonl; a number that is not finite is NaN or None

SMOOTHED = 3  # logged losses that a smoothed one is the mean of
WINDOW = 20  # logged losses that a spike is held against
FEWEST = 8  # of them, before a spike can be told
NOISE = 0.02  # of the loss: a smaller scatter is not believed, batches differ by chance
COURSE = 3  # probes that a course is drawn through
AHEAD = 2.0  # how far a course is followed: to this many times the present step


class History:
  """What is kept of a run's rows: a fixed number of values, however long it trains."""

  def __init__(self):
    self.row: Row = {}
    self.first_loss = math.nan
    self.lowest_loss = math.inf  # smoothed, before the row
    self.losses: collections.deque[float] = collections.deque(maxlen=WINDOW)  # before the row
    self.logits: collections.deque[tuple[int, float]] = collections.deque(maxlen=COURSE)
    self.first_log_z = math.nan
    self.largest_updates: dict[str, float] = {}  # parameter -> RMS of its updates

  def add(self, row: Row) -> None:
    """Takes the next row."""
    if self.row and math.isfinite(number(self.row, 'loss')):
      self.losses.append(self.row['loss'])
      self.lowest_loss = min(self.lowest_loss, smoothed(self.losses))
    self.row = row
    if math.isnan(self.first_loss):
      self.first_loss = number(row, 'loss')
    if 'log_z' in row:
      self.logits.append((row['step'], highest(row, 'attention_logit_max')))
      if math.isnan(self.first_log_z):
        self.first_log_z = number(row, 'log_z')
      for key, rms in starting(row, 'update_rms/'):
        self.largest_updates[key] = max(self.largest_updates.get(key, 0.0), rms)


def number(row: Row, key: str) -> float:
  """A value of a row; NaN where it is not finite or not there."""
  value = row.get(key)
  return math.nan if value is None else float(value)


def starting(row: Row, prefix: str) -> Iterator[tuple[str, float]]:
  """The finite values under a prefix, by key."""
  for key, value in row.items():
    if key.startswith(prefix) and value is not None and math.isfinite(value):
      yield key, value


def highest(row: Row, probe: str) -> float:
  """The highest value of a probe over all blocks; NaN where there is none."""
  values = [v for key, v in starting(row, 'block_') if key.endswith(f'/{probe}')]
  return max(values, default=math.nan)


def smoothed(losses: collections.deque[float]) -> float:
  """The mean of the last few."""
  return statistics.fmean(list(losses)[-SMOOTHED:])


# Measures: the larger, the worse; NaN where there is nothing to be said.


def non_finite(history: History) -> float:
  """How many of the logged values are not finite."""
  return sum(value is None or not math.isfinite(value) for value in history.row.values())


def loss_spike(history: History) -> float:
  """How far the loss is above the median of those before, in robust standard deviations."""
  if len(history.losses) < FEWEST:
    return math.nan
  median = statistics.median(history.losses)
  scatter = 1.4826 * statistics.median(abs(loss - median) for loss in history.losses)
  return (number(history.row, 'loss') - median) / max(scatter, NOISE * abs(median))


def loss_above_past(history: History) -> float:
  """The part of what was learned that is lost again, by smoothed losses."""
  loss = number(history.row, 'loss')
  learned = history.first_loss - history.lowest_loss
  if len(history.losses) < SMOOTHED or not math.isfinite(loss) or learned <= 0:
    return math.nan
  now = statistics.fmean([*list(history.losses)[1 - SMOOTHED :], loss])
  return (now - history.lowest_loss) / learned


def attention_logit(history: History) -> float:
  """The highest attention logit of any block, before soft cap."""
  return highest(history.row, 'attention_logit_max')


def attention_logit_course(history: History) -> float:
  """The attention logit that AHEAD times as many steps would reach, were it to grow on as it did.

  It grows like a power of the step: a line through the last probes, both on a log scale.
  """
  if 'log_z' not in history.row or len(history.logits) < COURSE:
    return math.nan
  points = [(math.log(step), math.log(logit)) for step, logit in history.logits if logit > 0]
  if len(points) < COURSE:
    return math.nan
  slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
  return math.exp(min(slope * math.log(AHEAD * history.row['step']) + intercept, 700))


def residual_growth(history: History) -> float:
  """The largest RMS of a block's output, per step made: how fast the residual stream grows."""
  return highest(history.row, 'output_rms') / history.row['step']


def log_z_drift(history: History) -> float:
  """How far mean log Z has moved since the first probe, either way."""
  return abs(number(history.row, 'log_z') - history.first_log_z)


def gradient_under_eps(history: History) -> float:
  """How far AdamW's eps is above the smallest gradient RMS of any parameter: their ratio."""
  ratios = [ratio for _, ratio in starting(history.row, 'gradient_over_eps/')]
  return 1 / max(min(ratios), 1e-30) if ratios else math.nan


def update_collapse(history: History) -> float:
  """How many times smaller a parameter's updates are than they were, at the worst."""
  updates = starting(history.row, 'update_rms/')
  times = [history.largest_updates[key] / max(rms, 1e-30) for key, rms in updates]
  return max(times, default=math.nan)


# What may help: hyperparameters and the factors to change them by.
LEARNING_RATE = ('optimizer.learning_rate', 1 / 3)
SOFT_CAP = ('model.attention_soft_cap', 1 / 2)
Z_LOSS = ('objective.z_loss', 10.0)
EPS = ('optimizer.eps', 1e-2)
CLIP = ('optimizer.clip_norm', 1 / 3)


@dataclasses.dataclass(frozen=True)
class Rule:
  """An alarm is raised by the first row whose measure is above the limit."""

  measure: Callable[[History], float]
  limit: float
  sure: float  # the share of runs that became unstable, of those that it fired in: see RULES
  seen: str  # what to tell a person, of {value} and {limit}
  remedies: tuple[tuple[str, float], ...]  # the best first

  @property
  def name(self) -> str:
    return self.measure.__name__


# Chosen together, from a coarse grid, on configs/width_and_depth.py, epsilon.py and weight_decay.py
# (181 runs, 55 of them unstable, probes every 20 steps), for a recall of 0.97 of all rules taken
# together and few false alarms; eps and what is not finite have their limits by definition. `sure`
# is measured there.
RULES = (
    Rule(non_finite, 0, 1.0, '{value:.0f} logged values are not finite', (LEARNING_RATE, CLIP)),
    Rule(
        loss_spike,
        5.0,
        1.0,
        'the loss is {value:.1f} robust standard deviations above its median; limit {limit:g}',
        (LEARNING_RATE, CLIP),
    ),
    Rule(
        loss_above_past,
        0.3,
        0.93,
        '{value:.0%} of what was learned is lost again; limit {limit:.0%}',
        (LEARNING_RATE, CLIP),
    ),
    Rule(
        attention_logit,
        300,
        0.98,
        'the highest attention logit is {value:,.0f}; limit {limit:,.0f}',
        (SOFT_CAP, LEARNING_RATE),
    ),
    Rule(
        attention_logit_course,
        3_000,
        1.0,
        'the highest attention logit is on course for {value:,.0f}; limit {limit:,.0f}',
        (SOFT_CAP, LEARNING_RATE),
    ),
    Rule(
        residual_growth,
        8.0,
        0.83,
        "the RMS of a block's output grows by {value:.2g} a step; limit {limit:g}",
        (LEARNING_RATE,),
    ),
    Rule(
        log_z_drift,
        4.0,
        1.0,
        'mean log Z has moved by {value:.1f}; limit {limit:g}',
        (Z_LOSS, LEARNING_RATE),
    ),
    Rule(
        gradient_under_eps,
        1.0,
        0.79,
        "a parameter's gradient RMS is {value:.1f} times below eps",
        (EPS,),
    ),
    Rule(
        update_collapse,
        15.0,
        1.0,
        "a parameter's updates are {value:.0f} times smaller than before; limit {limit:g}",
        (EPS, LEARNING_RATE),
    ),
)


# What is other for a run that the policy has rescued. A rate just below the one that breaks is not
# yet a good one: of 77 runs of these sweeps and configs/qk_layernorm.py (one seed) whose attention
# logits passed 100, 70 were unstable, and none ended within 2 % of the best loss of its size.
AFTER_RESCUE = {'attention_logit': {'limit': 100, 'sure': 0.92}}


def rules(rescued: bool) -> tuple[Rule, ...]:
  """Those for a run that the policy has stepped in to, or not."""
  if not rescued:
    return RULES
  return tuple(dataclasses.replace(rule, **AFTER_RESCUE.get(rule.name, {})) for rule in RULES)


class Monitor:
  """The rules over one run's rows. A rule fires once, until `fired` is cleared."""

  def __init__(self, rescued: bool = False):
    self._rules = rules(rescued)
    self.history = History()
    self.fired: set[str] = set()

  def add(self, row: Row) -> None:
    """Takes a row without a look at it: one whose alarms are known."""
    self.history.add(row)

  def observe(self, row: Row) -> list[dict[str, Any]]:
    """Takes the next row; returns the alarms it raises: step, rule, value, limit, seen, sure."""
    self.history.add(row)
    raised = []
    for rule in self._rules:
      value = math.nan if rule.name in self.fired else rule.measure(self.history)
      if value > rule.limit:
        self.fired.add(rule.name)
        raised.append({
            'step': row['step'],
            'rule': rule.name,
            'value': value,
            'limit': rule.limit,
            'seen': rule.seen.format(value=value, limit=rule.limit),
            'sure': rule.sure,
        })
    return raised


def suggestions(name: str, config: Config) -> list[dict[str, Any]]:
  """What may help against an alarm: actions that set one hyperparameter each, the best first."""
  flat = config_lib.flatten(config)
  remedies = next(rule.remedies for rule in RULES if rule.name == name)
  return [
      {'action': 'set', 'changes': {field: flat[field] * factor}}
      for field, factor in remedies
      if flat[field]  # a term that is off cannot be turned on
  ]
