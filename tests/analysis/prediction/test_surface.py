"""The model of all arms: calibrated on sweeps of its prior, and sensible where the data are few."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth, surface_truth
from scipy import stats

from stability.analysis.prediction import fits, observations, predict, rates, surface

SIZES = tuple(9216 * 4**i for i in range(3))  # 9.2K to 147K
FAR = np.log10([SIZES[-1] * 4, SIZES[-1] * 16, SIZES[-1] * 64])


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
  monkeypatch.setattr(fits, 'DRAWS', 200)


def law(at_10k, power):
  return lambda parameters: at_10k * (parameters / 1e4) ** power


def runs(*critical, seed=0, **options):
  """A row per run of arms 0, 1 ..., each with a law of critical rates."""
  rng = np.random.default_rng(seed)
  tables = []
  for arm, of_arm in enumerate(critical):
    results, curves = known_truth.bowls(rng, of_arm, **{'sizes': SIZES} | options)
    (found,) = observations.by_arm(results, curves).values()
    tables.append(found.runs.assign(arm=arm))
  return pd.concat(tables, ignore_index=True)


def fit(*critical, **options):
  return fit_table(runs(*critical, **options))


def fit_table(table):
  return surface.fit(surface.read(table))


def unstable(fitted, arm, log_sizes, log_rates):
  return rates.unstable_share(fitted.critical(arm, log_sizes).run_DxC, log_rates)


def median(draws):
  return np.median(draws.run_DxC, axis=0)


def test_seeds_without_the_best_rate_are_left_out():
  """Two further seeds near the critical rate would be judged against the best of these two."""
  whole = runs(law(0.1, 0.0))
  more = [
      whole[whole['seed'].eq(0) & whole['log_rate'].between(log_rate - 0.6, log_rate + 0.6)]
      for log_rate in (-0.5, 0.0)
  ]
  more = [part[part['log_rate'] > -0.9].assign(seed=10 + n) for n, part in enumerate(more)]
  read = surface.read(pd.concat([whole, *more], ignore_index=True))
  pd.testing.assert_frame_equal(read, surface.read(whole))


# Calibration.


def ranks(sweeps, **options):
  """Ranks of the truth among the draws, by quantity: a row per made-up sweep."""
  found = {'critical': [], 'critical, far': [], 'best, far': [], 'slope': []}
  sizes = [surface_truth.LOG_SIZES[-1], surface_truth.FAR]
  for seed in range(sweeps):
    rng = np.random.default_rng(seed)
    made = surface_truth.draw(rng, arms=1 + seed % 3, seeds=1 + seed % 2, **options)
    fitted = surface.fit(made.curves)
    critical, best = (get(0, sizes).run_DxC for get in (fitted.critical, fitted.best))
    slopes = fitted.posterior.coefficients_DxAxK[:, 0, 1]
    found['critical'].append((critical[:, 0] < made.critical_AxC[0, -2]).mean())
    found['critical, far'].append((critical[:, 1] < made.critical_AxC[0, -1]).mean())
    found['best, far'].append((best[:, 1] < made.best_AxC[0, -1]).mean())
    found['slope'].append((slopes < made.slope_A[0]).mean())
  return pd.DataFrame(found)


@pytest.mark.parametrize(
    ('sweeps', 'bins'), [(15, 3), pytest.param(150, 10, marks=pytest.mark.slow)]
)
def test_ranks_of_the_truth_are_uniform(sweeps, bins):
  """Simulation-based calibration: sweeps are drawn from the prior."""
  of_truth = ranks(sweeps)
  for name in of_truth:
    counts, _ = np.histogram(of_truth[name], bins, (0, 1))
    assert stats.chisquare(counts).pvalue > 0.002, (name, counts)
  outside = (of_truth < 0.05) | (of_truth > 0.95)  # of the 90 % intervals
  assert outside.to_numpy().mean() < 0.25


@pytest.mark.slow
@pytest.mark.parametrize('bend', [-0.1, 0.1])
def test_laws_more_bent_than_expected_are_covered(bend):
  """The exponent changes by twice the prior's standard deviation per decade."""
  of_truth = ranks(60, bend=bend)
  covered = ((of_truth > 0.05) & (of_truth < 0.95)).mean()
  assert covered['critical'] > 0.8 and (covered > 0.65).all(), covered


# Properties.


