"""Unstable runs and onsets, against cases worked out by hand."""

import functools
import math

import numpy as np
import pandas as pd
import pytest

from stability.analysis import instability, results
from stability.storage import run_files

INITIAL = 6.0


def results_of(*runs):
  """Results with a run for each (parameters, learning rate, final loss, ...status)."""
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


def test_unstable_above_best_rate_and_margin():
  # The best run reduces the loss by 4 nats, so the margin is 0.2.
  assert unstable((1, 0.1, 2.0), (1, 0.3, 2.19), (1, 1.0, 2.21)) == [False, False, True]


def test_rise():
  """The best run reduces the loss by 4 nats. At lower rates, and if no run learns, it is 0."""
  runs = ((1, 0.01, 5.0), (1, 0.1, 2.0), (1, 0.3, 2.3), (1, 1.0, 7.0), (1, 3.0, 1.0, 'failed'))
  found = instability.rise(results_of(*runs))
  assert list(found[:4]) == pytest.approx([0, 0, 0.075, 1]) and np.isnan(found[4])
  assert list(instability.rise(results_of((1, 0.1, 6.5), (1, 0.3, 7.0)))) == [0, 0]


def test_low_rate_is_not_unstable():
  assert unstable((1, 0.01, 5.0), (1, 0.1, 2.0), (1, 0.1, 3.0)) == [False, False, False]


def test_best_run_is_of_the_size_and_intervention():
  """A better intervention makes none unstable; a higher best rate hides no failure below it."""
  given = results_of((1, 0.1, 2.5), (1, 0.3, 2.6), (1, 0.1, 2.0), (1, 0.3, 2.5))
  runs = given.runs.assign(**{'optimizer.name': ['adamw', 'adamw', 'muon', 'muon']})
  of_optimizers = results.Results(runs, ['optimizer.name'], [])
  assert list(instability.unstable(of_optimizers)) == [False, False, False, True]
  assert list(instability.best_runs(of_optimizers)['loss']) == [2.5, 2.5, 2.0, 2.0]
  curves = pd.DataFrame({'run': runs['run'], 'step': 1, 'loss': runs['final_loss']})
  onsets = instability.onset(of_optimizers, curves)
  assert list(onsets.fillna(0)) == [0, 0, 0, 1]
  given = results_of((1, 0.1, 2.0), (1, 0.3, 3.0), (1, 0.3, 2.2), (1, 1.0, 1.9))
  runs = given.runs.assign(**{'model.qk_norm': ['none', 'none', 'layernorm', 'layernorm']})
  of_norms = results.Results(runs, ['model.qk_norm'], [])
  assert list(instability.unstable(of_norms)) == [False, True, False, False]


def test_interventions_with_one_learning_rate_each():
  """A random search: each run is compared with the best one of its size."""
  given = results_of((1, 0.1, 2.0), (1, 0.3, 2.1), (1, 1.0, 3.0), (1, 0.01, 3.0), (2, 0.1, 1.9))
  runs = given.runs.assign(**{'optimizer.beta1': [0.9, 0.8, 0.95, 0.7, 0.9]})
  found = instability.unstable(results.Results(runs, ['optimizer.beta1'], []))
  assert list(found) == [False, False, True, False, False]


@pytest.mark.parametrize('by', ['', 'policy'])
def test_best_run_kept_its_learning_rate(by):
  """A run that was taken to a lower rate would be best at a rate at which others fail."""
  given = results_of((1, 0.1, 2.0), (1, 0.3, 3.0), (1, 1.0, 1.9), (2, 1.0, 2.0))
  runs = given.runs.assign(**{'actions': [0, 0, 1, 1], 'control.on_alarm': by})
  acted = results.Results(runs, [], [])
  assert list(instability.best_runs(acted)['loss']) == [2.0, 2.0, 2.0, 2.0]
  assert list(instability.unstable(acted))[:3] == [False, True, False]


