"""Predictions on synthetic sweeps with known laws, and scores worked out by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth

from stability.analysis.prediction import observations as observations_lib
from stability.analysis.prediction import predict, predictors, rates, surface
from stability.analysis.prediction.predictor import (
    Forecast,
    InsufficientData,
    forecast_table,
    tail_share,
)
from stability.analysis.results import LOGIT

LARGEST = known_truth.SIZES[-1]


def sweep(seed=0, **options):
  """The results of a sweep, and its observations by intervention."""
  results, curves = known_truth.sweep(np.random.default_rng(seed), **options)
  return results, observations_lib.by_arm(results, curves)


def observe(results, curves):
  """The observations of a sweep with a single intervention."""
  (observations,) = observations_lib.by_arm(results, curves).values()
  return observations


def split(observations):
  """The smaller sizes, and the largest."""
  parameters = observations.runs['parameters']
  return observations.select(parameters < LARGEST), observations.select(parameters == LARGEST)


def hold_out(results, curves):
  return predict.hold_out(results, observations_lib.by_arm(results, curves))


def forecast(results, observations, sizes):
  return predict.predict(results, observations, sizes, surface.fit_arms(observations))


def rows_of(table, predictor):
  return table[table['predictor'] == predictor].reset_index(drop=True)


def scale_losses(results, curves, size, factor):
  """The sweep with the losses and logits of one size multiplied."""
  runs, curves = results.runs.copy(), curves.copy()
  at_size = runs['parameters'] == size
  runs.loc[at_size, 'final_loss'] *= factor
  curves.loc[curves['run'].isin(runs['run'][at_size]), LOGIT] *= factor
  return dataclasses.replace(results, runs=runs), curves


@pytest.fixture(scope='module')
def made():
  return known_truth.sweep(np.random.default_rng(0))


@pytest.fixture(scope='module')
def held_out(made):
  return hold_out(*made)


# Observations.


def test_critical_rate_is_that_of_the_arm():
  """An arm with a worse best loss is compared with itself."""
  results, curves = known_truth.sweep(np.random.default_rng(0), interventions=('none', 'l2'))
  is_l2 = results.runs['model.qk_norm'] == 'l2'
  alone = dataclasses.replace(results, runs=results.runs[is_l2])
  runs = results.runs.copy()
  runs.loc[~is_l2, 'final_loss'] -= 0.5
  runs.loc[~is_l2, 'initial_loss'] -= 0.5
  both = observations_lib.by_arm(dataclasses.replace(results, runs=runs), curves)
  columns = ['run', 'log_critical', 'critical_censored', 'log_best', 'best_censored']
  pd.testing.assert_frame_equal(
      both[('l2',)].runs[columns], observe(alone, curves).runs[columns]
  )


def test_further_seeds_at_a_rate_leave_the_curve_as_it_is():
  """launch.next adds them near the critical rate; their losses are higher at all rates."""
  results, curves = known_truth.sweep(np.random.default_rng(0), noise=0.0)
  rates_L = np.sort(results.runs['learning_rate'].unique())
  more = results.runs[results.runs['learning_rate'] == rates_L[len(rates_L) // 2]]
  more = more.assign(seed=7, run=more['run'] + ', seed=7', final_loss=more['final_loss'] + 0.1)
  both = dataclasses.replace(results, runs=pd.concat([results.runs, more], ignore_index=True))
  columns = ['log_critical', 'critical_censored', 'log_best', 'best_censored']
  found, alone = (observe(each, curves).curves[columns] for each in (both, results))
  pd.testing.assert_frame_equal(found, alone)


def test_a_further_seed_that_is_unstable_moves_its_own_rate_alone():
  """launch.next adds some near the critical rate."""
  results, curves = known_truth.sweep(np.random.default_rng(0), noise=0.0)
  runs = results.runs
  *_, second, highest = np.sort(runs['learning_rate'].unique())
  more = runs[runs['learning_rate'] >= second]
  more = more.assign(seed=7, run=more['run'] + ', seed=7')
  more.loc[more['learning_rate'] == highest, 'final_loss'] += 2.0
  both = dataclasses.replace(results, runs=pd.concat([runs, more], ignore_index=True))
  columns = ['log_critical', 'critical_censored', 'log_best', 'best_censored']
  found, alone = (observe(each, curves).curves[columns] for each in (both, results))
  below = alone['log_critical'] < np.log10(second)
  assert below.sum() >= 3
  pd.testing.assert_frame_equal(found[below], alone[below])


def test_size_with_one_rate_has_no_rates():
  """Its loss says neither that the critical rate is above nor that the best one is below."""
  results, curves = known_truth.sweep(np.random.default_rng(0))
  runs = results.runs
  largest = runs['parameters'] == runs['parameters'].max()
  alone = runs[~largest | (runs['learning_rate'] == runs['learning_rate'].max())]
  found = observe(dataclasses.replace(results, runs=alone), curves).curves
  of_largest = found[found['parameters'] == runs['parameters'].max()]
  columns = ['log_critical', 'critical_censored', 'log_best', 'best_censored']
  assert of_largest[columns].isna().all(axis=None) and len(of_largest) == 1
  assert found[columns].notna().any(axis=None)


def test_size_at_which_no_rate_trains_has_no_best_rate():
  """It is neither fitted, as if it were not there, nor scored; its critical rate is a bound."""
  results, curves = known_truth.bowls(np.random.default_rng(0), known_truth.critical_rate)
  runs, sizes = results.runs, known_truth.SIZES
  learned = runs['final_loss'].where(runs['parameters'] != sizes[1], runs['initial_loss'] + 0.1)
  found = observe(dataclasses.replace(results, runs=runs.assign(final_loss=learned)), curves)
  of_size = found.curves[found.curves['parameters'] == sizes[1]]
  assert of_size[['log_best', 'best_censored']].isna().all(axis=None) and len(of_size) == 1
  assert (of_size['critical_censored'] == -1).all()
  others = found.select(found.runs['parameters'] != sizes[1])
  cells = observations_lib.cells([LARGEST * 4], found.learning_rates)
  forecasts = [rates.BEST_RATE.forecast(each, cells).cells for each in (found, others)]
  pd.testing.assert_frame_equal(*forecasts, check_exact=True)
  assert forecasts[0]['value'].notna().all()
  measured = rates.BEST_RATE.measure(found)['value']
  assert (measured.isna() == (found.runs['parameters'] == sizes[1])).all()


def test_size_with_one_rate_is_not_fitted():
  results, curves = known_truth.bowls(np.random.default_rng(0), known_truth.critical_rate)
  runs, sizes = results.runs, known_truth.SIZES
  is_left = (runs['parameters'] != sizes[1]) | (runs['learning_rate'] == known_truth.RATES[2])
  found = observe(dataclasses.replace(results, runs=runs[is_left]), curves)
  others = found.select(found.runs['parameters'] != sizes[1])
  cells = observations_lib.cells([LARGEST * 4], known_truth.RATES)
  for rate in rates.RATES:
    forecasts = [rate.forecast(each, cells).cells for each in (found, others)]
    pd.testing.assert_frame_equal(*forecasts, check_exact=True)
    assert forecasts[0]['value'].notna().all()


def test_curve_of_a_size_averages_its_seeds():
  levels = (0.4, 0.1)  # critical rates of seed 0 and of seed 1 at 10K
  made = [
      known_truth.sweep(np.random.default_rng(0), seeds=(seed,), at_10k=at_10k, noise=0.0)
      for seed, at_10k in enumerate(levels)
  ]
  runs = pd.concat([results.runs for results, _ in made], ignore_index=True)
  curves = pd.concat([curves for _, curves in made])
  observations = observe(dataclasses.replace(made[0][0], runs=runs), curves)
  of_curves = observations.curves
  assert len(of_curves) == len(known_truth.SIZES)
  for row in of_curves.itertuples():
    low, high = (known_truth.critical_rate(row.parameters, at_10k=level) for level in levels[::-1])
    assert np.log10(low) < row.log_critical < np.log10(high)
    assert row.critical_spread == pytest.approx(np.log10(high / low) / np.sqrt(2), abs=0.15)
  # Of the variance of a run, averaging two seeds has removed a half.
  assert rates.CRITICAL_RATE.seed_noise(observations) == pytest.approx(
      np.sqrt((of_curves['critical_spread'] ** 2).mean() / 2)
  )
  assert rates.CRITICAL_RATE.seed_noise(observe(*made[0])) == 0


def test_running_max_continues_after_a_run_ends():
  results, curves = known_truth.sweep(np.random.default_rng(0), sizes=(9216,), rates=(0.1, 0.3))
  first, second = results.runs['run']
  curves = curves[(curves['run'] != second) | (curves['step'] <= 60)]
  curves.loc[(curves['run'] == first) & (curves['step'] == 40), LOGIT] = 1e9
  curves.loc[(curves['run'] == first) & (curves['step'] == 60), LOGIT] = np.nan
  observations = observe(results, curves)
  running_max = observations.running_max[LOGIT].set_axis(results.runs['run'])
  assert list(running_max.columns) == list(known_truth.STEPS)
  np.testing.assert_allclose(running_max.loc[first, 40:], 9)
  assert running_max.loc[second, 100] == running_max.loc[second, 60]
  assert observations.probe_steps(LOGIT) == list(known_truth.STEPS)


# Predictions.


def test_known_laws_are_recovered(made, held_out):
  fitted, largest = split(observe(*made))
  for step in (40, 80):
    logit = dataclasses.replace(predictors.ATTENTION_LOGIT, step=step)
    forecast = logit.forecast(fitted, largest.runs).cells
    truth = [known_truth.log_logit(LARGEST, rate, step) for rate in known_truth.RATES]
    assert (forecast['value'] - truth).abs().median() < 0.2
    assert ((forecast['low'] < truth) & (truth < forecast['high'])).sum() >= 6
  critical = rows_of(held_out, 'critical learning rate').iloc[0]
  truth = known_truth.critical_rate(LARGEST)
  assert critical['low'] < truth < critical['high']
  assert critical['value'] == pytest.approx(truth, rel=0.5)
  gradients = rows_of(held_out, 'gradient RMS')
  truth = known_truth.gradient_rms(LARGEST, gradients['learning_rate'])
  np.testing.assert_allclose(gradients['value'], truth, rtol=0.4)
  assert (gradients['probability'] == 0).all()


def test_gradients_below_eps(made):
  results, curves = made
  eps = 3.3e-6  # between the gradients of the largest size at 0.03 and at 0.1
  results = dataclasses.replace(results, runs=results.runs.assign(**{'optimizer.eps': eps}))
  fitted, largest = split(observe(results, curves))
  below = list(largest.runs['learning_rate'] > 0.05)
  predictor = predictors.GradientPredictor()
  forecast = predictor.forecast(fitted, largest.runs).cells
  assert list(forecast['probability'] > 0.5) == list(predictor.outcome(largest)) == below


def test_baselines_use_the_observed_sizes(made, held_out):
  observations = observe(*made)
  fitted, largest = (part.runs['unstable'] for part in split(observations))
  cells = observations_lib.cells([2e6], known_truth.RATES)
  forecast = predictors.LargestSizePredictor().forecast(observations, cells).cells
  assert list(forecast['probability']) == list(largest)
  base_rate = rows_of(held_out, predictors.LargestSizePredictor.name)['base_rate']
  assert (base_rate == fitted.mean()).all() and fitted.mean() < largest.mean()


def test_mean_predictor(held_out):
  logit, critical, mean = (
      rows_of(held_out, name)['probability']
      for name in ('attention logit', 'critical learning rate', 'mean of 2 predictors')
  )
  np.testing.assert_allclose(mean, (logit + critical) / 2)


def test_best_predictor_has_the_lowest_error(made):
  class Inverted(predictors.LargestSizePredictor):
    def forecast(self, observations, cells, quick=False):
      forecast = super().forecast(observations, cells, quick)
      inverted = forecast.cells.assign(probability=1 - forecast.cells['probability'])
      return dataclasses.replace(forecast, cells=inverted)

  plain = predictors.LargestSizePredictor()
  assert predictors.best_predictor([Inverted(), plain], observe(*made)) == plain


def test_tails():
  """Of a value that is only bounded, no draw counts that may be on its side."""
  draws = np.tile(np.arange(10.0)[:, None], 6)
  measured = pd.DataFrame({
      'value': [0.5, 8.5, 0.5, 8.5, 4.2, np.nan], 'censored': [0, 0, 1, -1, 0, 0]
  })
  assert tail_share(draws, measured)[:5] == pytest.approx([0.1, 0.1, 0.9, 0.9, 0.5])
  assert np.isnan(tail_share(draws, measured)[5])


def test_tails_of_held_out_sizes_are_those_of_intervals(held_out):
  rows = held_out.dropna(subset='tail')
  assert set(rows['predictor']) == {rates.CRITICAL_OF_ALL, 'best learning rate (all arms)'}
  is_below = (rows['measured'] < rows['low']) & (rows['beyond'] != 1)
  is_above = (rows['measured'] > rows['high']) & (rows['beyond'] != -1)
  assert list(rows['tail'] < 0.05) == list(is_below | is_above)
  assert rows['tail'].between(0, 1).all()


def test_best_predictor_is_compared_on_the_same_sizes(made):
  """One predicts only the largest size, the hardest one, and that better than the other does."""

  class Of(predictors.Predictor):
    name, quantity = 'made up', ''

    def __init__(self, error, without):
      self.error, self.without = error, without

    def forecast(self, observations, cells, quick=False):
      size = cells['parameters'].iloc[0]
      if size in self.without:
        raise InsufficientData('no')
      probability = np.abs(cells['unstable'].astype(float) - self.error[int(size == LARGEST)])
      return Forecast(forecast_table(cells, probability, np.nan, np.nan, np.nan), '')

  observations = observe(*made)
  *_, easy, _ = observations.sizes
  steady, of_largest = Of((0.2, 0.3), ()), Of((0.2, 0.25), set(observations.sizes) - {LARGEST})
  assert predictors.best_predictor([steady, of_largest], observations) is of_largest
  nothing = Of((0.0, 0.0), set(observations.sizes))
  assert predictors.best_predictor([nothing, steady], observations) is steady
  assert predictors.best_predictor([nothing], observations) is None
  # Without a size in common, the one with the fewest sizes is left out.
  apart, others = Of((0.2, 0.5), set(observations.sizes) - {easy}), Of((0.3, 0.3), {easy})
  assert predictors.best_predictor([apart, others], observations) is others


def test_predictions_beat_the_paper(held_out):
  scores = predict.score([held_out]).set_index('predictor')
  for name in (predict.CHOSEN, 'attention logit', 'critical learning rate'):
    assert scores.loc[name, 'accuracy'] == 1
    assert scores.loc[name, 'brier'] < 0.1 < scores.loc[name, 'paper_brier']
    assert scores.loc[name, 'brier'] < scores.loc[name, 'base_brier']


def test_brier_scores_are_of_the_same_runs(held_out):
  """Without the paper's fit of some runs, its score is not comparable."""
  lacking = held_out.copy()
  is_paper = lacking['predictor'] == predictors.PaperFit.name
  lacking.loc[lacking.index[is_paper][:1], 'probability'] = np.nan
  scores = predict.score([lacking]).set_index('predictor')
  assert np.isnan(scores.loc['critical learning rate', 'paper_brier'])


