"""Predictions on made-up sweeps whose laws are known, and scores worked out by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth

from stability.analysis.prediction import observations, predict, predictors
from stability.analysis.results import LOGIT

LARGEST = known_truth.SIZES[-1]


def sweep(seed=0, **options):
  """Results and observations by intervention."""
  results, curves = known_truth.sweep(np.random.default_rng(seed), **options)
  return results, observations.of(results, curves)


def only(seen):
  (of_one,) = seen.values()
  return of_one


def of(table, predictor):
  return table[table['predictor'] == predictor].reset_index(drop=True)


def changed(results, curves, size, factor):
  """The sweep with other losses and logits at a size."""
  runs, curves = results.runs.copy(), curves.copy()
  at = runs['parameters'] == size
  runs.loc[at, 'final_loss'] *= factor
  curves.loc[curves['run'].isin(runs['run'][at]), LOGIT] *= factor
  return dataclasses.replace(results, runs=runs), curves


@pytest.fixture(scope='module')
def made():
  return known_truth.sweep(np.random.default_rng(0))


@pytest.fixture(scope='module')
def held_out(made):
  results, curves = made
  return predict.hold_out(results, observations.of(results, curves))


# What is read from the runs.


def test_critical_rate_is_where_the_loss_passes_the_margin():
  runs = pd.DataFrame({'rate': [-3.0, -2.0, -1.0, 0.0], 'excess': [-0.4, -0.1, 0.3, 0.9]})
  runs['unstable'] = runs['excess'] > 0
  value, beyond = observations.critical_rate(runs)
  assert (value, beyond) == (pytest.approx(-2 + 0.25), 0)
  assert observations.critical_rate(runs.iloc[:2]) == (-2.0, 1)  # never: above the grid
  assert observations.critical_rate(runs.iloc[2:]) == (-1.0, -1)  # at once: below it
  runs.loc[1, 'excess'] = 0.2  # too high, but no higher a rate than another intervention's best
  assert observations.critical_rate(runs) == (-1.5, 0)


def test_each_seed_has_its_own_critical_rate():
  laws = (0.4, 0.1)  # of seed 0 and of seed 1
  made = [
      known_truth.sweep(np.random.default_rng(0), seeds=(seed,), at_10k=at_10k)
      for seed, at_10k in enumerate(laws)
  ]
  runs = pd.concat([results.runs for results, _ in made], ignore_index=True)
  curves = pd.concat([curves for _, curves in made])
  runs = only(observations.of(dataclasses.replace(made[0][0], runs=runs), curves)).runs
  for seed, at_10k in enumerate(laws):
    of_seed = runs[runs['seed'] == seed]
    truth = np.log10(known_truth.critical_rate(of_seed['parameters'], at_10k=at_10k))
    np.testing.assert_allclose(of_seed['critical'], truth, atol=0.25)


def test_readings_are_the_highest_so_far_and_outlive_their_run():
  results, curves = known_truth.sweep(np.random.default_rng(0), sizes=(9216,), rates=(0.1, 0.3))
  first, second = results.runs['run']
  curves = curves[(curves['run'] != second) | (curves['step'] <= 60)]
  curves.loc[(curves['run'] == first) & (curves['step'] == 40), LOGIT] = 1e9
  curves.loc[(curves['run'] == first) & (curves['step'] == 60), LOGIT] = np.nan
  seen = only(observations.of(results, curves))
  highest = seen.highest[LOGIT].set_axis(results.runs['run'])
  assert list(highest.columns) == list(known_truth.STEPS)
  np.testing.assert_allclose(highest.loc[first, 40:], 9)
  assert highest.loc[second, 100] == highest.loc[second, 60]
  assert seen.steps(LOGIT) == list(known_truth.STEPS)


# What is predicted.


def test_the_laws_are_recovered(made, held_out):
  seen = only(observations.of(*made))
  fitted, largest = (seen.only(kept) for kept in _split(seen))
  for step in (40, 80):
    logit = dataclasses.replace(predictors.LOGIT, step=step)
    said = logit.forecast(fitted, largest.runs).cells
    truth = [known_truth.log_logit(LARGEST, rate, step) for rate in known_truth.RATES]
    assert (said['value'] - truth).abs().median() < 0.2
    assert ((said['low'] < truth) & (truth < said['high'])).sum() >= 6
  critical = of(held_out, 'critical learning rate').iloc[0]
  truth = known_truth.critical_rate(LARGEST)
  assert critical['low'] < truth < critical['high']
  assert critical['value'] == pytest.approx(truth, rel=0.5)
  gradients = of(held_out, 'gradient RMS')
  truth = known_truth.gradient_rms(LARGEST, gradients['learning_rate'])
  np.testing.assert_allclose(gradients['value'], truth, rtol=0.4)
  assert (gradients['probability'] == 0).all()


def test_gradients_below_eps_are_foretold_and_told(made):
  results, curves = made
  eps = 3.3e-6  # between the gradients of the largest size at 0.03 and at 0.1
  results = dataclasses.replace(results, runs=results.runs.assign(**{'optimizer.eps': eps}))
  seen = only(observations.of(results, curves))
  fitted, largest = (seen.only(kept) for kept in _split(seen))
  below = list(largest.runs['learning_rate'] > 0.05)
  by_gradient = predictors.ByGradient()
  said = by_gradient.forecast(fitted, largest.runs).cells
  assert list(said['probability'] > 0.5) == list(by_gradient.happened(largest)) == below


def test_what_predictions_must_beat_is_of_the_sizes_at_hand(made, held_out):
  seen = only(observations.of(*made))
  fitted, largest = (seen.only(kept).runs['unstable'] for kept in _split(seen))
  targets = observations.targets([2e6], known_truth.RATES)
  said = predictors.AsBefore().forecast(seen, targets).cells
  assert list(said['probability']) == list(largest)
  base_rate = of(held_out, predictors.AsBefore.name)['base_rate']
  assert (base_rate == fitted.mean()).all() and fitted.mean() < largest.mean()


def test_a_mean_is_that_of_its_parts(held_out):
  logit, critical, mean = (
      of(held_out, name)['probability']
      for name in ('attention logit', 'critical learning rate', 'mean of 2 predictors')
  )
  np.testing.assert_allclose(mean, (logit + critical) / 2)


def test_the_best_has_the_least_errors(made):
  class Contrary(predictors.AsBefore):
    def forecast(self, seen, targets, quick=False):
      said = super().forecast(seen, targets, quick)
      return dataclasses.replace(
          said, cells=said.cells.assign(probability=1 - said.cells['probability'])
      )

  seen = only(observations.of(*made))
  assert predictors.best([Contrary(), predictors.AsBefore()], seen) == predictors.AsBefore()


def test_predictions_are_right_and_beat_the_paper(held_out):
  scores = predict.score([held_out]).set_index('predictor')
  for name in (predict.CHOSEN, 'attention logit', 'critical learning rate'):
    assert scores.loc[name, 'accuracy'] == 1
    assert scores.loc[name, 'brier'] < 0.1 < scores.loc[name, 'paper_brier']
    assert scores.loc[name, 'brier'] < scores.loc[name, 'base_brier']


def test_intervals_hold_the_truth_over_many_sweeps():
  held = {'attention logit': [], 'critical learning rate': []}
  for seed in range(12):
    _, seen = sweep(seed, noise=0.1)
    fitted, largest = (only(seen).only(kept) for kept in _split(only(seen)))
    for predictor in (dataclasses.replace(predictors.LOGIT, step=80), predictors.ByCriticalRate()):
      said = predictor.forecast(fitted, largest.runs).cells
      measured = predictor.measured(largest)['value']
      held[predictor.name].append(((said['low'] <= measured) & (measured <= said['high'])).mean())
  assert 0.78 <= np.mean(held['attention logit']) <= 1
  assert 0.65 <= np.mean(held['critical learning rate']) <= 1  # 12 of them


def _split(seen):
  parameters = seen.runs['parameters']
  return parameters < LARGEST, parameters == LARGEST


def test_the_size_held_out_and_those_near_it_are_not_looked_at(made):
  results, curves = known_truth.sweep(
      np.random.default_rng(0), sizes=(*known_truth.SIZES[:-1], 331_776, LARGEST)
  )
  before = predict.hold_out(results, observations.of(results, curves))
  for size in (331_776, LARGEST):
    other = changed(results, curves, size, 1.5)
    after = predict.hold_out(other[0], observations.of(*other))
    said = ['predictor', 'chosen', 'learning_rate', 'probability', 'value', 'low', 'high', 'note']
    pd.testing.assert_frame_equal(before[said], after[said])
    assert (size == LARGEST) == (not before['measured'].equals(after['measured']))


def test_a_size_that_breaks_the_law_makes_every_predictor_wrong(made):
  """Forty times as prone to instability as the smaller ones say."""
  results, curves = made
  other, _ = known_truth.sweep(np.random.default_rng(0), at_10k=0.01)
  largest = results.runs['parameters'] == LARGEST
  runs = results.runs.copy()
  runs.loc[largest, 'final_loss'] = other.runs.loc[largest, 'final_loss']
  at_largest = curves['run'].isin(runs['run'][largest])
  curves = curves.assign(**{LOGIT: curves[LOGIT].where(~at_largest, 30 * curves[LOGIT])})
  results = dataclasses.replace(results, runs=runs)
  held_out = predict.hold_out(results, observations.of(results, curves))
  scores = predict.score([held_out]).set_index('predictor')
  for name in (predict.CHOSEN, 'attention logit', 'critical learning rate', "paper's fit"):
    assert scores.loc[name, 'accuracy'] < 0.8, name
    assert scores.loc[name, 'brier'] > 0.15, name
  assert scores.loc['attention logit', 'coverage'] < 0.5
  assert scores.loc['critical learning rate', 'coverage'] == 0


def test_the_papers_fit_is_a_quadratic_at_each_rate(made):
  seen = only(observations.of(*made))
  targets = observations.targets([2e6], seen.learning_rates)
  said = predictors.Paper().forecast(seen, targets).cells
  for rate, value, probability in zip(
      said['learning_rate'], said['value'], said['probability'], strict=True
  ):
    runs = seen.runs[seen.runs['learning_rate'] == rate]
    logits = seen.highest[LOGIT].loc[runs.index, 40]  # the end of the warm-up
    expected = np.polyval(np.polyfit(runs['size'], logits, 2), np.log10(2e6))
    assert value == pytest.approx(expected, abs=1e-6)
    assert probability == (expected > 4)
  assert said[['low', 'high']].isna().all(axis=None)


def test_the_step_to_read_at_is_one_that_tells():
  results, curves = known_truth.sweep(np.random.default_rng(0))
  noise = 10 ** np.random.default_rng(1).normal(0, 0.5, len(curves))
  curves[LOGIT] = np.where(curves['step'] < 80, noise, curves[LOGIT].where(curves['step'] == 80))
  seen = only(observations.of(results, curves))
  assert predictors.LOGIT.settle(seen).step in (80, 100)


def test_interventions_are_handled_by_themselves():
  results, curves = known_truth.sweep(np.random.default_rng(0), interventions=('none', 'l2'))
  before = predict.predict(results, observations.of(results, curves), [2e6])
  of_l2 = curves['run'].str.startswith('l2')
  curves = curves.assign(**{LOGIT: curves[LOGIT].where(~of_l2, curves[LOGIT] ** 2)})
  after = predict.predict(results, observations.of(results, curves), [2e6])
  same = {
      qk_norm: before[before['model.qk_norm'] == qk_norm].equals(rows)
      for qk_norm, rows in after.groupby('model.qk_norm')
  }
  assert same == {'none': True, 'l2': False}


def test_sharpness_is_a_predictor_where_it_was_measured(made):
  results, curves = made
  curves = curves.assign(**{observations.CRITICAL: curves[LOGIT] / 1e4})
  scores = predict.score([predict.hold_out(results, observations.of(results, curves))])
  scores = scores.set_index('predictor')
  assert scores.loc['critical sharpness', 'accuracy'] == 1
  assert scores.loc['preconditioned sharpness', 'runs'] == 0


def test_targets_and_distances(made):
  results, curves = made
  said = predict.predict(results, observations.of(results, curves), [2e6, 3e7])
  said = said.dropna(subset='parameters')
  assert set(said['parameters']) == {2e6, 3e7}
  np.testing.assert_allclose(said['times'], said['parameters'] / LARGEST)
  chosen = said[said['chosen']]
  assert len(chosen) == 14 and chosen['predictor'].nunique() == 1
  near, far = of(said, 'critical learning rate').drop_duplicates('parameters').itertuples()
  assert near.value > far.value
  assert near.high / near.low < far.high / far.low


# Too little to go by.


def reasons(said):
  return said[said['parameters'].isna()].set_index('predictor')['note']


def test_two_sizes_are_too_few():
  results, seen = sweep(sizes=known_truth.SIZES[:2])
  said = predict.predict(results, seen, [2e6])
  assert set(reasons(said)) == {'3 sizes are needed, there are 2'}
  assert len(said) == len(reasons(said)) and not said['chosen'].any()
  assert predict.hold_out(results, seen).empty
  assert predict.score([predict.hold_out(results, seen)]).empty


def test_no_critical_rate_is_made_up_where_all_is_stable():
  results, seen = sweep(at_10k=100.0)
  assert not only(seen).runs['unstable'].any()
  said = predict.predict(results, seen, [2e6])
  assert reasons(said)['critical learning rate'] == (
      'the sweep shows where instability begins at none of its sizes'
  )
  logits = of(said, 'attention logit')
  assert logits['note'].str.endswith('no run was unstable: against 10000').all()
  assert logits['note'].str.startswith('read at step 100').all()
  passed = [known_truth.log_logit(2e6, rate) > 4 for rate in known_truth.RATES]
  assert list(logits['probability'] > 0.5) == passed and any(passed)


def test_runs_that_do_not_count_are_passed_over():
  results, curves = known_truth.sweep(np.random.default_rng(0))
  runs = results.runs.copy()
  runs.loc[3, ['status', 'final_loss']] = ['failed', np.nan]
  seen = only(observations.of(dataclasses.replace(results, runs=runs), curves))
  assert 3 not in seen.runs.index and len(seen.runs) == len(runs) - 1


# Scores.


def test_scores_by_hand():
  table = pd.DataFrame({
      'predictor': ['mine'] * 5 + [predictors.Paper.name] * 5,
      'chosen': [True] * 5 + [False] * 5,
      'event': 'unstable',
      'parameters': 1.0,
      'seed': 0,
      'quantity': ['attention logit'] * 5 + [''] * 5,
      'run': ['a', 'b', 'c', 'd', 'e'] * 2,
      'probability': [0.1, 0.4, 0.9, 0.6, 0.0, 0.0, 0.0, 1.0, np.nan, np.nan],
      'happened': [False, True, True, True, False] * 2,
      'base_rate': 0.5,
      'value': [10.0] * 5 + [np.nan] * 5,
      'low': [5.0, 11.0, 5.0, 5.0, 5.0] + [np.nan] * 5,
      'high': [20.0, 20.0, 8.0, 8.0, 8.0] + [np.nan] * 5,
      'measured': [10.0, 10.1, 10.2, 4.0, 9.0] * 2,
      'beyond': [0, 0, 0, 1, -1] * 2,
  })
  scores = predict.score([table, table]).set_index('predictor')
  mine = scores.loc['mine']
  assert (mine['runs'], mine['accuracy']) == (10, 0.8)
  assert mine['brier'] == pytest.approx((0.1**2 + 0.6**2 + 0.1**2 + 0.4**2) / 5)
  assert mine['base_brier'] == 0.25
  # The first interval holds it, the second is above, the third below; what is only known to be
  # more than 4, or less than 9, may lie within 5 to 8.
  assert (mine['numbers'], mine['intervals'], mine['coverage']) == (10, 10, 0.6)
  assert mine['miss'] == pytest.approx(np.log10(1.01))
  paper = scores.loc[predictors.Paper.name]
  assert (paper['runs'], paper['brier']) == (6, pytest.approx(1 / 3))
  pd.testing.assert_series_equal(mine, scores.loc[predict.CHOSEN], check_names=False)


def test_a_critical_rate_counts_once(held_out):
  scores = predict.score([held_out, held_out]).set_index('predictor')
  assert scores.loc['critical learning rate', 'intervals'] == 2
  assert scores.loc['critical learning rate', 'runs'] == 14
