"""Readings of contestants that take turns, so that a slow phase of the machine affects them all."""

import statistics
from collections.abc import Callable, Mapping

Readings = dict[str, list[float]]  # by contestant, in the order of rounds


def in_turn(
    contestants: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 0
) -> Readings:
  """Calls each contestant once per round; the results of the warm-up rounds are discarded."""
  readings: Readings = {name: [] for name in contestants}
  for number in range(warm_up + rounds):
    for name, measure in contestants.items():
      reading = measure()
      if number >= warm_up:
        readings[name].append(reading)
  return readings


def ratio(readings: Readings, numerator: str, denominator: str) -> float:
  """The median over rounds of numerator / denominator, both of the same round."""
  return statistics.median(a / b for a, b in zip(readings[numerator], readings[denominator]))