def test_interval_coverage_over_many_sweeps():
  coverage = {'attention logit': [], 'critical learning rate': []}
  logit = dataclasses.replace(predictors.ATTENTION_LOGIT, step=80)
  for seed in range(12):
    made = known_truth.sweep(np.random.default_rng(seed), noise=0.1)
    fitted, largest = split(observe(*made))
    for predictor in (logit, rates.CRITICAL_RATE):
      forecast = predictor.forecast(fitted, largest.runs).cells
      measured = predictor.measure(largest)['value']
      covered = (forecast['low'] <= measured) & (measured <= forecast['high'])
      coverage[predictor.name].append(covered.mean())
  assert 0.78 <= np.mean(coverage['attention logit']) <= 1
  assert 0.65 <= np.mean(coverage['critical learning rate']) <= 1  # 12 intervals only


def test_sizes_with_one_learning_rate_predict_nothing(made):
  """Whether each is of one run, or of runs that no seed can compare."""
  results, curves = made
  is_small = results.runs['parameters'] < LARGEST
  one = results.runs[~is_small | (results.runs['learning_rate'] == 1e-2)]
  assert hold_out(dataclasses.replace(results, runs=one), curves).empty
  two = results.runs[~is_small | results.runs['learning_rate'].isin([1e-3, 1e-2])]
  seeds = two['seed'].where(two['learning_rate'] != 1e-3, 1)
  found = hold_out(dataclasses.replace(results, runs=two.assign(seed=seeds)), curves)
  assert found['probability'].dropna().between(0, 1).all() and len(found)


