"""What a person can choose of a report."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from stability.analysis import results as results_lib


@dataclasses.dataclass(frozen=True)
class Options:
  """The choices; the defaults are those of the report that a sweep writes at its end."""

  figures: Sequence[str] = ()  # their names; empty: all that there are data for
  # The figures are written for a paper if one of these is given: see style.for_paper.
  figure_format: str | None = None  # svg, png or pdf; SVG and PNG are always written
  figure_width: float | None = None  # inches
  interval: float = results_lib.INTERVAL  # confidence level of the intervals of LR sensitivity
  latex: bool = False  # whether to write lr_sensitivity.tex
  costs: pd.DataFrame | None = None  # of arms, see analysis/leaderboard/table.py