def test_probability_rises_with_the_learning_rate():
  fitted = fit(law(0.3, -0.3), law(0.1, -0.1))
  log_rates = np.linspace(-4, 1, 40)
  for arm in fitted.arms:
    for log_size in (3.0, *FAR, 10.0):
      found = unstable(fitted, arm, np.full(40, log_size), log_rates)
      assert (np.diff(found) >= 0).all() and found[0] < 0.2 and found[-1] > 0.8


def test_what_all_sizes_are_unstable_at_stays_unstable():
  """An arm whose critical rate hardly falls, as with qk-layernorm, and none of its own probes."""
  fitted = fit(law(0.35, -0.03), law(0.12, -0.35))
  for arm in fitted.arms:
    assert (unstable(fitted, arm, [*FAR, np.log10(1.9e7)], np.zeros(4)) > 0.9).all()


def test_rates_rise_with_size_only_if_they_did():
  flat, rising = (fit(law(0.05, power), noise=0.002, sizes=[9216 * 2**i for i in range(7)])
                  for power in (0.0, 0.3))  # fmt: skip
  assert median(flat.critical(0, FAR[-1:])) < np.log10(0.05) + 0.1
  assert median(rising.critical(0, FAR[-1:])) > np.log10(0.3)
  one_size = fit(law(0.05, 0.0), noise=0.002, sizes=SIZES[:1])
  assert median(one_size.critical(0, FAR[-1:])) < np.log10(0.05) - 0.2


def test_known_law_is_within_the_intervals():
  fitted = fit(law(0.4, -0.3), law(0.2, -0.2), noise=0.002)
  for arm, of_arm in enumerate((law(0.4, -0.3), law(0.2, -0.2))):
    truth = np.log10(of_arm(10**FAR))
    for draws, log_rate in ((fitted.critical, truth), (fitted.best, truth - 0.8)):
      low, high = draws(arm, FAR).interval_2xC
      assert ((low < log_rate) & (log_rate < high)).all()
      assert (high - low < [0.9, 1.5, 2.4]).all()


def test_best_rate_is_at_most_the_critical_one():
  fitted = fit(law(0.3, -0.3), headroom=0.1)
  critical, best = fitted.critical(0, FAR), fitted.best(0, FAR)
  assert (best.run_DxC <= critical.run_DxC).all() and (best.law_DxC <= critical.law_DxC).all()


@pytest.mark.parametrize('at_10k', [100.0, 1e-5])
def test_critical_rate_outside_the_grid_is_outside(at_10k):
  """The other arm says how critical rates fall with size, the grid where they are at least."""
  is_above = at_10k > 1
  table = runs(law(at_10k, -0.3), law(0.1, -0.3), headroom=3.0 if is_above else 0.8)
  if not is_above:
    table.loc[table['arm'] == 0, 'loss'] = table['initial_loss']
  fitted = fit_table(table)
  found = fitted.critical(0, np.log10(SIZES)).law_DxC
  beyond = found > -0.1 if is_above else found < -2.9
  assert beyond.mean() > 0.95
  if is_above:
    assert unstable(fitted, 0, [np.log10(SIZES[-1])], [0.0])[0] < 0.2
  slopes = fitted.posterior.coefficients_DxAxK[:, :, 1]
  assert -0.6 < np.median(slopes[:, 0]) < -0.05


def test_arm_with_few_runs_borrows_from_the_others():
  table = runs(law(0.3, -0.3), law(0.2, -0.3), law(0.1, -0.3), noise=0.002)
  is_few = table['arm'] == 0
  few = table[~is_few | (table['parameters'] == SIZES[0])]
  width = {}
  for name, of_fit in {'alone': few[few['arm'] == 0], 'together': few}.items():
    low, high = fit_table(of_fit).critical(0, FAR).interval_2xC
    width[name] = high - low
    assert ((low < np.log10(law(0.3, -0.3)(10**FAR))) & (high > -3)).all()
  assert (width['together'] < 0.9 * width['alone']).all()


def test_fitted_size_has_its_own_deviation():
  """A size that breaks the law keeps what was measured, but does not bend the law."""
  broken = lambda n: law(0.3, -0.3)(n) / (4 if n == SIZES[1] else 1)  # noqa: E731
  sizes = [9216 * 4**i for i in range(5)]
  kept, moved = (fit(of_arm, sizes=sizes, noise=0.002) for of_arm in (law(0.3, -0.3), broken))
  at = np.log10([SIZES[1]])
  assert median(kept.critical(0, at)) - median(moved.critical(0, at)) > 0.35
  far = np.log10([sizes[-1] * 4])
  assert abs(median(kept.critical(0, far)) - median(moved.critical(0, far))) < 0.15


