"""A sweep as curves: which run is next, by name where the sweep has it."""

import dataclasses

import numpy as np
import pytest
from helpers import simulated_sweeps as sim

from stability.analysis.prediction.next_sweep import SweepState
from stability.analysis.results import Results


def results(loss=sim.bowl, missing=(), points=sim.QK) -> Results:
  """Three sizes with and without qk-norm, four rates; runs in these rows are missing."""
  found, _ = sim.simulate(points, sim.Outcomes(loss))
  runs = found.runs.copy()
  rows = list(missing)
  runs.loc[rows, 'status'] = 'missing'
  runs.loc[rows, ['initial_loss', 'final_loss']] = np.nan
  return dataclasses.replace(found, runs=runs)


def test_curves():
  state = SweepState(results(missing=[0]))
  curves = state.curves
  assert list(curves.arm_K) == [0, 1] * 3
  assert list(10**curves.log_size_K) == pytest.approx([9216, 9216, 36864, 36864, 147456, 147456])
  np.testing.assert_allclose(curves.log_rate_L, [-3, -2, -1, 0])
  assert curves.in_window_KxL.all()
  assert (curves.initial_loss_K == sim.INITIAL_LOSS).all()
  assert state.known_width == pytest.approx(0.5)
  assert len(state.surface.runs) == 23
  assert state.arm_values == [('layernorm',), ('none',)]


def test_next_run_is_a_missing_one():
  """A curve of which only two runs are known: one of those that it lacks is next, by name."""
  found = results(sim.cliff, missing=[20, 22, 23])
  state = SweepState(found, arms=(1,))
  (run,) = (run for run in state.next_runs(np.ones(6), 3) if run.choice.curve == 5)
  assert run.run in set(found.runs['run'].iloc[[20, 22, 23]]) and run.seed == 0
  assert run.run.endswith(f'learning_rate={run.learning_rate},seed=0')
  assert run.like['model.qk_norm'] == 'none'


def test_steered_run_does_not_count():
  """A person took it to another rate: its own cell is as unknown as one that has no run."""
  found = results(sim.cliff)
  runs = found.runs.assign(actions=0)
  runs.loc[0, 'actions'] = 1
  state = SweepState(dataclasses.replace(found, runs=runs), width=0.01)
  assert list(state.runs.index[state.runs['loss'].isna()]) == [0]
  assert len(state.surface.runs) == 23


def test_grids_that_end_too_early():
  """They are extended on the side where a curve with all its runs needs it."""
  above = SweepState(results(sim.flat)).curves
  np.testing.assert_allclose(above.log_rate_L, [-3, -2, -1, 0, 1])
  assert (above.in_window_KxL == [True] * 4 + [False]).all()
  below = SweepState(results(lambda c: sim.bowl(c, best_rate=1e-4))).curves
  np.testing.assert_allclose(below.log_rate_L, [-4, -3, -2, -1, 0])
  unknown = SweepState(results(sim.flat, missing=range(3, 24, 4))).curves
  np.testing.assert_allclose(unknown.log_rate_L, [-3, -2, -1, 0])
  lowest = SweepState(results(sim.flat, missing=range(0, 24, 4))).curves
  np.testing.assert_allclose(lowest.log_rate_L, [-3, -2, -1, 0, 1])


def test_windows_of_arms():
  """One arm has rates a decade lower: runs are proposed in the window of their arm alone.

  A window is extended where it ends too early, though the other arm has the rate already.
  """
  found = results(sim.cliff)
  runs = found.runs.copy()
  is_none = runs['model.qk_norm'] == 'none'
  runs.loc[is_none, 'learning_rate'] /= 10
  state = SweepState(dataclasses.replace(found, runs=runs), width=1e-3)
  np.testing.assert_allclose(state.curves.log_rate_L, [-4, -3, -2, -1, 0], atol=1e-9)
  assert [list(row) for row in state.curves.in_window_KxL[:2]] == [
      [False, True, True, True, True], [True, True, True, True, False]
  ]  # fmt: skip
  allowed = state._may_be_next_KxL
  assert not allowed[::2, 0].any() and not allowed[1::2, -1].any()
  flat = runs.assign(final_loss=runs['final_loss'].where(~is_none, 2.0))
  state = SweepState(dataclasses.replace(found, runs=flat), width=1e-3)
  assert state._may_be_next_KxL[1::2, -1].all()