def test_held_out_size_and_its_neighbours_are_not_fitted(made):
  results, curves = known_truth.sweep(
      np.random.default_rng(0), sizes=(*known_truth.SIZES[:-1], 331_776, LARGEST)
  )
  before = hold_out(results, curves)
  columns = ['predictor', 'chosen', 'learning_rate', 'probability', 'value', 'low', 'high', 'note']
  for size in (331_776, LARGEST):
    after = hold_out(*scale_losses(results, curves, size, 1.5))
    pd.testing.assert_frame_equal(before[columns], after[columns])
    assert (size == LARGEST) == (not before['measured'].equals(after['measured']))


def test_size_that_breaks_the_law_is_scored_as_wrong(made):
  """The largest size has a 40 times lower critical rate than the smaller ones suggest."""
  results, curves = made
  other, _ = known_truth.sweep(np.random.default_rng(0), at_10k=0.01)
  largest = results.runs['parameters'] == LARGEST
  runs = results.runs.copy()
  runs.loc[largest, 'final_loss'] = other.runs.loc[largest, 'final_loss']
  at_largest = curves['run'].isin(runs['run'][largest])
  curves = curves.assign(**{LOGIT: curves[LOGIT].where(~at_largest, 30 * curves[LOGIT])})
  held_out = hold_out(dataclasses.replace(results, runs=runs), curves)
  scores = predict.score([held_out]).set_index('predictor')
  for name in (predict.CHOSEN, 'attention logit', 'critical learning rate', "paper's fit"):
    assert scores.loc[name, 'accuracy'] < 0.8, name
    assert scores.loc[name, 'brier'] > 0.15, name
  assert scores.loc['attention logit', 'coverage'] < 0.5
  assert scores.loc['critical learning rate', 'coverage'] == 0


