"""Extrapolation against exact laws, least squares' own intervals and brute force."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats

from stability.analysis.prediction import fits

SIZES = np.array([4.0, 4.6, 4.9, 5.2])
RATES = np.array([-2.0, -1.5, -1.0, -0.5])
BEYOND = np.array([5.8])


def points(law, *, sizes=SIZES, rates=RATES, seeds=1, noise=0.0, rng=None):
  rows = [
      {'size': size, 'rate': rate, 'seed': seed, 'value': law(size, rate)}
      for size in sizes
      for rate in rates
      for seed in range(seeds)
  ]
  made = pd.DataFrame(rows)
  if noise:
    made['value'] += rng.normal(0, noise, len(made))
  return fits.Points.of(made)


def steeper_at_high_rates(size, rate):
  return 1 + 0.3 * rate**2 + (0.8 + 0.5 * rate) * (size - 4)


def bent(size, rate):
  return steeper_at_high_rates(size, rate) + (0.3 + 0.1 * rate) * (size - 4.5) ** 2


@pytest.mark.parametrize('law', [steeper_at_high_rates, bent])
def test_exact_laws_are_continued(law):
  targets = points(law, sizes=BEYOND)
  found = fits.extrapolate(points(law), targets, least_noise=1e-6, draws=200)
  np.testing.assert_allclose(found.value_T, targets.value_K, atol=1e-3)
  assert (found.interval_2xT[0] <= targets.value_K + 1e-4).all()
  assert (found.interval_2xT[1] >= targets.value_K - 1e-4).all()
  quadratic = sum(weight for name, weight in found.weights.items() if 'quadratic' in name)
  assert quadratic > 0.99 if law is bent else quadratic < 0.75


def test_intervals_hold_what_they_say():
  held = []
  for seed in range(25):
    rng = np.random.default_rng(seed)
    made = points(steeper_at_high_rates, noise=0.1, rng=rng)
    targets = points(steeper_at_high_rates, sizes=BEYOND, noise=0.1, rng=rng)
    low, high = fits.extrapolate(made, targets, least_noise=0.01, draws=300).interval_2xT
    held.extend((low <= targets.value_K) & (targets.value_K <= high))
  # 100 intervals, those of a sweep alike: about two standard deviations of 50 around 0.9.
  assert 0.81 <= np.mean(held) <= 0.98


def test_more_noise_and_more_distance_widen_the_interval():
  def width(noise, size):
    rng = np.random.default_rng(3)
    made = points(steeper_at_high_rates, noise=noise, rng=rng)
    targets = points(steeper_at_high_rates, sizes=[size])
    low, high = fits.extrapolate(made, targets, least_noise=0.01, draws=300).interval_2xT
    return (high - low).mean()

  assert width(0.05, 5.8) < width(0.2, 5.8) < width(0.2, 7.0)


def test_an_interval_is_of_a_run_and_not_of_the_mean_of_many():
  made = points(bent, rates=[-1.0], seeds=50, noise=0.1, rng=np.random.default_rng(0))
  low, high = fits.extrapolate(
      made, points(bent, sizes=[5.0], rates=[-1.0]), least_noise=0.01, widen=False
  ).interval_2xT
  assert (high[0] - low[0]) / 2 == pytest.approx(1.645 * 0.1, rel=0.15)


def test_power_law_has_the_t_interval_of_least_squares():
  rng = np.random.default_rng(1)
  made = points(lambda size, rate: 2 - 0.4 * size, rates=[0.0], noise=0.1, rng=rng)
  found = stats.linregress(made.size_K, made.value_K)
  middle, low, high = fits.power_law(made, least_noise=1e-3)
  assert middle == pytest.approx(found.slope, abs=0.02)
  # The least noise counts as one degree of freedom more than the 4 - 2 there are.
  half = stats.t.ppf(0.95, 3) * found.stderr * np.sqrt(2 / 3)
  assert (high - low) / 2 == pytest.approx(half, rel=0.15)  # 1000 draws know a 5 % share to 0.7 %


def test_values_beyond_the_grid_are_taken_for_what_they_say():
  law = lambda size, rate: 3.0 - 0.7 * size  # noqa: E731
  made = points(law, sizes=np.linspace(4, 5.4, 8), rates=[0.0])
  limit = made.value_K[2]
  for sign in (1, -1):  # above the grid, and the same upside down
    hidden = dataclasses.replace(
        made,
        value_K=sign * np.minimum(made.value_K, limit),
        beyond_K=sign * np.repeat([1, 0], [3, 5]),
    )
    power, low, high = fits.power_law(hidden, least_noise=0.02)
    assert sign * power == pytest.approx(-0.7, abs=0.05)
    assert low < -0.7 * sign < high
    exact = dataclasses.replace(hidden, beyond_K=0 * hidden.beyond_K)
    assert sign * fits.power_law(exact, least_noise=0.02)[0] > -0.6


def test_seeds_are_drawn_whole():
  seeds = np.array([5, 5, 1, 1, 2, 2])
  weights_WxK, ways_D = fits._seed_weights(seeds, 400, np.random.default_rng(0))
  weights_DxK = weights_WxK[ways_D]
  assert (weights_DxK[:, ::2] == weights_DxK[:, 1::2]).all()
  assert (weights_DxK[:, ::2].sum(axis=1) == 3).all()
  assert weights_DxK[:, 0].mean() == pytest.approx(1, abs=0.1)
  assert weights_DxK[:, 0].std() > 0.5
  assert (fits._seed_weights(0 * seeds, 400, np.random.default_rng(0))[0] == 1).all()


def test_what_one_seed_alone_holds_is_as_certain_as_its_runs():
  made = points(steeper_at_high_rates, seeds=3, noise=0.1, rng=np.random.default_rng(0))
  made = made.only((made.rate_K < RATES[-1]) | (made.seed_K == 0))
  targets = points(steeper_at_high_rates, sizes=BEYOND)
  low, high = fits.extrapolate(made, targets, least_noise=0.01, draws=300).interval_2xT
  assert (high - low)[-1] < 2 * (high - low)[:-1].max()  # sqrt(3) times: a third of the runs
  # The same where one seed alone holds more than one size.
  of_a_rate = made.only(made.rate_K == RATES[0])
  line = of_a_rate.only((of_a_rate.size_K == SIZES[-1]) | (of_a_rate.seed_K == 0))
  _, low, high = fits.power_law(line, least_noise=0.01)
  assert high - low < 1


def test_sizes_close_together_say_little_of_larger_ones():
  near = points(bent, sizes=4 + np.arange(4) / 100, noise=0.1, rng=np.random.default_rng(0))
  targets = points(bent, sizes=BEYOND)
  low, high = fits.extrapolate(near, targets, least_noise=0.01, draws=200).interval_2xT
  assert (high - low > 10).all()
  assert ((low < targets.value_K) & (targets.value_K < high)).all()


def test_what_the_folds_missed_widens_the_draws():
  kinked = lambda size, rate: max(0.0, size - 4.7) * (2 + rate) ** 3  # noqa: E731
  targets = points(kinked, sizes=BEYOND)
  plain, widened = (
      fits.extrapolate(points(kinked), targets, least_noise=1e-3, draws=200, widen=widen)
      for widen in (False, True)
  )
  assert widened.widening > 1.5 > plain.widening == 1
  np.testing.assert_allclose(
      np.diff(widened.interval_2xT, axis=0), widened.widening * np.diff(plain.interval_2xT, axis=0)
  )
  np.testing.assert_allclose(widened.value_T, plain.value_T)


def test_shared_slopes_are_quadratic_in_the_learning_rate():
  law = lambda size, rate: rate + (0.8 + 0.5 * rate**2) * (size - 4)  # noqa: E731
  targets = points(law, sizes=BEYOND)
  said = fits.least_squares(fits.Fit(order=1, shared=True), points(law), targets)
  np.testing.assert_allclose(said, targets.value_K)


def test_two_sizes_are_a_line_and_one_is_nothing():
  assert fits.extrapolate(
      points(bent, sizes=SIZES[:1]), points(bent, sizes=BEYOND), least_noise=0.1
  ) is None  # fmt: skip
  found = fits.extrapolate(
      points(steeper_at_high_rates, sizes=SIZES[:2]),
      points(steeper_at_high_rates, sizes=BEYOND),
      least_noise=1e-6,
  )
  assert all('linear' in name for name in found.weights)
  np.testing.assert_allclose(
      found.value_T, points(steeper_at_high_rates, sizes=BEYOND).value_K, atol=1e-3
  )


def test_folds_predict_each_size_from_those_below():
  made = points(bent)
  found = [(list(np.unique(below.size_K)), *np.unique(of.size_K)) for below, of in fits.folds(made)]
  assert found == [([4.0, 4.6], 4.9), ([4.0, 4.6, 4.9], 5.2)]


def test_logistic_is_the_maximum_of_its_posterior():
  rng = np.random.default_rng(0)
  values = rng.normal(2, 3, 60)
  events = rng.random(60) < special.expit(0.8 * (values - 1))
  z = (values - values.mean()) / values.std()

  def loss(b):
    logits = b[0] + b[1] * z
    likelihood = np.sum(np.where(events, -np.logaddexp(0, -logits), -np.logaddexp(0, logits)))
    return -likelihood + 0.5 * (1e-3 * b[0] ** 2 + 1e-2 * b[1] ** 2)

  b = optimize.minimize(loss, np.zeros(2), tol=1e-10).x
  found = fits.logistic(values, events)
  np.testing.assert_allclose(found(values), special.expit(b[0] + b[1] * z), atol=1e-4)


def test_a_threshold_is_uncertain_within_the_gap():
  values = np.array([0.0, 1.0, 2.0, 4.0, 5.0, 6.0])
  found = fits.logistic(values, values > 3)
  assert found(3.0) == pytest.approx(0.5, abs=0.02)
  assert found(1.0) < 0.02 and found(5.0) > 0.98 and 0.05 < found(2.5) < 0.45
  assert fits.logistic(values, values > 9) is None
  assert fits.logistic(values, values > -1) is None
