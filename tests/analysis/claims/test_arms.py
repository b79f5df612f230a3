"""Claims on arms of the leaderboard."""

import pytest
from helpers import extension_cases
from helpers import simulated_sweeps as sim
from helpers.named_claims import verdict

CLIP_NORM = 'optimizer.clip_norm'


def test_clipping_to_a_norm_below_1_need_not_be_inert():
  """It acts on norms below 1; clipping to larger norms, or none, does not."""

  def found(clip_norm):
    acts = sim.where(CLIP_NORM, clip_norm, 0.1, 0.0)
    outcomes = extension_cases.clipping(1.0)
    loss = sim.Outcomes(lambda c: outcomes.loss(c) + acts(c), outcomes.probes)
    points = extension_cases.CLIPS + [
        point | {CLIP_NORM: added}
        for point in sim.grid(sim.WIDTHS, sim.RATES)
        for added in (0.1, 2.0)
    ]
    return verdict('extension_o', *sim.simulate(points, loss))

  assert (found(0.1).verdict, found(0.1).effect) == ('holds', pytest.approx(0.0))
  for clip_norm in (0.0, 2.0):
    assert found(clip_norm).verdict == 'does not hold'
    assert found(clip_norm).effect == pytest.approx(0.1)


def test_clipping_to_a_norm_below_1_is_no_kind_that_counts():
  points = [
      point | {CLIP_NORM: 0.1} if point.get(CLIP_NORM) == 0.0 else point
      for point in extension_cases.CLIPS
  ]
  found = verdict('extension_o', *sim.simulate(points, extension_cases.clipping(1.0)))
  assert (found.n, found.reason) == (0, 'the sweep varies 2 kinds of clipping')