def test_paper_fit_is_a_quadratic_at_each_rate(made):
  observations = observe(*made)
  cells = observations_lib.cells([2e6], observations.learning_rates)
  forecast = predictors.PaperFit().forecast(observations, cells).cells
  for rate, value, probability in zip(
      forecast['learning_rate'], forecast['value'], forecast['probability'], strict=True
  ):
    runs = observations.runs[observations.runs['learning_rate'] == rate]
    logits = observations.running_max[LOGIT].loc[runs.index, 40]  # the end of the warm-up
    expected = np.polyval(np.polyfit(runs['log_size'], logits, 2), np.log10(2e6))
    assert value == pytest.approx(expected, abs=1e-6)
    assert probability == (expected > 4)
  assert forecast[['low', 'high']].isna().all(axis=None)


def test_calibration_chooses_an_informative_step():
  results, curves = known_truth.sweep(np.random.default_rng(0))
  noise = 10 ** np.random.default_rng(1).normal(0, 0.5, len(curves))
  curves[LOGIT] = np.where(curves['step'] < 80, noise, curves[LOGIT].where(curves['step'] == 80))
  assert predictors.ATTENTION_LOGIT.calibrate(observe(results, curves)).step in (80, 100)


def test_interventions_are_independent():
  results, curves = known_truth.sweep(np.random.default_rng(0), interventions=('none', 'l2'))

  def forecasts(curves):
    return forecast(results, observations_lib.by_arm(results, curves), [2e6])

  before = forecasts(curves)
  is_l2 = curves['run'].str.startswith('l2')
  after = forecasts(curves.assign(**{LOGIT: curves[LOGIT].where(~is_l2, curves[LOGIT] ** 2)}))
  same = {
      qk_norm: before[before['model.qk_norm'] == qk_norm].equals(rows)
      for qk_norm, rows in after.groupby('model.qk_norm')
  }
  assert same == {'none': True, 'l2': False}