def test_best_run_is_of_the_same_length():
  given = results_of((1, 0.01, 1.5), (1, 0.1, 2.5), (1, 0.1, 2.5), (1, 0.3, 3.5))
  given.runs['schedule.steps'] = [1000, 1000, 400, 400]
  of_steps = results.Results(given.runs, ['schedule.steps'], [])
  assert list(instability.unstable(of_steps)) == [False, True, False, True]
  assert list(instability.best_runs(of_steps)['loss']) == [1.5, 1.5, 2.5, 2.5]


@pytest.mark.parametrize('loss, expected', [(2.5, True), (2.1, False), (1.5, False)])
def test_single_run_of_a_size_is_compared_with_smaller_ones(loss, expected):
  smaller = (1, 0.1, 2.0), (1, 0.3, 2.1)
  assert unstable(*smaller, (2, 0.01, loss)) == [False, False, expected]
  seeds = results_of(*smaller, (2, 0.01, loss), (2, 0.01, loss))
  seeds.runs['seed'] = [0, 0, 0, 1]
  assert list(instability.unstable(seeds)) == [False, False, expected, expected]
  # Of two learning rates the better one is the best of the size.
  assert unstable(*smaller, (2, 0.01, 2.5), (2, 0.1, 2.6)) == [False] * 4


def test_shapes_with_equal_parameters_are_different_sizes():
  given = results_of((1, 0.1, 2.0), (1, 0.3, 3.0))
  given.runs['model.depth'] = [3, 12]
  of_shapes = results.Results(given.runs, [], ['model.depth'])
  assert list(instability.unstable(of_shapes)) == [False, False]


@pytest.mark.parametrize('loss', [6.5, math.nan, math.inf])
def test_diverged_run_is_unstable_at_any_rate(loss):
  assert unstable((1, 0.1, loss), (1, 0.3, 2.0)) == [True, False]


@pytest.mark.parametrize('status', ['failed', 'stopped', 'missing'])
def test_run_that_does_not_count(status):
  found = instability.unstable(results_of((1, 0.1, 2.0), (1, 0.3, 1.0, status), (1, 1.0, 2.1)))
  assert found.isna().tolist() == [False, True, False]
  assert list(found.dropna()) == [False, False]  # the failed run is not the best


def test_nothing_finished():
  found = instability.unstable(results_of((1, 0.1, math.nan, 'missing')))
  assert found.isna().all()


def onset(best, other, *, steps=(10, 20, 30, 40, 50, 60), other_steps=None):
  """The onset of a run next to the best one, whose final loss is 2: the margin is 0.2."""
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
  monkeypatch.setattr(instability, 'SMOOTHING_WINDOW', 1)


@pytest.mark.usefixtures('unsmoothed')
def test_onset_is_where_the_loss_stays_above():
  onset_at = functools.partial(onset, [5, 4, 3, 3, 3, 3])
  assert onset_at([5, 4, 3, 3.1, 3.3, 3.3]) == 50
  assert onset_at([5, 4, 3.5, 3.1, 3.3, 3.3]) == 50  # recovers in between
  assert onset_at([6, 5, 4, 4, 4, 4]) == 10
  assert np.isnan(onset_at([6, 5, 4, 4, 4, 3.1]))  # recovers at the end
  assert np.isnan(onset_at([5, 4, 3, 3.1, 3.19, 3.19]))


@pytest.mark.usefixtures('unsmoothed')
def test_nan_loss_counts_as_above():
  best, other = [5, 4, 3, 3, 3, 3], [5, 4, 3, 3, np.nan]
  assert onset(best, other, other_steps=(10, 20, 30, 40, 50)) == 50


@pytest.mark.usefixtures('unsmoothed')
def test_onset_interpolates_between_logged_steps():
  best, other = [6, 5, 4, 3, 2, 1], [5.4, 4.8, 3.8]
  assert onset(best, other, other_steps=(15, 25, 35)) == 25


def test_losses_are_smoothed():
  spike = [3.0] * 4 + [9.0, 3.0]  # the mean of five stays above to the end
  assert onset([3.0] * 6, spike) == 50
  assert np.isnan(onset([3.0] * 6, [3.0] * 5 + [3.9]))  # 0.9 / 5 is within the margin


