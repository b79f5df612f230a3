"""The figure of the verdicts on claims by run length and size."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability.analysis.claims.claim import DOES_NOT_HOLD, HOLDS, UNDECIDED
from stability.report import labels
from stability.report.plots import style

_MARKS = {  # verdict -> colour and marker: with the shape, they are told apart without colours
    HOLDS: {'color': '#009E73', 'marker': 'o'},
    DOES_NOT_HOLD: {'color': '#D55E00', 'marker': 'X'},
    UNDECIDED: {'color': '#bbbbbb', 'marker': '.'},
}
_LINE = 62  # characters of a claim
_ROW = 0.34  # inches


@style.styled
def verdicts(judged: pd.DataFrame, ax: Axes | None = None) -> Figure:
  """The verdict on each claim in each regime: a row per claim, a panel per largest size.

  Args:
    judged: the result of regime_verdicts.judge.
    ax: axes to draw in, for a single size.
  """
  claims = list(dict.fromkeys(zip(judged['figure'], judged['claim'], strict=True)))
  row_of = {claim: len(claims) - n for n, (_, claim) in enumerate(claims)}
  sizes = sorted(judged['parameters'].unique())
  titles = [f'sizes up to {labels.parameters(size)}' for size in sizes]
  figure, axes = style.grid(titles, height=0.8 + _ROW * len(claims), ax=ax)
  steps = sorted(judged['steps'].unique())
  for axis, size in zip(axes[:, 0], sizes, strict=True):
    of_size = judged[judged['parameters'] == size]
    for verdict, mark in _MARKS.items():
      found = of_size[of_size['verdict'] == verdict]
      columns, rows = found['steps'].map(steps.index), found['claim'].map(row_of)
      axis.plot(columns, rows, linestyle='', markersize=7, **mark)
    axis.set_xticks(range(len(steps)), [f'{count:,.0f}' for count in steps], rotation=45)
    axis.set_xlim(-0.5, len(steps) - 0.5)
    axis.set_ylim(0.5, len(claims) + 0.5)
  texts = ['\n'.join(textwrap.wrap(f'{figure}: {claim}', _LINE)) for figure, claim in claims]
  axes[0, 0].set_yticks(np.arange(len(claims), 0, -1), texts, fontsize='small')
  handles = [style.handle(verdict, linestyle='', **mark) for verdict, mark in _MARKS.items()]
  style.finish(figure, 'steps', '', handles, '', ax=ax)
  return figure
