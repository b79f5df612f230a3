"""The figures of a page, and the reasons for those that are not drawn."""

import numpy as np
import pytest
from helpers import simulated_sweeps as sim
from helpers.simulated_sweeps import RATES, WIDTHS, grid, simulate

from stability.analysis.lr_sensitivity import lr_sensitivity
from stability.report.plots import selection


@pytest.mark.parametrize(
    'points, loss, reason',
    [
        (grid(WIDTHS, RATES[:1]), sim.flat, 'two or more learning rates'),
        (grid(WIDTHS, RATES), lambda c: np.nan, 'It is 0 everywhere'),
        (grid(WIDTHS[:1], RATES), sim.flat, 'above 0 at two or more sizes'),
        (grid(WIDTHS, RATES), sim.flat, None),
    ],
)
def test_why_lr_sensitivity_is_not_drawn(points, loss, reason):
  results = simulate(points, sim.Outcomes(loss))[0]
  plots = selection.loss_plots(results, lr_sensitivity(results), None)
  (plot,) = (plot for plot in plots if plot.name == 'lr_sensitivity')
  assert (plot.draw is None) == (reason is not None)
  assert reason is None or reason in plot.absent
