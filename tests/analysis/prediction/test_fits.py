"""Extrapolation against exact laws, the t intervals of least squares, and brute force."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats

from stability.analysis.prediction import fits

SIZES = np.array([4.0, 4.6, 4.9, 5.2])
RATES = np.array([-2.0, -1.5, -1.0, -0.5])
LARGER = np.array([5.8])


def points(law, *, sizes=SIZES, rates=RATES, seeds=1, noise=0.0, rng=None):
  rows = [
      {'log_size': size, 'log_rate': rate, 'seed': seed, 'value': law(size, rate)}
      for size in sizes
      for rate in rates
      for seed in range(seeds)
  ]
  made = pd.DataFrame(rows)
  if noise:
    made['value'] += rng.normal(0, noise, len(made))
  return fits.Points.from_table(made)


def interval(draws_DxC):
  return np.percentile(draws_DxC, fits.INTERVAL, axis=0)


def steeper_at_high_rates(size, rate):
  return 1 + 0.3 * rate**2 + (0.8 + 0.5 * rate) * (size - 4)


def bent(size, rate):
  return steeper_at_high_rates(size, rate) + (0.3 + 0.1 * rate) * (size - 4.5) ** 2


@pytest.mark.parametrize('law', [steeper_at_high_rates, bent])
def test_exact_laws(law):
  cells = points(law, sizes=LARGER)
  found = fits.extrapolate(points(law), cells, noise_floor=1e-6, draws=200)
  np.testing.assert_allclose(np.median(found, axis=0), cells.value_K, atol=1e-3)
  low, high = interval(found)
  assert (low <= cells.value_K + 1e-4).all() and (high >= cells.value_K - 1e-4).all()
  weights = fits._weights(list(fits.FITS), points(law))
  quadratic = sum(weight for fit, weight in weights.items() if fit.degree == 2)
  assert quadratic > 0.99 if law is bent else quadratic < 0.75


def test_interval_coverage():
  covered = []
  for seed in range(25):
    rng = np.random.default_rng(seed)
    made = points(steeper_at_high_rates, noise=0.1, rng=rng)
    cells = points(steeper_at_high_rates, sizes=LARGER, noise=0.1, rng=rng)
    low, high = interval(fits.extrapolate(made, cells, noise_floor=0.01, draws=300))
    covered.extend((low <= cells.value_K) & (cells.value_K <= high))
  # 100 intervals, correlated within a sweep: about two standard deviations of 50 around 0.9.
  assert 0.81 <= np.mean(covered) <= 0.98


def test_noise_and_distance_widen_intervals():
  def width(noise, size):
    rng = np.random.default_rng(3)
    made = points(steeper_at_high_rates, noise=noise, rng=rng)
    cells = points(steeper_at_high_rates, sizes=[size])
    low, high = interval(fits.extrapolate(made, cells, noise_floor=0.01, draws=300))
    return (high - low).mean()

  assert width(0.05, 5.8) < width(0.2, 5.8) < width(0.2, 7.0)


def test_interval_is_for_a_single_run():
  made = points(bent, rates=[-1.0], seeds=50, noise=0.1, rng=np.random.default_rng(0))
  low, high = interval(
      fits.extrapolate(
          made, points(bent, sizes=[5.0], rates=[-1.0]), noise_floor=0.01, widen=False
      )
  )
  assert (high[0] - low[0]) / 2 == pytest.approx(1.645 * 0.1, rel=0.15)


def test_power_law_has_t_interval():
  rng = np.random.default_rng(1)
  made = points(lambda size, rate: 2 - 0.4 * size, rates=[0.0], noise=0.1, rng=rng)
  found = stats.linregress(made.log_size_K, made.value_K)
  middle, low, high = fits.power_law(made, noise_floor=1e-3)
  assert middle == pytest.approx(found.slope, abs=0.02)
  # The noise floor adds one degree of freedom to the 4 - 2 of the residuals.
  half = stats.t.ppf(0.95, 3) * found.stderr * np.sqrt(2 / 3)
  assert (high - low) / 2 == pytest.approx(half, rel=0.15)  # 1000 draws: 5 % +- 0.7 %


def test_censored_values():
  law = lambda size, rate: 3.0 - 0.7 * size  # noqa: E731
  made = points(law, sizes=np.linspace(4, 5.4, 8), rates=[0.0])
  limit = made.value_K[2]
  for sign in (1, -1):  # above the grid, and the same mirrored
    censored = dataclasses.replace(
        made,
        value_K=sign * np.minimum(made.value_K, limit),
        censored_K=sign * np.repeat([1, 0], [3, 5]),
    )
    power, low, high = fits.power_law(censored, noise_floor=0.02)
    assert sign * power == pytest.approx(-0.7, abs=0.05)
    assert low < -0.7 * sign < high
    exact = dataclasses.replace(censored, censored_K=0 * censored.censored_K)
    assert sign * fits.power_law(exact, noise_floor=0.02)[0] > -0.6


def test_whole_seeds_are_resampled():
  seeds = np.array([5, 5, 1, 1, 2, 2])
  weights_WxK, resample_D = fits._seed_resamples(seeds, 400, np.random.default_rng(0))
  weights_DxK = weights_WxK[resample_D]
  assert (weights_DxK[:, ::2] == weights_DxK[:, 1::2]).all()
  assert (weights_DxK[:, ::2].sum(axis=1) == 3).all()
  assert weights_DxK[:, 0].mean() == pytest.approx(1, abs=0.1)
  assert weights_DxK[:, 0].std() > 0.5
  assert (fits._seed_resamples(0 * seeds, 400, np.random.default_rng(0))[0] == 1).all()


def test_rate_with_one_seed():
  made = points(steeper_at_high_rates, seeds=3, noise=0.1, rng=np.random.default_rng(0))
  made = made.select((made.log_rate_K < RATES[-1]) | (made.seed_K == 0))
  cells = points(steeper_at_high_rates, sizes=LARGER)
  low, high = interval(fits.extrapolate(made, cells, noise_floor=0.01, draws=300))
  assert (high - low)[-1] < 2 * (high - low)[:-1].max()  # sqrt(3) times: a third of the runs
  # The same where only one seed has more than one size.
  of_a_rate = made.select(made.log_rate_K == RATES[0])
  line = of_a_rate.select((of_a_rate.log_size_K == SIZES[-1]) | (of_a_rate.seed_K == 0))
  _, low, high = fits.power_law(line, noise_floor=0.01)
  assert high - low < 1


def test_close_sizes_give_wide_intervals():
  near = points(bent, sizes=4 + np.arange(4) / 100, noise=0.1, rng=np.random.default_rng(0))
  cells = points(bent, sizes=LARGER)
  low, high = interval(fits.extrapolate(near, cells, noise_floor=0.01, draws=200))
  assert (high - low > 10).all()
  assert ((low < cells.value_K) & (cells.value_K < high)).all()


def test_validation_errors_widen_the_draws():
  kinked = lambda size, rate: max(0.0, size - 4.7) * (2 + rate) ** 3  # noqa: E731
  cells = points(kinked, sizes=LARGER)
  plain, widened = (
      fits.extrapolate(points(kinked), cells, noise_floor=1e-3, draws=200, widen=widen)
      for widen in (False, True)
  )
  factors = np.diff(interval(widened), axis=0) / np.diff(interval(plain), axis=0)
  assert factors.min() > 1.5
  np.testing.assert_allclose(factors, factors[0, 0])
  np.testing.assert_allclose(np.median(widened, axis=0), np.median(plain, axis=0))


def test_shared_slopes_are_quadratic_in_the_rate():
  law = lambda size, rate: rate + (0.8 + 0.5 * rate**2) * (size - 4)  # noqa: E731
  cells = points(law, sizes=LARGER)
  predicted = fits.least_squares(fits.Fit(degree=1, shared=True), points(law), cells)
  np.testing.assert_allclose(predicted, cells.value_K)


def test_two_sizes_fit_a_line_and_one_fits_nothing():
  assert fits.extrapolate(
      points(bent, sizes=SIZES[:1]), points(bent, sizes=LARGER), noise_floor=0.1
  ) is None  # fmt: skip
  two = points(steeper_at_high_rates, sizes=SIZES[:2])
  cells = points(steeper_at_high_rates, sizes=LARGER)
  assert {fit.degree for fit in fits.FITS if fit.is_determined(two)} == {1}
  found = fits.extrapolate(two, cells, noise_floor=1e-6)
  np.testing.assert_allclose(np.median(found, axis=0), cells.value_K, atol=1e-3)


def test_validation_splits():
  made = points(bent)
  splits = [
      (list(np.unique(smaller.log_size_K)), *np.unique(held_out.log_size_K))
      for smaller, held_out in fits.validation_splits(made)
  ]
  assert splits == [([4.0, 4.6], 4.9), ([4.0, 4.6, 4.9], 5.2)]


def test_logistic_regression_maximizes_the_posterior():
  rng = np.random.default_rng(0)
  values = rng.normal(2, 3, 60)
  events = rng.random(60) < special.expit(0.8 * (values - 1))
  z = (values - values.mean()) / values.std()

  def loss(b):
    logits = b[0] + b[1] * z
    likelihood = np.sum(np.where(events, -np.logaddexp(0, -logits), -np.logaddexp(0, logits)))
    return -likelihood + 0.5 * (1e-3 * b[0] ** 2 + 1e-2 * b[1] ** 2)

  b = optimize.minimize(loss, np.zeros(2), tol=1e-10).x
  found = fits.logistic_regression(values, events)
  np.testing.assert_allclose(found(values), special.expit(b[0] + b[1] * z), atol=1e-4)


def test_threshold_is_uncertain_within_the_gap():
  values = np.array([0.0, 1.0, 2.0, 4.0, 5.0, 6.0])
  found = fits.logistic_regression(values, values > 3)
  assert found(3.0) == pytest.approx(0.5, abs=0.02)
  assert found(1.0) < 0.02 and found(5.0) > 0.98 and 0.05 < found(2.5) < 0.45
  assert fits.logistic_regression(values, values > 9) is None
  assert fits.logistic_regression(values, values > -1) is None