def test_nan_loss_is_final():
  assert onset([3.0] * 6, [3.0, 3.0, np.nan, 3.0, 3.0, 3.0]) == 30


def test_runs_without_curves_have_no_onset():
  empty = pd.DataFrame({'run': [], 'step': [], 'loss': []})
  assert instability.onset(results_of((1, 0.1, 2.0), (1, 1.0, 3.0)), empty).isna().all()


@pytest.mark.parametrize(
    ('losses', 'expected'),
    [
        ([3.0, 2.0, 3.0], (-2.0, 0)),
        ([2.25, 2.0, 2.75], (-2.25, 0)),  # the parabola 2 + (x + 2)^2 / 2 + (x + 2) / 4
        ([2.0, 2.0, 2.0], (-2.5, -1)),
        ([3.0, 2.0, 2.0], (-1.5, 0)),
        ([2.0, 2.5, 3.0], (-2.5, -1)),  # the vertex may be up to the midpoint
        ([4.0, 3.0, 2.0], (-1.5, 1)),
    ],
)
def test_best_rate_is_the_vertex_of_a_parabola(losses, expected):
  found = instability.log_best_rate(np.array([-3.0, -2.0, -1.0]), np.array(losses))
  assert found == (pytest.approx(expected[0]), expected[1])


def test_best_rates_of_many_curves():
  """They are those of one curve at a time, or the rate of the lowest loss."""
  rng = np.random.default_rng(0)
  log_rates = np.array([-3.0, -2.5, -2.0, -1.0])
  losses = np.round(rng.uniform(2, 3, (200, 4)), 1)
  losses[::2, 1] = np.inf
  losses[0] = np.inf
  found, kinds = instability.vertex(log_rates, losses), set()
  for vertex, of_one in zip(found, losses, strict=True):
    expected, censored = instability.log_best_rate(log_rates, of_one)
    kinds.add((censored, np.isfinite(of_one[1])))
    assert vertex == (log_rates[of_one.argmin()] if censored else expected)
  assert len(kinds) == 6


@pytest.mark.parametrize(
    ('losses', 'expected'),
    [
        ([2.4, 2.0, 2.1, 2.4], (-0.75, 0)),  # from 2.1 to 2.4, the margin is crossed at 2.175
        ([2.4, 2.0, 2.1, 2.17], (0.0, 1)),  # the grid ends first
        ([2.0, 2.35, 2.0, 2.35], (-2.5, -1)),  # the best rate is below the grid: a bound
        ([2.0, 2.04, 2.2, 2.5], (-1.15625, 0)),  # nearly flat there: how low does not matter
        ([5.0, 2.0, 2.0, 2.0], (0.0, 1)),  # high losses below the best rate do not count
        ([5.5, 5.5, 5.5, 5.5], (-3.0, -1)),  # nothing was learned
        ([2.4, 2.1, 2.1, 2.0], (0.0, 1)),
    ],
)
def test_critical_rate(losses, expected):
  """With an initial loss of 5.5 and a best one of 2, the margin is 0.175."""
  log_rates = np.array([-3.0, -2.0, -1.0, 0.0])
  log_rate, censored = instability.log_critical_rate(log_rates, np.array(losses), 5.5)
  assert (log_rate, censored) == (pytest.approx(expected[0]), expected[1])


def test_critical_rates_of_many_curves():
  """They are those of one curve at a time."""
  rng = np.random.default_rng(0)
  log_rates, initial = np.linspace(-3, 0, 7), rng.uniform(5, 6, (200, 2))
  losses = np.minimum(2 + rng.normal(0, 1, (200, 2, 7)).cumsum(axis=2) ** 2, initial[..., None])
  losses[:3] = 6.5  # no rate trains
  found, censored = instability.log_critical_rate(log_rates, losses, initial)
  assert set(censored.ravel()) == {-1, 0, 1}
  for at in np.ndindex(200, 2):
    of_one = instability.log_critical_rate(log_rates, losses[at], initial[at])
    assert (found[at], censored[at]) == of_one
