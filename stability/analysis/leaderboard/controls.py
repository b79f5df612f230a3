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
  missing: str  # which runs are missing if it is undecided: `3 of its runs`; else empty

  @property
  def is_right(self) -> bool:
    """Whether it is what it must be."""
    return self.found == self.wanted

  @property
  def is_decided(self) -> bool:
    """False where the interval is too wide for a verdict, or runs are missing."""
    return self.found != verdicts.UNDECIDED


def outcomes(table: pd.DataFrame) -> Iterator[Outcome]:
  """The outcomes of controls that have runs; verdicts need several seeds.

  Args:
    table: see table.leaderboard.
  """
  of_baseline = table['missing'].where(table['is_baseline']).ffill().astype(int)
  has_runs = table['best_loss'].notna()
  rows = table.assign(of_baseline=of_baseline)[(table['control'] != '') & has_runs]
  for row in rows.itertuples():
    found = row.loss_verdict
    if row.control == 'inert':
      found = 'not inert'
      if row.inert:  # as far as there are runs
        found = verdicts.UNDECIDED if row.missing or row.of_baseline else 'inert'
    missing = ''
    if found == verdicts.UNDECIDED and row.missing:
      missing = f'{row.missing} of its runs'
    elif found == verdicts.UNDECIDED and row.of_baseline:
      missing = f"{row.of_baseline} of the baseline's runs"
    if found:
      yield Outcome(row.arm, row.parameters, row.control, found, missing)
