"""Unstable and onset, against cases worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from stability.analysis import instability, results
from stability.storage import run_files

INITIAL = 6.0


def results_of(*runs):
  """Results of (parameters, learning rate, final loss, ...status)."""
  rows = [
      {
          'run': f'run {i}',
          'status': status[0] if status else run_files.final_status(INITIAL, loss),
          'parameters': parameters,
          'learning_rate': rate,
          'seed': 0,
          'initial_loss': INITIAL,
          'final_loss': loss,
      }
      for i, (parameters, rate, loss, *status) in enumerate(runs)
  ]
  return results.Results(pd.DataFrame(rows), [], [])


def unstable(*runs):
  return list(instability.unstable(results_of(*runs)))


def test_above_the_best_rate_and_by_more_than_the_margin():
  # The best has learned 4 nats, so the margin is 0.2.
  assert unstable((1, 0.1, 2.0), (1, 0.3, 2.19), (1, 1.0, 2.21)) == [False, False, True]


def test_a_rate_that_is_too_low_is_not_unstable():
  assert unstable((1, 0.01, 5.0), (1, 0.1, 2.0), (1, 0.1, 3.0)) == [False, False, False]


def test_the_best_is_over_all_interventions_but_of_one_size():
  given = results_of((1, 0.1, 2.0), (1, 0.3, 3.0), (2, 0.3, 3.0), (2, 1.0, 3.1))
  given.runs['optimizer.eps'] = [1e-8, 1e-6, 1e-8, 1e-8]
  of_eps = results.Results(given.runs, ['optimizer.eps'], [])
  assert list(instability.unstable(of_eps)) == [False, True, False, False]


@pytest.mark.parametrize('loss, expected', [(2.5, True), (2.1, False), (1.5, False)])
def test_a_run_alone_at_its_size_is_held_against_the_smaller_ones(loss, expected):
  smaller = (1, 0.1, 2.0), (1, 0.3, 2.1)
  assert unstable(*smaller, (2, 0.01, loss)) == [False, False, expected]
  seeds = results_of(*smaller, (2, 0.01, loss), (2, 0.01, loss))
  seeds.runs['seed'] = [0, 0, 0, 1]
  assert list(instability.unstable(seeds)) == [False, False, expected, expected]
  # Of two learning rates the better one is the best of the size.
  assert unstable(*smaller, (2, 0.01, 2.5), (2, 0.1, 2.6)) == [False] * 4


def test_two_shapes_with_as_many_parameters_are_two_sizes():
  given = results_of((1, 0.1, 2.0), (1, 0.3, 3.0))
  given.runs['model.depth'] = [3, 12]
  of_shapes = results.Results(given.runs, [], ['model.depth'])
  assert list(instability.unstable(of_shapes)) == [False, False]


@pytest.mark.parametrize('loss', [6.5, math.nan, math.inf])
def test_what_diverged_is_unstable_at_any_rate(loss):
  assert unstable((1, 0.1, loss), (1, 0.3, 2.0)) == [True, False]


@pytest.mark.parametrize('status', ['failed', 'stopped', 'missing'])
def test_what_does_not_count_is_neither(status):
  found = instability.unstable(results_of((1, 0.1, 2.0), (1, 0.3, 1.0, status), (1, 1.0, 2.1)))
  assert found.isna().tolist() == [False, True, False]
  assert list(found.dropna()) == [False, False]  # the failed run is no best one


def test_nothing_finished():
  found = instability.unstable(results_of((1, 0.1, math.nan, 'missing')))
  assert found.isna().all()


def onset(best, other, *, steps=(10, 20, 30, 40, 50, 60), other_steps=None):
  """That of a run beside the best one, whose final loss is 2: the margin is 0.2."""
  given = results_of((1, 0.1, 2.0), (1, 1.0, 3.0))
  curves = pd.concat([
      pd.DataFrame({'run': 'run 0', 'step': steps, 'loss': best}),
      pd.DataFrame({'run': 'run 1', 'step': other_steps or steps, 'loss': other}),
  ])  # fmt: skip
  of_best, of_other = instability.onset(given, curves)
  assert np.isnan(of_best)
  return of_other


@pytest.fixture
def unsmoothed(monkeypatch):
  monkeypatch.setattr(instability, 'SMOOTHED', 1)


@pytest.mark.usefixtures('unsmoothed')
def test_the_first_step_from_which_it_stays_above():
  best = [5, 4, 3, 3, 3, 3]
  assert onset(best, [5, 4, 3, 3.1, 3.3, 3.3]) == 50
  assert onset(best, [5, 4, 3.5, 3.1, 3.3, 3.3]) == 50  # back in between
  assert onset(best, [6, 5, 4, 4, 4, 4]) == 10
  assert np.isnan(onset(best, [6, 5, 4, 4, 4, 3.1]))  # back at the end
  assert np.isnan(onset(best, [5, 4, 3, 3.1, 3.19, 3.19]))


@pytest.mark.usefixtures('unsmoothed')
def test_a_loss_that_is_not_finite_is_above():
  assert onset([5, 4, 3, 3, 3, 3], [5, 4, 3, 3, np.nan], other_steps=(10, 20, 30, 40, 50)) == 50


@pytest.mark.usefixtures('unsmoothed')
def test_runs_logged_at_other_steps_are_compared_at_the_same_time():
  assert onset([6, 5, 4, 3, 2, 1], [5.4, 4.8, 3.8], other_steps=(15, 25, 35)) == 25


def test_losses_are_smoothed_over_the_steps_before():
  spike = [3.0] * 4 + [9.0, 3.0]  # the mean of five is above to the end
  assert onset([3.0] * 6, spike) == 50
  assert np.isnan(onset([3.0] * 6, [3.0] * 5 + [3.9]))  # 0.9 / 5 is within the margin


def test_a_loss_once_not_finite_does_not_come_back():
  assert onset([3.0] * 6, [3.0, 3.0, np.nan, 3.0, 3.0, 3.0]) == 30


def test_runs_without_curves_have_no_onset():
  empty = pd.DataFrame({'run': [], 'step': [], 'loss': []})
  assert instability.onset(results_of((1, 0.1, 2.0), (1, 1.0, 3.0)), empty).isna().all()
