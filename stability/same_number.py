"""When two numbers are the same number, for everything that groups, compares or names runs.

In our own sweeps, numbers are the same if they round to the same float32, since the training step
computes in float32. Configs hold the shortest decimal that does (`shortest`), whatever was given:
equal numbers are then equal floats, in names, in keys and on disk.

In the files of other trainers, numbers are the same if they differ by at most TOLERANCE, as the
same number does that was once rounded to float32 or to six significant digits. `representatives`
chooses one value for each such number when a file is read, so that all later comparisons are exact.
"""

import ctypes
import decimal
import math
from collections.abc import Collection, Iterable, Mapping

# Relative. Rounding to six significant digits changes a number by at most 5e-6 of it, rounding to
# float32 by 6e-8. Different numbers, such as the decays 0.99999 and 0.999999, differ by more.
TOLERANCE = 6e-6


def shortest(value: float) -> float:
  """The shortest decimal that rounds to the same float32 as `value`.

  0.0010000000474974513 -> 0.001, -0.0 -> 0.0. A number too large for float32 becomes infinite, and
  one too small for it becomes 0.
  """
  float32 = ctypes.c_float(value).value
  if not math.isfinite(float32):
    return float32
  texts = (f'{float32:.{digits}g}' for digits in range(1, 10))  # nine digits are always enough
  numbers = (float(text) for text in texts)
  found = next(number for number in numbers if ctypes.c_float(number).value == float32)
  return found + 0.0  # -0.0 -> 0.0


def representatives(
    values: Iterable[float], known: Collection[float] = ()
) -> dict[float, float]:
  """Maps each value to the one that represents its number: equal numbers get equal values.

  A representative is the value of `known` that is the same number. If there is none, it is the one
  with the fewest digits among the values, their roundings to 15 digits and, for values that are
  exact in float32, their `shortest`. Integers represent themselves, whatever their size.

  Args:
    values: integers and floats, none of them NaN.
    known: values that other code compares with.
  """
  groups: list[list[float]] = []
  for value in sorted(set(values)):
    # Every member is compared: a chain of small differences must not join different numbers.
    if groups and all(_is_same(member, value) for member in groups[-1]):
      groups[-1].append(value)
    else:
      groups.append([value])
  return {value: _represent(group, known) for group in groups for value in group}


def merged(
    numbers: Mapping[str, float], known: Collection[float] = ()
) -> tuple[dict[str, float], dict[str, str]]:
  """What texts stand for, as numbers and as texts, so that the same numbers are equal.

  Args:
    numbers: text -> its number, an integer as an int.
    known: see representatives.

  Returns:
    Two dicts by text: the representative of its number, and the first text with the same number.
  """
  represents = representatives(numbers.values(), known)
  values = {text: represents[number] for text, number in numbers.items()}
  first: dict[float, str] = {}
  for text, value in values.items():
    first.setdefault(value, text)
  return values, {text: first[value] for text, value in values.items()}


def _is_same(a: float, b: float) -> bool:
  if a == b or (_is_whole(a) and _is_whole(b)):
    return a == b
  largest = max(abs(a), abs(b))
  return largest < 2**53 and abs(a - b) <= TOLERANCE * largest


def _is_whole(value: float) -> bool:
  return isinstance(value, int) or value.is_integer()  # from 2^53 on, every float is whole


def _represent(group: list[float], known: Collection[float]) -> float:
  for value in known:
    if any(_is_same(member, value) for member in group):
      return value
  parts = [value for value in group if not _is_whole(value)]
  rounded = [float(f'{value:.15g}') for value in parts]  # 3 * 0.1 -> 0.3
  in_float32 = [shortest(value) for value in parts if ctypes.c_float(value).value == value]
  return min([*group, *rounded, *in_float32], key=_count_digits)


def _count_digits(value: float) -> int:
  """The number of significant digits of a number as Python writes it; 0 if it is infinite."""
  number = decimal.Decimal(repr(value))
  return len(number.normalize().as_tuple().digits) if number.is_finite() else 0