def test_noise_of_seeds_is_that_of_a_run():
  """Many seeds show the law; a single run keeps their noise."""
  rng = np.random.default_rng(0)
  tables = []
  for seed in range(12):
    level = 0.3 * 10 ** rng.normal(0, 0.2)
    tables.append(runs(law(level, -0.3), noise=0.002).assign(seed=seed))
  fitted = fit_table(pd.concat(tables))
  draws = fitted.critical(0, np.log10(SIZES))
  assert np.median(draws.noise_D) == pytest.approx(0.2, rel=0.35)
  assert (draws.run_DxC.std(axis=0) > 1.5 * draws.law_DxC.std(axis=0)).all()


def test_equal_runs_give_equal_draws():
  table = runs(law(0.3, -0.3))
  first, second = (fit_table(table).critical(0, FAR).run_DxC for _ in range(2))
  np.testing.assert_array_equal(first, second)


# What is read of the loss curves.


def read(losses, log_rates, initial_loss=6.0):
  table = pd.DataFrame({'log_rate': log_rates, 'loss': losses})
  (row,) = surface.read(
      table.assign(arm='a', log_size=4.0, seed=0, initial_loss=initial_loss)
  ).to_dict('records')
  return row


def test_reads_the_curve_of_a_seed():
  row = read([2.1, 2.0, 2.1, 2.3], [-3, -2.5, -2, -1])
  assert row['log_critical'] == pytest.approx(-1.5) and row['critical_censored'] == 0
  assert row['critical_step'] == 1 and row['best_step'] == 0.5
  assert row['log_best'] == pytest.approx(-2.5) and row['best_censored'] == 0
  assert row['centre'] == -2


def test_reads_bounds():
  row = read([2.2, 2.1, 2.0], [-3, -2, -1])
  assert (row['log_critical'], row['critical_censored']) == (-1, 1)
  assert (row['log_best'], row['best_censored']) == (-1.5, 1)
  row = read([6.0, 6.0], [-3, -2])  # no rate trains
  assert (row['log_critical'], row['critical_censored']) == (-3, -1)
  assert np.isnan(row['log_best'])


def test_single_rate_says_only_whether_it_trains():
  row = read([2.0], [-2])
  assert np.isnan(row['log_critical']) and np.isnan(row['log_best'])
  row = read([6.0], [-2])
  assert (row['log_critical'], row['critical_censored']) == (-2, -1)


def test_runs_without_a_loss_do_not_count():
  table = runs(law(0.3, -0.3))
  lacking = table.assign(loss=np.nan)
  with pytest.raises(ValueError, match='no run counts'):
    surface.read(lacking)
  both = pd.concat([table, lacking.assign(log_size=9.0)])
  pd.testing.assert_frame_equal(surface.read(both), surface.read(table))


# In predictions.


def test_predictions_of_an_arm_use_the_runs_of_all_up_to_the_size():
  sizes = (*SIZES, SIZES[-1] * 4, SIZES[-1] * 16)
  parts = [
      known_truth.bowls(
          np.random.default_rng(i), law(at, -0.3), sizes=sizes, fields={'model.qk_norm': name}
      )
      for i, (name, at) in enumerate({'none': 0.1, 'l2': 0.3}.items())
  ]
  both = pd.concat([results.runs for results, _ in parts], ignore_index=True)
  curves = pd.concat([curves for _, curves in parts])

  def test(table):
    results = dataclasses.replace(parts[0][0], runs=table)
    by_arm = observations.by_arm(results, curves)
    held_out = predict.hold_out(results, by_arm, fit_up_to=SIZES[-1])
    rows = held_out[held_out['predictor'] == 'critical learning rate (all arms)']
    return rows[rows['model.qk_norm'] == 'none'].reset_index(drop=True)

  found = test(both)
  assert set(found['parameters']) == set(sizes[3:])
  assert set(found['times'].round()) == {4, 16}
  columns = ['probability', 'value', 'low', 'high']
  larger = both['parameters'] > SIZES[-1]
  same = test(both.assign(final_loss=both['final_loss'].where(~larger, both['final_loss'] + 0.2)))
  pd.testing.assert_frame_equal(found[columns], same[columns])
  is_other = both['model.qk_norm'] == 'l2'
  other = both['final_loss'] + 0.3 * np.log10(both['learning_rate'] / 1e-3)
  moved = test(both.assign(final_loss=both['final_loss'].where(~is_other, other)))
  assert not np.allclose(found['value'], moved['value'], rtol=1e-3)
