"""Answers for larger sizes: they agree with themselves, and say when they are of no use."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth

from stability.analysis import results as results_lib
from stability.analysis.prediction import answers, observations, predict, rates, surface
from stability.analysis.prediction.targets import Target

SIZES = tuple(9216 * 4**i for i in range(5))  # 9.2K to 2.4M


def law(at_10k=0.4, power=-0.25):
  return lambda parameters: at_10k * (parameters / 1e4) ** power


def answer(results, curves, *targets, test=False):
  by_arm = observations.by_arm(results, curves)
  held_out = predict.hold_out(results, by_arm) if test else pd.DataFrame()
  fitted = surface.fit_arms(by_arm)
  return answers.answer(results, by_arm, held_out, targets or [Target(4e7)], fitted)


def bowls(seed=0, critical=None, **options):
  rng = np.random.default_rng(seed)
  return known_truth.bowls(rng, critical or law(), **{'sizes': SIZES} | options)


def with_logits(results, curves, log_logit):
  """The curves of a sweep with attention logits that are a function of size and learning rate."""
  rows = [
      {'run': run.run, 'step': step, results_lib.LOGIT: 10 ** log_logit(run) * step / 100}
      for run in results.runs.itertuples()
      for step in (20, 100)
  ]
  return pd.concat([curves, pd.DataFrame(rows)])


def together(*parts):
  """One sweep of several arms."""
  runs = pd.concat([results.runs for results, _ in parts], ignore_index=True)
  curves = pd.concat([curves for _, curves in parts])
  return dataclasses.replace(parts[0][0], runs=runs), curves


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('risk', [0.01, 0.05, 0.5])
def test_rates_and_probabilities_agree(seed, risk):
  """Logits that do not grow, as with qk-layernorm, do not make unstable learning rates safe."""
  results, curves = bowls(seed, law(0.5, -0.15))
  curves = with_logits(results, curves, lambda run: 1.0)
  (found,) = answer(results, curves, Target(1.9e7, risk))
  cells = found.cells
  assert (cells['probability'].diff().dropna() >= 0).all()
  is_safe = cells['learning_rate'] <= found.safe.value
  assert list(is_safe) == list(cells['probability'] <= risk)
  assert list(cells['learning_rate'] > found.critical.value) == list(cells['probability'] > 0.5)
  # Every size is unstable at a learning rate of 1.
  assert cells['probability'].iloc[-1] > 0.95
  assert found.best.value <= found.critical.value and found.safe.value <= found.critical.value
  for estimate in found.estimates.values():
    assert estimate.low <= estimate.value <= estimate.high
  assert found.recommended == min(found.best.value, found.safe.value)
  if risk == 0.5:
    assert found.safe.value == found.critical.value


def test_known_truth():
  (found,) = answer(*bowls(noise=0.002))
  critical = law()(4e7)
  assert found.usable and found.train_next is None
  assert found.critical.low < critical < found.critical.high
  assert found.critical.value == pytest.approx(critical, rel=0.2)
  assert found.best.value == pytest.approx(critical / 10**0.8, rel=0.3)
  assert found.times == pytest.approx(4e7 / SIZES[-1])
  assert found.attention_logit is None and found.gradient_rms is None
  assert found.cells['attention_logit'].isna().all()


def test_higher_risk_allows_a_higher_rate():
  results, curves = bowls()
  rates = [answer(results, curves, Target(4e7, risk))[0].safe.value for risk in (0.01, 0.1, 0.5)]
  assert rates == sorted(set(rates))


def test_safe_rate_allows_for_the_noise_of_a_run():
  """Averaging over seeds shows the law, but a single run has more noise."""
  options = {'noise': 0.06, 'sizes': [9216 * 2**i for i in range(8)]}
  results, curves = bowls(seeds=tuple(range(12)), **options)
  (found,) = answer(results, curves, Target(2e6))
  averaged = results.runs.groupby(['parameters', 'learning_rate'], as_index=False)['final_loss']
  runs = results.runs.drop_duplicates(['parameters', 'learning_rate']).reset_index(drop=True)
  runs['final_loss'] = averaged.mean()['final_loss']
  (of_average,) = answer(dataclasses.replace(results, runs=runs), curves, Target(2e6))
  # The best loss of a single seed is the lowest of several draws of noise, so it is lower.
  assert found.critical.value == pytest.approx(of_average.critical.value, rel=0.2)
  (of_arm,) = observations.by_arm(results, curves).values()
  noise = rates.CRITICAL_RATE.seed_noise(of_arm)
  width, narrow = (np.log10(x.critical.value / x.safe.value) for x in (found, of_average))
  assert width > 1.645 * noise and width > 1.2 * narrow


# Probes.


def test_attention_logit_is_that_of_the_recommended_rate():
  results, curves = bowls(noise=0.002)
  log_logit = lambda run: 2 + np.log10(run.learning_rate) + np.log10(run.parameters)  # noqa: E731
  (found,) = answer(results, with_logits(results, curves, log_logit))
  truth = 100 * found.recommended * 4e7
  assert found.attention_logit.estimate.value == pytest.approx(truth, rel=0.1)
  assert found.attention_logit.limit == 1e4
  assert set(found.cells['read_at_step']) == {100}  # the last step of training


def test_probes_outside_the_grid_are_those_of_its_end():
  results, curves = bowls(noise=0.002, rates=(3e-2, 1e-1, 3e-1, 1.0), critical=law(1.0))
  (found,) = answer(results, with_logits(results, curves, lambda run: np.log10(run.learning_rate)))
  assert found.recommended < 3e-2 == found.attention_logit.learning_rate
  assert found.attention_logit.estimate.value == pytest.approx(3e-2, rel=0.1)


def test_gradient_is_compared_with_eps():
  (found,) = answer(*known_truth.sweep(np.random.default_rng(0)))
  truth = known_truth.gradient_rms(4e7, found.recommended)
  assert found.gradient_rms.estimate.value == pytest.approx(truth, rel=0.5)
  assert found.gradient_rms.limit == known_truth.EPS


# Predictions of no use.


def test_two_sizes_are_too_few():
  (found,) = answer(*bowls(sizes=SIZES[:2]))
  assert not found.usable and found.insufficient == ('3 sizes are needed, there are 2',)
  assert found.recommended is None
  assert found.train_next == answers.TrainNext(147_456, (1e-3, 1.0))
  assert found.cells['probability'].isna().all()
  (near,) = answer(*bowls(sizes=SIZES[:2]), Target(1e5))
  assert near.train_next.parameters == 1e5  # not a larger size than the target


def test_nothing_is_unstable():
  (found,) = answer(*bowls(critical=law(100.0), headroom=3.0))
  assert found.insufficient == (
      'the critical learning rate lies within the grid at none of the sizes',
  )
  assert found.train_next.parameters is None
  assert found.train_next.learning_rates == pytest.approx((10 / 3, 100 / 9))
  assert found.best is not None and found.safe is found.critical is None


@pytest.mark.parametrize('sizes', [1, 2, 3])
def test_nothing_trains(sizes):
  """Lower rates come before larger sizes."""
  results, curves = bowls(sizes=SIZES[:sizes])
  results.runs['final_loss'] = np.nan
  results.runs['status'] = 'diverged'
  (found,) = answer(results, curves)
  assert found.critical is None and found.train_next.parameters is None
  assert found.train_next.learning_rates[1] < 1e-3


def test_largest_size_that_does_not_train_lowers_the_critical_rate():
  results, curves = bowls(noise=0.002)
  runs = results.runs.copy()
  runs.loc[runs['parameters'] == SIZES[-1], ['status', 'final_loss']] = ['diverged', np.nan]
  (found,) = answer(dataclasses.replace(results, runs=runs), curves, test=True)
  (before,) = answer(results, curves)
  assert found.critical.value < before.critical.value
  assert found.failed_test.censored == -1


def test_best_rate_is_below_the_grid():
  (found,) = answer(*bowls(critical=law(5e-3), headroom=1.5))
  assert found.insufficient == (  # of the critical one, only upper bounds are known
      'the critical learning rate lies within the grid at none of the sizes',
      'the best learning rate lies within the grid at none of the sizes',
  )
  assert found.train_next.learning_rates[1] < 1e-3
  assert found.safe is None and found.recommended is None


def test_two_shapes_of_one_size_are_one_size():
  """The critical rate is within the grid at two shapes, but these are equally large."""
  results, curves = bowls(critical=lambda n: 0.1 if n == SIZES[0] else 100.0, sizes=SIZES[:3])
  runs = results.runs.assign(**{'model.width': 32})
  wide = runs[runs['parameters'] == SIZES[0]].assign(**{'model.width': 64})
  runs = pd.concat([runs, wide], ignore_index=True)
  results = dataclasses.replace(results, runs=runs, sizes=['model.width'])
  (found,) = answer(results, curves)
  assert found.insufficient[0].endswith('lies within the grid at only one of the sizes')
  assert found.train_next.learning_rates == pytest.approx((10 / 3, 100 / 9))


def test_far_target_is_too_wide():
  (found,) = answer(*bowls(sizes=SIZES[:3]), Target(7e9))
  assert not found.usable and 'critical' in found.too_wide
  assert found.train_next.parameters == 589_824
  low, high = found.train_next.learning_rates
  assert low < law()(589_824) < high < 1.0


def test_near_target_needs_seeds(monkeypatch):
  monkeypatch.setattr(answers, 'MAX_DECADES', 0.2)
  (found,) = answer(*bowls(3, sizes=SIZES[:3], noise=0.3), Target(2e5))
  assert found.too_wide and found.train_next == answers.TrainNext(None, None)


def test_missed_size():
  """The largest size has a 30 times lower critical rate than the smaller ones suggest."""
  broken = lambda parameters: law()(parameters) / (30 if parameters == SIZES[-1] else 1)  # noqa: E731
  (found,) = answer(*bowls(critical=broken, noise=0.002), test=True)
  assert not found.usable and found.failed_test.parameters == SIZES[-1]
  assert found.failed_test.measured == pytest.approx(broken(SIZES[-1]), rel=0.3)
  assert found.failed_test.measured < found.failed_test.predicted.low
  assert not any(found.is_reliable(name) for name in found.estimates)
  (kept,) = answer(*bowls(noise=0.002), test=True)
  assert kept.failed_test is None


@pytest.mark.parametrize('tail', [0.02, 0.01])
def test_arms_are_tested_together(tail):
  """Outside the 90 % interval by little, an arm by itself is missed, but not one of four."""
  made = [bowls(sizes=SIZES[:3], fields={'arm': name}) for name in 'abcd']
  row = {'predictor': rates.CRITICAL_OF_ALL, 'parameters': SIZES[-1], 'value': 0.1, 'low': 0.05,
         'high': 0.2, 'beyond': 0}  # fmt: skip
  rows = [row | {'arm': name, 'measured': 0.15, 'tail': 0.2} for name in 'abcd']
  rows[1] |= {'measured': 0.21, 'tail': tail}
  for count in (4, 2):
    results, curves = together(*made[:count])
    by_arm = observations.by_arm(results, curves)
    held_out = pd.DataFrame(rows[:count] * 2)  # two runs of each
    found = answers.answer(results, by_arm, held_out, [Target(4e5)], surface.fit_arms(by_arm))
    assert [each.failed_test is not None for each in found] == [
        each.arm == ('b',) and tail < 0.05 / count for each in found
    ]


def test_every_shape_of_the_largest_size_is_tested():
  """Only the second of two equally large shapes has a critical rate that was not predicted."""
  broken = bowls(critical=lambda n: law()(n) / (30 if n == SIZES[-1] else 1), noise=0.002)[0].runs
  results, curves = bowls(noise=0.002)
  shapes = [(results.runs, 32), (broken[broken['parameters'] == SIZES[-1]], 64)]
  runs = [part.assign(**{'model.width': width, 'run': part['run'] + f', {width}'})
          for part, width in shapes]  # fmt: skip
  results = dataclasses.replace(
      results, runs=pd.concat(runs, ignore_index=True), sizes=['model.width']
  )
  (found,) = answer(results, curves, test=True)
  assert found.failed_test.measured == pytest.approx(law()(SIZES[-1]) / 30, rel=0.3)
