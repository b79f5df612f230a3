"""A column of a table of runs, in a form in which claims select runs fast."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pandas as pd


@dataclasses.dataclass(frozen=True)
class Column:
  """The distinct values of a column, and which of them each of the N runs has."""

  values: list[Any]
  number_N: np.ndarray  # the position in `values`

  @classmethod
  def of(cls, column: pd.Series) -> Self:
    """A column of a table."""
    numbers, values = pd.factorize(column.to_numpy(object), use_na_sentinel=False)
    return cls(list(values), numbers)

  def among(self, kept_N: np.ndarray) -> set[Any]:
    """The distinct values of the runs that are kept."""
    return {self.values[number] for number in np.unique(self.number_N[kept_N])}

  def where(self, condition: Callable[[Any], bool]) -> np.ndarray:
    """A mask [N] of the runs whose value meets a condition."""
    return np.array([condition(value) for value in self.values], bool)[self.number_N]
