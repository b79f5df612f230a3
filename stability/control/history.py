"""What is kept of a run's rows for the measures of its instability."""

import collections
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

from stability.control.rows import Row
from stability.storage.run_files import highest

SMOOTHED_LOSSES = 3  # number of losses averaged in a smoothed loss
SPIKE_LOSSES = 20  # maximum number of earlier losses that a loss is compared with
SPIKE_MIN_LOSSES = 8  # minimum number of earlier losses
LOOK_BACK = 0.5  # minimum e-folds of training time over which growth is measured
TRAIL_POINTS = 10  # number of earlier values kept of what grows
TRAIL_SPACING = LOOK_BACK / (TRAIL_POINTS - 2)  # minimum e-folds between these
GRADIENT, UPDATE = 'gradient_over_eps/', 'update_rms/'  # starts of keys
# Starts of keys whose values may be undefined in a healthy run: a ratio to a matrix that is still
# 0, and the sharpness along a step that points uphill.
MAY_BE_UNDEFINED = ('effective_learning_rate/', 'critical_sharpness')


class Trail:
  """Earlier values of a quantity, of which a fixed number is kept, evenly spaced in log time."""

  def __init__(self):
    # Time and value.
    self._points: collections.deque[tuple[float, float]] = collections.deque(maxlen=TRAIL_POINTS)

  def __len__(self) -> int:
    return len(self._points)

  def add(self, time: float, value: float) -> None:
    """Adds the value at a time, which is above 0."""
    last, value_then = self._points[-1] if self._points else (0.0, math.nan)
    if time == last:  # a row for each block
      self._points[-1] = last, max(value_then, value)
    elif not last or math.log(time) >= math.log(last) + TRAIL_SPACING:
      self._points.append((time, value))

  def before(self, log_time: float) -> tuple[float, float]:
    """The last (log time, value) at least LOOK_BACK ago; NaN if there is none."""
    for time, value in reversed(self._points):
      if math.log(time) <= log_time - LOOK_BACK:
        return math.log(time), value
    return math.nan, math.nan

  def scale(self, factor: float) -> None:
    """Multiplies all times by a factor; drops the points whose times are then not above 0."""
    scaled = [(time * factor, value) for time, value in self._points]
    self._points.clear()
    self._points.extend(point for point in scaled if point[0] > 0)


class History:
  """The values of a run that measures read, updated row by row.

  Their number does not grow with the length of the run.
  """

  def __init__(self):
    self.row: Row = {}  # the last row
    self.first_loss = math.nan
    self.lowest_loss = math.inf  # lowest smoothed loss before the last row
    # Finite losses before the last row.
    self.losses: collections.deque[float] = collections.deque(maxlen=SPIKE_LOSSES)
    self.scatter = math.nan  # largest scatter of losses around their trend so far
    self.log_time = -math.inf  # log of the training time
    self._time = 0.0
    self._learning_rate = math.nan  # the last one logged
    self.logits = Trail()  # highest attention logits
    self.output_rms = Trail()  # highest RMS of a block's output
    self.log_z = Trail()
    self._trails = self.logits, self.output_rms, self.log_z
    self.largest_update = 0.0  # RMS
    self.nonzero: set[str] = set()  # keys of gradients and updates that were ever above 0

  def add(self, row: Row) -> None:
    """Adds the next row."""
    loss = finite(self.row, 'loss')
    if not math.isnan(loss):
      self.losses.append(loss)
      self.lowest_loss = min(self.lowest_loss, _smoothed(self.losses))
      if len(self.losses) >= SPIKE_MIN_LOSSES:
        # The largest: that of a few losses may be small by chance, at any of many rows.
        self.scatter = max(_scatter(self.losses), self.scatter)
    self._add_time(row['step'] - self.row.get('step', 0), finite(row, 'learning_rate'))
    self.row = row
    if math.isnan(self.first_loss):
      self.first_loss = finite(row, 'loss')
    if self._time > 0:
      values = highest(row, 'attention_logit_max'), highest(row, 'output_rms'), finite(row, 'log_z')
      for trail, value in zip(self._trails, values, strict=True):
        if not math.isnan(value):
          trail.add(self._time, value)
    updates = [rms for _, rms in with_prefix(row, UPDATE)]
    self.largest_update = max([self.largest_update, *updates])
    for prefix in (GRADIENT, UPDATE):
      self.nonzero.update(key for key, value in with_prefix(row, prefix) if value > 0)

  def _add_time(self, steps: int, learning_rate: float) -> None:
    """Adds steps during which the learning rate changed linearly to the given one, if known."""
    now = self._learning_rate if math.isnan(learning_rate) else learning_rate
    if math.isnan(now):
      self._time += steps
    else:
      if math.isnan(self._learning_rate):  # the first one stands for all steps until now
        self._time *= now
        for trail in self._trails:
          trail.scale(now)
        self._learning_rate = now
      self._time += steps * (self._learning_rate + now) / 2
      self._learning_rate = now
    self.log_time = math.log(self._time) if self._time > 0 else -math.inf


def finite(row: Row, key: str) -> float:
  """A value of a row; NaN if it is absent or not finite."""
  value = row.get(key)
  return float(value) if value is not None and math.isfinite(value) else math.nan


def not_finite(row: Row) -> list[str]:
  """The keys of a row whose values should be finite and are not."""
  return [
      key
      for key, value in row.items()
      if not (value is not None and math.isfinite(value)) and not key.startswith(MAY_BE_UNDEFINED)
  ]


def with_prefix(row: Row, prefix: str) -> Iterator[tuple[str, float]]:
  """The keys that start with a prefix and their values, if these are finite."""
  for key, value in row.items():
    if key.startswith(prefix) and value is not None and math.isfinite(value):
      yield key, value


def _smoothed(losses: collections.deque[float]) -> float:
  return mean(list(losses)[-SMOOTHED_LOSSES:])


def _scatter(losses: Sequence[float]) -> float:
  """The robust standard deviation of losses around their trend, from successive differences.

  A steady rise or fall has none, as its differences are alike, and a jump is only one difference.
  """
  differences = [after - before for before, after in itertools.pairwise(losses)]
  median = statistics.median(differences)
  deviation = statistics.median(abs(difference - median) for difference in differences)
  return 1.4826 * deviation / math.sqrt(2)


def mean(values: Sequence[float]) -> float:
  """The mean, which is infinite if the sum overflows; statistics.fmean raises OverflowError."""
  return sum(values) / len(values)
