"""Compares the controls of a leaderboard with the verdicts that they must have."""

import dataclasses
from collections.abc import Iterator

import pandas as pd

from stability.analysis.leaderboard import verdicts


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a control at one size."""

  arm: str
  parameters: int
  wanted: str  # better, worse or tie in loss, or inert
  found: str

  @property
  def is_right(self) -> bool:
    """Whether it is what it must be."""
    return self.found == self.wanted

  @property
  def is_decided(self) -> bool:
    """False where the interval is too wide for a verdict."""
    return self.found != verdicts.UNDECIDED


def outcomes(table: pd.DataFrame) -> Iterator[Outcome]:
  """The outcomes that are known: verdicts need several seeds.

  Args:
    table: see table.leaderboard.
  """
  for row in table[table['control'] != ''].itertuples():
    found = row.loss_verdict
    if row.control == 'inert':
      found = '' if pd.isna(row.best_loss) else 'inert' if row.inert else 'not inert'
    if found:
      yield Outcome(row.arm, row.parameters, row.control, found)
