"""Checks of the rows of metrics that a monitor is given, which may come from any training loop."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from stability.config import safe_repr
from stability.errors import BadInput

Row = Mapping[str, Any]  # name -> number; one that is not finite is NaN, infinite or None


def checked(row: Row, last_step: int = 0) -> dict[str, float | int | None]:
  """The row with its step as an int, and every other value as a float or None.

  A value may be any number, such as a NumPy scalar, an array of one element or a bool.

  Args:
    row: of which `step` is required.
    last_step: the step of the row before it.

  Raises:
    BadInput: the row is not a mapping of names to numbers, it has no step, or its step is not a
      whole number or is below last_step.
  """
  if not isinstance(row, Mapping):
    raise BadInput(f'row: must map names to numbers, is of type {type(row).__name__}')
  for name in row:
    if not isinstance(name, str):
      raise BadInput(f'row: the name {safe_repr(name)}: must be a string')
  if 'step' not in row:
    raise BadInput('row: step is missing, must be the number of updates made')
  step = _step(row['step'])
  if step < last_step:
    raise BadInput(
        f'row: step={step}: must not be below the step of the last row, {last_step}; after a return'
        ' to an earlier checkpoint, start a new Monitor'
    )
  values = {name: _number(name, value) for name, value in row.items() if name != 'step'}
  return {'step': step, **values}


def _step(value: Any) -> int:
  number = _number('step', value)
  if number is None or not number.is_integer() or number < 0:  # NaN is no integer
    shown = textwrap.shorten(safe_repr(value), 60)
    raise BadInput(f'row: step={shown}: must be a whole number, 0 or more')
  return int(number)


def _number(name: str, value: Any) -> float | None:
  try:
    number = value.item() if hasattr(value, 'item') else value  # NumPy, jax, torch: of one element
    if number is None:
      return None
    if isinstance(number, str | bytes):  # has a float too, but a loss of '2.5' is a mistake
      raise TypeError
    return float(number)
  except OverflowError:  # an int beyond the largest float
    return math.inf if number > 0 else -math.inf
  except (TypeError, ValueError, RuntimeError):  # RuntimeError: torch, for several elements
    shown = textwrap.shorten(safe_repr(value), 60)
    raise BadInput(f'row: {name}={shown}: must be a number or None') from None
