"""Verdicts from paired differences, against independent computations of variance and Holm."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stability.analysis.leaderboard import verdicts


def table(shifts, seeds=5, noise=0.01, rng_seed=0):
  """Losses of arms at `shifts` from 2, with an effect of each seed that all arms share."""
  rng = np.random.default_rng(rng_seed)
  of_seed = rng.normal(0, 0.05, seeds)
  rows = {
      name: 2 + shift + of_seed + rng.normal(0, noise, seeds) for name, shift in shifts.items()
  }
  return pd.DataFrame(rows).T


SHIFTS = {'base': 0.0, 'same': 0.0, 'low': -0.1, 'high': 0.1, 'near': 0.015}


def test_pooled_variance_is_that_of_two_way_anova():
  values = table(SHIFTS)
  y = values.to_numpy()
  arms, seeds = y.shape
  residual = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
  found = verdicts.noise(values)
  assert found.paired_df == (arms - 1) * (seeds - 1)
  assert found.paired == pytest.approx((residual**2).sum() / found.paired_df)
  assert found.total_df == seeds - 1  # the effect of a seed is one for all arms
  assert found.total == pytest.approx(y.var(axis=1, ddof=1).mean())


def test_differences_are_paired():
  values = table(SHIFTS, rng_seed=4)
  found = verdicts.differences(values, 'base')
  spread = verdicts.noise(values)
  error = np.sqrt(2 * spread.paired / 5)
  assert error < 0.02  # without pairs it would be 0.03
  by_seed = (values - values.loc['base']).drop('base')
  usual = by_seed.index[by_seed.var(axis=1) <= 2 * spread.paired]  # the others: see below
  assert len(usual) == 3
  for arm in usual:
    difference = by_seed.loc[arm].mean()
    low, high = stats.t.interval(0.9, spread.paired_df, difference, error)
    assert found.loc[arm, ['difference', 'low', 'high']].tolist() == pytest.approx(
        [difference, low, high]
    )
    p = 2 * stats.t.sf(abs(difference / error), spread.paired_df)
    assert found.loc[arm, 'p'] == pytest.approx(p)
  assert found.loc['base'].isna().all()


def test_an_arm_that_varies_more_has_a_larger_variance():
  """Its own, with the weight of its degrees of freedom, and the pooled one with that of four."""
  values = table({'base': 0.0} | {f'arm {n}': 0.0 for n in range(9)})
  values.loc['noisy'] = values.loc['base'] + np.array([-0.08, 0.0, 0.08, 0.0, 0.1])
  found, pooled = verdicts.differences(values, 'base').loc['noisy'], verdicts.noise(values).paired
  own = (values.loc['noisy'] - values.loc['base']).var()
  error = np.sqrt((4 * own + 4 * 2 * pooled) / 8 / 5)
  assert found['high'] - found['difference'] == pytest.approx(stats.t.ppf(0.95, 8) * error)
  assert found['p'] == pytest.approx(2 * stats.t.sf(found['difference'] / error, 8))


def test_a_noisy_arm_is_rarely_called_better_or_worse():
  """In 9 % of cases, of 10 % that Holm's procedure allows; with the pooled variance, in 20 %."""
  rng, wrong = np.random.default_rng(0), 0
  for _ in range(200):
    values = rng.normal(0, 0.01, (12, 3))
    values[1] *= 4
    frame = pd.DataFrame(values + rng.normal(0, 0.03, 3), [f'arm {n}' for n in range(12)])
    found = verdicts.differences(frame, 'arm 0')
    given = verdicts.verdicts(found, band=0.0, higher_is_better=False)
    wrong += given['arm 1'] in ('better', 'worse')
  assert wrong / 200 < 0.14


def test_two_arms_are_a_paired_t_test():
  values = table({'base': 0.0, 'other': 0.03}, seeds=6)
  p = stats.ttest_rel(values.loc['other'], values.loc['base']).pvalue
  assert verdicts.differences(values, 'base').loc['other', 'p'] == pytest.approx(p)