def test_lr_sensitivity_is_that_of_the_windows():
  """A rate outside the windows of a curve may be next and changes no LR sensitivity."""
  found = results(sim.flat)
  report = [{'where': {'model.qk_norm': 'none'}, 'windows': [[1e-3, 1e-2], [1e-1, 0.2]]}]
  state, grid = SweepState(dataclasses.replace(found, windows=report)), SweepState(found)
  with_window = [True, True, True, False, False]
  for curve, row in enumerate(state.curves.in_window_KxL):
    assert list(row) == ([True] * 4 + [False], with_window)[state.curves.arm_K[curve]]
  np.testing.assert_array_equal(state._may_be_next_KxL, grid._may_be_next_KxL)
  sensitivity_K = [each.now.sensitivity_DxK.mean(axis=0) for each in (state, grid)]
  is_none_K = state.curves.arm_K == 1
  np.testing.assert_array_equal(sensitivity_K[0][~is_none_K], sensitivity_K[1][~is_none_K])
  assert (sensitivity_K[0] < sensitivity_K[1])[is_none_K].all()


def test_next_run_is_another_seed():
  """Nothing is missing, and critical rates are to be known better than one seed tells."""
  runs = SweepState(results(), width=0.01).next_runs(np.ones(6), 3)
  assert len(runs) == 3
  for run in runs:
    assert run.seed == 1 and run.run is None and run.learning_rate in (1e-3, 1e-2, 1e-1, 1.0)


def test_next_run_is_beyond_the_grid():
  """All critical rates are between the highest learning rate and the next one."""
  found = results(lambda c: sim.bowl(c, steep=0.043))
  (run,) = SweepState(found, width=1e-3).next_runs(np.ones(6), 1)
  assert run.learning_rate == 10.0 and run.seed == 0 and run.run is None


@pytest.mark.parametrize(('missing', 'first'), [((), 10.0), ((0, 4, 8), 1e-3)])
def test_critical_rates_above_the_grid(missing, first):
  """They are not known, at no size and at no target: rates beyond the grid are next.

  Where the lowest rates are missing, the best ones may be there, and they are first.
  """
  found = results(sim.flat, missing, sim.grid(sim.WIDTHS, sim.RATES))
  state = SweepState(found)
  assert not state.is_known and np.isinf(state.now.widths_Q).all()
  run, second = state.next_runs(np.ones(3), 2)
  assert run.learning_rate == first and run.choice.about is not None
  assert second.learning_rate == 10.0
  state = SweepState(found, target=2.4e6)
  assert not state.is_known and np.isnan(state.now.critical_3xQ).all()
  runs = state.next_runs(np.ones(3), 4)
  assert first in [run.learning_rate for run in runs if run.choice.about == 0]


def test_size_with_one_rate():
  """It is neither known nor does it make the choice arbitrary."""
  points = sim.grid(sim.WIDTHS, sim.RATES)
  one = sim.grid(sim.sweep('model.width', 128), sim.sweep('optimizer.learning_rate', 1e-2))
  state = SweepState(results(sim.cliff, (1, 2, 5, 6, 10), [*points, *one]))
  assert not state.is_known
  runs = state.next_runs(np.ones(4), 3)
  assert runs[0].choice.about is not None and runs[0].choice.about != 3


def test_target():
  state = SweepState(results(sim.cliff), target=1e7, arms=(1,))
  assert state.now.log_critical_DxQ.shape[1] == 2
  assert list(state.is_wanted) == [False, True] and list(state.arm_of_wanted) == [0, 1]
  assert state.known_width == 2.0
  narrow = SweepState(results(sim.cliff))
  assert state.now.widths_Q.min() > narrow.now.widths_Q.min()  # it is farther away
