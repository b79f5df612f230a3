"""Extrapolated learning rates against a known truth, and what widens their intervals."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth
from scipy import stats

from stability.analysis.prediction import fits, observations, power_law, rates

RATES = 10 ** np.arange(-3.5, 0.51, 0.5)
SIZES = np.array([4.0, 4.6, 5.2, 5.8])


def predict(seed, sizes):
  """Predictions from a sweep of `sizes` sizes, and the truth, at 16 to 100 times the largest.

  Returns:
    Whether the interval covers the critical rate and the best one, and the width of the first one.
  """
  rng = np.random.default_rng(seed)
  power, headroom = rng.uniform(-0.5, -0.1), rng.uniform(0.5, 1.2)
  critical = lambda parameters: 0.4 * (parameters / 9216) ** power  # noqa: E731
  trained = [9216 * 4**i for i in range(sizes)]
  results, curves = known_truth.bowls(
      rng, critical, sizes=trained, rates=RATES, headroom=headroom, noise=0.01
  )
  (of_arm,) = observations.by_arm(results, curves).values()
  target = trained[-1] * 10 ** rng.uniform(np.log10(16), 2)
  covered = []
  for predictor, truth in (
      (rates.BEST_RATE, np.log10(critical(target)) - headroom),
      (rates.CRITICAL_RATE, np.log10(critical(target))),
  ):
    low, high = predictor.extrapolate(of_arm, np.array([np.log10(target)])).interval_2xC[:, 0]
    covered.append(low <= truth <= high)
  return *covered, high - low


def test_intervals_cover_the_truth():
  best, critical, widths = np.transpose([predict(seed, sizes=4) for seed in range(100, 112)])
  assert critical.sum() >= 10 and best.sum() >= 9
  assert np.median(widths) < 1


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [3, 4, 6])
def test_intervals_cover_the_truth_in_50_sweeps(sizes):
  best, critical, widths = np.transpose([predict(seed, sizes) for seed in range(50)])
  assert critical.mean() >= 0.8 and best.mean() >= 0.8
  assert np.median(widths) < (1 if sizes > 3 else 1.5)


def line(sizes=SIZES, noise=0.0, rng=None):
  values = 1 - 0.4 * sizes + (rng.normal(0, noise, len(sizes)) if noise else 0)
  zeros = np.zeros(len(sizes))
  return fits.Points(sizes, zeros, values, zeros, zeros)


def draws(points, log_size, monkeypatch=None, **options):
  options = {'interpolation': 1e-6, 'widen': False} | options
  return power_law.extrapolate(points, np.array([log_size]), **options)


def width(found):
  low, high = found.interval_2xC[:, 0]
  return high - low


def test_interval_is_that_of_least_squares(monkeypatch):
  monkeypatch.setattr(power_law, 'BEND', 0.0)
  points = line(noise=0.1, rng=np.random.default_rng(1))
  found = draws(points, 7.0, draws=4000)
  fitted = stats.linregress(points.log_size_K, points.value_K)
  assert found.median_C[0] == pytest.approx(fitted.intercept + 7 * fitted.slope, abs=0.02)
  residuals = points.value_K - fitted.intercept - fitted.slope * points.log_size_K
  distance = (7 - SIZES.mean()) ** 2 / ((SIZES - SIZES.mean()) ** 2).sum()
  # The error of interpolation adds one degree of freedom to the 4 - 2 of the residuals.
  scale = np.sqrt((residuals**2).sum() / 3 * (1 + 1 / 4 + distance))
  assert width(found) / 2 == pytest.approx(stats.t.ppf(0.95, 3) * scale, rel=0.1)


def test_bend_widens_with_the_square_of_the_distance():
  half = 1.645 * power_law.BEND / 2
  for beyond in (1.0, 2.0, 4.0):
    for log_size in (SIZES[-1] + beyond, SIZES[0] - beyond):
      assert width(draws(line(), log_size)) / 2 == pytest.approx(half * beyond**2, rel=0.1)
  assert width(draws(line(), 5.0)) < 1e-3


def test_interpolation_and_seeds_widen():
  assert width(draws(line(), 5.0, interpolation=0.1)) > 2 * 1.645 * 0.1
  found = draws(line(), 5.0, seed_noise=0.2)
  assert width(found) / 2 == pytest.approx(1.645 * 0.2, rel=0.1)
  assert np.percentile(found.law_DxC, 95) - np.percentile(found.law_DxC, 5) < 1e-3


def test_errors_on_the_larger_sizes_widen():
  kinked = line()
  kinked = fits.Points(
      SIZES, 0 * SIZES, np.maximum(kinked.value_K, kinked.value_K[2]), 0 * SIZES, 0 * SIZES
  )
  plain, widened = (draws(kinked, 7.0, widen=widen) for widen in (False, True))
  factor = width(widened) / width(plain)
  assert factor > 1.5
  np.testing.assert_allclose(widened.noise_D, factor * plain.noise_D)
  np.testing.assert_allclose(widened.median_C, plain.median_C)


def test_error_of_interpolation_is_that_of_the_grid_of_each_size():
  """Grids that are shifted between sizes are not finer together than each of them."""

  def error(shift):
    parts = [
        known_truth.bowls(
            np.random.default_rng(0),
            lambda parameters: 0.1,
            sizes=[size],
            rates=10.0 ** np.arange(-3, 1) * 10 ** (shift * number),
        )[0].runs
        for number, size in enumerate((9216, 36_864, 147_456))
    ]
    results, curves = known_truth.bowls(np.random.default_rng(0), lambda parameters: 0.1)
    results = dataclasses.replace(results, runs=pd.concat(parts, ignore_index=True))
    (of_arm,) = observations.by_arm(results, curves).values()
    return rates._interpolation_error(of_arm)

  assert [error(0.0), error(0.3)] == pytest.approx([1 / np.sqrt(12) / 2] * 2)