def test_sharpness_predictor_where_it_was_measured(made):
  results, curves = made
  curves = curves.assign(**{observations_lib.CRITICAL_SHARPNESS: curves[LOGIT] / 1e4})
  scores = predict.score([hold_out(results, curves)]).set_index('predictor')
  assert scores.loc['critical sharpness', 'accuracy'] == 1
  assert scores.loc['preconditioned sharpness', 'runs'] == 0


def test_several_target_sizes(made):
  results, curves = made
  observations = observations_lib.by_arm(results, curves)
  forecasts = forecast(results, observations, [2e6, 3e7]).dropna(subset='parameters')
  assert set(forecasts['parameters']) == {2e6, 3e7}
  np.testing.assert_allclose(forecasts['times'], forecasts['parameters'] / LARGEST)
  chosen = forecasts[forecasts['chosen']]
  assert len(chosen) == 14 and chosen['predictor'].nunique() == 1
  critical = rows_of(forecasts, 'critical learning rate').drop_duplicates('parameters')
  near, far = critical.itertuples()
  assert near.value > far.value
  assert near.high / near.low < far.high / far.low


# Insufficient data.


def reasons(forecasts):
  return forecasts[forecasts['parameters'].isna()].set_index('predictor')['note']


def test_two_sizes_are_too_few():
  results, observations = sweep(sizes=known_truth.SIZES[:2])
  forecasts = forecast(results, observations, [2e6])
  assert set(reasons(forecasts)) == {'3 sizes are needed, there are 2'}
  assert len(forecasts) == len(reasons(forecasts)) and not forecasts['chosen'].any()
  assert predict.hold_out(results, observations).empty
  assert predict.score([predict.hold_out(results, observations)]).empty


