"""Critical rates of a target: the law, what widens its intervals, and how often they are right."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth

from stability.analysis import results_table
from stability.analysis.prediction import next_target, observations, surface, surface_posterior
from stability.analysis.prediction.next_sweep import SweepState

ROOT = Path(__file__).parents[3]
SIZES = np.array([4.0, 4.6, 5.2, 5.8])
LINE = -1 - 0.3 * (SIZES - SIZES.mean())


def extrapolate(log_critical_S, log_size, beyond=0, draws=4000):
  tiled = np.tile(log_critical_S, (draws, 1))
  beyond = np.broadcast_to(beyond, tiled.shape)
  return next_target.extrapolate(tiled, beyond, SIZES, log_size, -1.5, 0.5)


def width(draws):
  low, high = np.percentile(draws, (5, 95))
  return high - low


def test_law_is_continued():
  """Curves that are known exactly leave the uncertainty of the law, most of it far away."""
  near, far = (extrapolate(LINE, log_size) for log_size in (6.4, 8.2))
  assert np.median(near[1]) == pytest.approx(-1 - 0.3 * 1.5, abs=0.05)
  assert np.median(far[1]) == pytest.approx(-1 - 0.3 * 3.3, abs=0.2)
  assert 0.3 < width(near[1]) < width(far[1]) / 2
  assert near[0].std() < 0.3 * near[1].std()


def test_sizes_off_the_law_widen():
  off = LINE + np.array([0.2, -0.2, -0.2, 0.2])
  assert width(extrapolate(off, 6.4)[1]) > 1.3 * width(extrapolate(LINE, 6.4)[1])


def test_bounds():
  """Critical rates above the grid are so by an unknown amount."""
  bounds = np.minimum(LINE, -1.0)
  beyond = (LINE > -1.0).astype(int)
  exact, bounded = (extrapolate(bounds, 6.4, side)[1] for side in (0, beyond))
  assert width(bounded) > 1.05 * width(exact) and np.median(bounded) < np.median(exact)


def test_size_of_the_sweep_has_its_own_deviation():
  off = LINE + np.array([0, 0, 0.3, 0])
  (mean, value) = extrapolate(off, SIZES[2])
  assert np.median(value) == pytest.approx(off[2], abs=0.1)
  assert width(value) < 0.5 and np.median(mean) == pytest.approx(off[2], abs=0.1)


# Coverage, against launch.predict's.


def covered(seed, *, deviation, noise):
  """Whether intervals of launch.next and launch.predict hold the truth at 16 times; widths."""
  rng = np.random.default_rng(seed)
  sizes = [9216 * 4**i for i in range(4)]
  at, power = 10 ** rng.uniform(-1, -0.3), rng.uniform(-0.4, -0.1)
  off = {size: 10 ** rng.normal(0, deviation) for size in sizes}
  law = lambda parameters: at * (parameters / 1e4) ** power * off.get(parameters, 1)  # noqa: E731
  results, curves = known_truth.bowls(rng, law, sizes=sizes, noise=noise)
  target, truth = 16 * sizes[-1], np.log10(law(16 * sizes[-1]))
  (low, _, high) = SweepState(results, target=target).now.critical_3xQ[:, 0]
  by_arm = observations.by_arm(results, curves)
  (arm,) = by_arm
  predicted = surface.fit_arms(by_arm).critical(arm, [np.log10(target)])
  low_p, high_p = predicted.interval_2xC[:, 0]
  return low <= truth <= high, low_p <= truth <= high_p, high - low, high_p - low_p


@pytest.mark.parametrize(
    'sweeps', [3, pytest.param(25, marks=pytest.mark.slow)], ids=['few', 'many']
)
@pytest.mark.parametrize(('deviation', 'noise'), [(0, 0.02), (0.1, 0.01)])
def test_intervals_cover_as_those_of_launch_predict(sweeps, deviation, noise):
  found = [covered(seed, deviation=deviation, noise=noise) for seed in range(sweeps)]
  ours, predicts, width, width_of_predict = np.mean(found, axis=0)
  assert ours >= min(predicts, 0.85)
  assert width == pytest.approx(width_of_predict, rel=0.25)


@pytest.mark.parametrize('parameters', [589_824, 2_359_296])
def test_intervals_of_a_trained_sweep(parameters):
  """Sizes up to 147K: all four critical rates of a larger one, which was trained, are in."""
  path = ROOT / 'configs/results/extrapolation/results.csv'
  results = results_table.load_csv(path)
  curves = pd.DataFrame(columns=['run', 'step', 'loss', *observations.PROBES], dtype=float)
  by_arm = observations.by_arm(results, curves)
  runs = results.runs
  small = dataclasses.replace(results, runs=runs[runs['parameters'] <= 147_456])
  state = SweepState(small, target=parameters)
  low, _, high = state.now.critical_3xQ
  for q, arm in enumerate(state.arm_values):
    of_arm = by_arm[arm].curves
    (measured,) = of_arm['log_critical'][of_arm['parameters'] == parameters]
    assert low[q] < measured < high[q]


def test_prior_is_that_of_launch_predict():
  """The law of a single size comes from the prior: exponents that fall."""
  tiled = np.full((4000, 1), -1.0)
  mean, _ = next_target.extrapolate(
      tiled, np.zeros((4000, 1)), np.array([5.0]), 6.0, -1.0, 0.5
  )
  assert np.median(mean) == pytest.approx(-1 + surface_posterior.MEAN_K[1], abs=0.05)