def test_other_seeds_are_compared_by_their_means():
  """Then the effect of the seeds does not cancel, and the interval is wider."""
  values = table({'base': 0.0, 'same': 0.0, 'third': 0.0}, noise=0.005)
  again = pd.DataFrame(2 + np.arange(5) / 100, range(10, 15), ['again']).T
  together = pd.concat([values, again])
  found = verdicts.differences(together, 'base')
  spread = verdicts.noise(together)
  assert spread.paired_df == 8  # the arm's own seeds tell nothing of the noise within a seed
  assert found.loc['again', 'difference'] == pytest.approx(
      2.02 - values.loc['base'].mean()
  )
  half = stats.t.ppf(0.95, 9) * np.sqrt(spread.total * 2 / 5)
  assert found.loc['again', 'high'] - found.loc['again', 'difference'] == pytest.approx(half)
  assert half > 2 * (found.loc['same', 'high'] - found.loc['same', 'difference'])


def test_missing_seeds():
  values = table(SHIFTS)
  values.loc['low', [3, 4]] = np.nan
  values.loc['high'] = np.nan
  found = verdicts.differences(values, 'base')
  shared = values.loc['low', [0, 1, 2]] - values.loc['base', [0, 1, 2]]
  assert found.loc['low', 'difference'] == pytest.approx(shared.mean())
  assert found.loc['high'].isna().all()


def test_one_seed_has_no_intervals():
  assert verdicts.differences(table(SHIFTS, seeds=1), 'base').isna().all(axis=None)


def test_holm():
  """The example of Holm (1979) as textbooks have it, and a loop over the definition."""
  p = pd.Series([0.01, 0.04, 0.03, 0.005], list('abcd'))
  assert verdicts.holm(p).to_dict() == pytest.approx({'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': 0.02})
  rng = np.random.default_rng(0)
  for _ in range(20):
    p = pd.Series(rng.uniform(0, 0.2, 12)).mask(rng.uniform(size=12) < 0.2)
    rejected, left = set(), p.dropna().sort_values()
    while len(left) and left.iloc[0] * len(left) < 0.1:
      rejected.add(left.index[0])
      left = left.iloc[1:]
    adjusted = verdicts.holm(p)
    assert set(adjusted[adjusted < 0.1].index) == rejected
    assert adjusted.isna().equals(p.isna())


def of(table, **options):
  return verdicts.verdicts(
      verdicts.differences(table, 'base'), **{'band': 0.02, 'higher_is_better': False} | options
  ).to_dict()


def test_verdicts():
  found = of(table(SHIFTS, noise=0.001))
  assert found == {
      'base': 'undecided', 'same': 'tie', 'low': 'better', 'high': 'worse', 'near': 'tie',
  }  # fmt: skip
  assert of(table(SHIFTS, noise=0.001), higher_is_better=True)['low'] == 'worse'
  # A clear difference that is smaller than the band is a tie, and a better arm without a band.
  assert of(table(SHIFTS, noise=0.001), band=0.0)['near'] == 'worse'
  noisy = of(table(SHIFTS, noise=0.2))
  assert set(noisy.values()) == {'undecided'}


def test_equal_arms_tie():
  values = pd.DataFrame(2.0, ['base', 'same'], [0, 1, 2])
  assert of(values)['same'] == 'tie'


def test_many_arms_need_clearer_differences():
  found = pd.DataFrame(
      {'difference': -0.1, 'low': -0.2, 'high': -0.001, 'p': 0.04}, [f'arm {n}' for n in range(5)]
  )
  options = {'band': 0.02, 'higher_is_better': False}
  assert set(verdicts.verdicts(found, **options)) == {'undecided'}
  alone = verdicts.verdicts(found, alone=['arm 2'], **options)
  assert alone['arm 2'] == 'better' and set(alone.drop('arm 2')) == {'undecided'}
  assert set(verdicts.verdicts(found.iloc[:2], **options)) == {'better'}