def test_no_critical_rate_where_all_runs_are_stable():
  results, observations = sweep(at_10k=100.0)
  (of_one,) = observations.values()
  assert not of_one.runs['unstable'].any()
  forecasts = forecast(results, observations, [2e6])
  assert reasons(forecasts)['critical learning rate'] == (
      'the critical learning rate lies within the grid at none of the sizes'
  )
  logits = rows_of(forecasts, 'attention logit')
  assert logits['note'].str.endswith('no run was unstable: against 10000').all()
  assert logits['note'].str.startswith('read at step 100').all()
  above = [known_truth.log_logit(2e6, rate) > 4 for rate in known_truth.RATES]
  assert list(logits['probability'] > 0.5) == above and any(above)


def test_runs_that_do_not_count_are_left_out():
  results, curves = known_truth.sweep(np.random.default_rng(0))
  runs = results.runs.copy()
  runs.loc[3, ['status', 'final_loss']] = ['failed', np.nan]
  observations = observe(dataclasses.replace(results, runs=runs), curves)
  assert 3 not in observations.runs.index and len(observations.runs) == len(runs) - 1


# Scores.


def test_scores_by_hand():
  table = pd.DataFrame({
      'predictor': ['mine'] * 5 + [predictors.PaperFit.name] * 5,
      'chosen': [True] * 5 + [False] * 5,
      'event': 'unstable',
      'parameters': 1.0,
      'seed': 0,
      'quantity': ['attention logit'] * 5 + [''] * 5,
      'run': ['a', 'b', 'c', 'd', 'e'] * 2,
      'probability': [0.1, 0.4, 1.0, 0.6, 0.0, 0.0, 0.0, 1.0, np.nan, np.nan],
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
  assert mine['brier'] == pytest.approx((0.1**2 + 0.6**2 + 0.4**2) / 5)
  assert mine['base_brier'] == 0.25
  # Probabilities of 0 and 1 count as 0.01 and 0.99.
  assert mine['log_score'] == pytest.approx(-np.log([0.9, 0.4, 0.99, 0.6, 0.99]).mean())
  # The first interval covers its value, the second is above it and the third below. The censored
  # values, above 4 and below 9, may lie within 5 to 8.
  assert (mine['numbers'], mine['intervals'], mine['coverage']) == (10, 10, 0.6)
  assert mine['error'] == pytest.approx(np.log10(1.01))
  paper = scores.loc[predictors.PaperFit.name]
  assert (paper['runs'], paper['brier']) == (6, pytest.approx(1 / 3))
  assert paper['log_score'] == pytest.approx(-np.log([0.99, 0.01, 0.99]).mean())
  pd.testing.assert_series_equal(mine, scores.loc[predict.CHOSEN], check_names=False)


def test_scores_of_each_size_by_hand():
  """The base rate is that of the event `unstable`, and counts once for each run."""
  table = pd.DataFrame({
      'predictor': ['mine', 'other', 'gradient'] * 3,
      'chosen': False,
      'event': ['unstable', 'unstable', 'below eps'] * 3,
      'parameters': [4.0] * 6 + [16.0] * 3,
      'times': [2.0] * 6 + [8.0] * 3,
      'seed': 0,
      'quantity': '',
      'run': np.repeat(['a', 'b', 'c'], 3),
      'probability': [0.9, 0.5, 0.0, 0.2, 0.5, 0.0, 0.4, 0.5, 0.0],
      'happened': [True, True, False, False, False, False, True, True, False],
      'base_rate': [0.3, 0.3, 0.8] * 3,
      **dict.fromkeys(('value', 'low', 'high', 'measured'), np.nan),
      'beyond': 0,
  })
  scores = predict.score_by_size(table)
  assert list(zip(scores['parameters'], scores['times'], scores['predictor'])) == [
      (*size, name)
      for size in ((4.0, 2.0), (16.0, 8.0))
      for name in ('mine', 'other', 'gradient', predict.BASE_RATE)
  ]
  columns = ['runs', 'accuracy', 'brier', 'log_score']
  of_base = scores.loc[scores['predictor'] == predict.BASE_RATE, columns].to_numpy(float)
  expected = [
      [2, 0.5, (0.7**2 + 0.3**2) / 2, -np.log([0.3, 0.7]).mean()],
      [1, 0.0, 0.7**2, -np.log(0.3)],
  ]
  np.testing.assert_allclose(of_base, expected)
  mine = scores.loc[scores['predictor'] == 'mine', 'brier']
  assert list(mine) == pytest.approx([(0.1**2 + 0.2**2) / 2, 0.6**2])


def test_critical_rate_is_scored_once_per_size():
  held_out = hold_out(*known_truth.sweep(np.random.default_rng(0), seeds=(0, 1)))
  scores = predict.score([held_out, held_out]).set_index('predictor')
  assert scores.loc['critical learning rate', 'intervals'] == 2
  assert scores.loc['critical learning rate', 'runs'] == 28


def test_run_is_unstable_by_the_runs_of_its_arm():
  """The best arm has its best rate where the other one fails: its runs there are not stable."""
  none, other = (
      known_truth.bowls(
          np.random.default_rng(0), lambda _, rate=rate: rate, fields={'model.qk_norm': name}
      )[0]
      for name, rate in {'none': 3e-3, 'l2': 0.5}.items()
  )
  runs = pd.concat([none.runs, other.runs], ignore_index=True)
  runs.loc[runs['model.qk_norm'] == 'l2', 'final_loss'] -= 0.02
  _, curves = known_truth.bowls(np.random.default_rng(0), lambda _: 0.1)
  by_arm = observations_lib.by_arm(dataclasses.replace(none, runs=runs), curves)
  unstable = by_arm[('none',)].runs.groupby('learning_rate')['unstable'].all()
  assert list(unstable) == [False, False, True, True, True, True, True]


def test_steered_runs_are_left_out(made):
  """A person took them back to another rate; a policy is part of the config."""
  results, curves = made
  actions = np.zeros(len(results.runs))
  actions[[2, 5]] = 1
  for by, left_out in (('ask', 2), ('policy', 0)):
    runs = results.runs.assign(**{'actions': actions, 'control.on_alarm': by})
    found = observe(dataclasses.replace(results, runs=runs), curves)
    assert len(found.runs) == len(observe(results, curves).runs) - left_out


def test_steered_runs_do_not_move_the_rates_of_their_curve(made):
  """The run at the highest rate was rescued: the curve is critical where the others say."""
  results, curves = made
  rescued = results.runs['learning_rate'] == results.runs['learning_rate'].max()
  runs = results.runs.assign(actions=rescued.astype(int))
  runs.loc[rescued, 'final_loss'] = runs['final_loss'].min() - 0.1
  found = observe(dataclasses.replace(results, runs=runs), curves).runs
  without = observe(dataclasses.replace(results, runs=runs[~rescued]), curves).runs
  columns = ['log_critical', 'critical_censored', 'log_best', 'grid_step', 'unstable']
  pd.testing.assert_frame_equal(
      found[columns].reset_index(drop=True), without[columns].reset_index(drop=True)
  )
