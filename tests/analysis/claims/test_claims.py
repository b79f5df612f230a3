"""Each claim holds, does not hold and is undecided where it should be."""

import dataclasses
import itertools
import pathlib
import re
import runpy

import numpy as np
import pandas as pd
import pytest
from helpers import claim_cases, extension_cases
from helpers import simulated_sweeps as sim
from helpers.named_claims import NAMED, verdict
from helpers.simulated_sweeps import QK, Outcomes, simulate

from stability import hyper
from stability.analysis import results as results_lib
from stability.analysis.claims import families, registry
from stability.analysis.claims.claim import (
  DOES_NOT_HOLD,
  EXTENSION,
  HOLDS,
  UNDECIDED,
  applies,
  decide,
  select,
)
from stability.analysis.claims.evidence import Evidence

CASES = claim_cases.CASES | extension_cases.CASES
ROOT = pathlib.Path(__file__).parents[3]
ALWAYS = (  # columns of the runs of any trainer
    *('run', 'status', 'parameters', 'learning_rate', 'seed', 'initial_loss', 'final_loss'),
)
FIGURES = {*map(str, range(1, 14)), 'C.1', *(f'E.{number}' for number in range(1, 16))}


CRITERIA = {  # of all claims: they are not changed after a sweep has been run
    '<= -0.1': '11a 11b E.12a E.12b',
    '<= 0': '1d 3c E.5a',
    '<= 0.01': 'extension_t',
    '<= 0.02': '8c 12a E.5b extension_o extension_s',
    '<= 0.1': 'C.1a',
    '<= 0.25': '2c E.1b',
    '<= 0.3': '8a 9c E.4b E.14a extension_i',
    '<= 0.5': '10a 13a',
    '<= 0.8': 'E.13a E.13b',
    '<= 1.25': 'E.7a E.9a extension_d extension_e extension_f extension_l',
    '<= 3.4': 'extension_u',
    '<= 10': '11c',
    '<= 10000': '9b',
    '> 0': '5c 7b 10b 12b E.3a E.3b E.6c E.8a extension_k',
    '>= 0.005': 'extension_v',
    '>= 0.02': 'extension_p extension_q extension_r',
    '>= 0.05': '1b 7a E.10a E.15a',
    '>= 0.1': 'C.1c E.2a',
    '>= 0.25': '1c 2d 4c extension_m',
    '>= 0.5': '2b 5d E.1a extension_n',
    '>= 0.9': '8b',
    '>= 1': '2a 3b 9a 9d',
    '>= 1.05': '5b E.6b',
    '>= 1.1': '1a 3a 3d 5a 5e 6a E.4a E.6a extension_a extension_b extension_c extension_g'
              ' extension_h extension_j extension_x',
    '>= 1.5': 'C.1b',
    '>= 1.8': 'extension_w',
    '>= 2': '4b 12c',
    '>= 10': '4a E.11a',
}  # fmt: skip


def test_criteria():
  expected = {name: text for text, names in CRITERIA.items() for name in names.split()}
  assert {name: str(claim.criterion) for name, claim in NAMED.items()} == expected


def test_every_figure_of_the_paper_has_a_claim():
  assert {claim.figure for claim in registry.CLAIMS} == FIGURES | {EXTENSION}


@pytest.mark.slow
@pytest.mark.parametrize('scale', ['cpu', 'gpu', 'paper'])
def test_every_claim_applies_to_an_experiment_of_its_figure(scale):
  found = set()
  for path in (ROOT / 'configs').glob('*.py'):
    experiment = runpy.run_path(str(path))
    if 'get_sweep' in experiment:
      points, config = experiment['get_sweep'](scale), experiment['get_config'](scale).to_dict()
      results, _ = simulate(points, Outcomes(lambda c: 2.0), config)
      evidence = Evidence.from_results(results, None)
      figures = re.findall(r'\bFigure ((?:[A-Z]\.)?\d+)', experiment['__doc__'])
      figures.append(EXTENSION)
      named = {name: claim for name, claim in NAMED.items() if claim.figure in figures}
      found |= {name for name, claim in named.items() if applies(claim, evidence)}
  assert found == NAMED.keys()


def test_every_claim_has_its_cases():
  assert NAMED.keys() == CASES.keys()


@pytest.mark.parametrize('name', NAMED)
def test_claim_holds(name):
  points, holds, _ = CASES[name]
  found = verdict(name, *simulate(points, holds))
  assert (found.verdict, found.reason) == (HOLDS, '')
  assert NAMED[name].criterion.is_met(found.effect)
  assert 0 < found.n <= len(points)
  assert np.isnan([found.low, found.high]).all()  # one seed


@pytest.mark.parametrize('name', NAMED)
def test_claim_does_not_hold(name):
  points, _, fails = CASES[name]
  found = verdict(name, *simulate(points, fails))
  assert (found.verdict, found.reason) == (DOES_NOT_HOLD, '')
  assert not NAMED[name].criterion.is_met(found.effect)


def test_runs_under_a_policy_are_not_used():
  points = hyper.product([QK, hyper.sweep('control.on_alarm', ['none', 'policy'])])

  def loss(c):  # unstable at the highest rate but for the policy
    saved = c['control.on_alarm'] == 'policy' or c['model.qk_norm'] != 'none'
    return 4.0 if c['optimizer.learning_rate'] == 1.0 and not saved else 2.0

  found = verdict('2a', *simulate(points, Outcomes(loss)))
  assert (found.verdict, found.n) == (HOLDS, len(points) // 4)


@pytest.mark.parametrize('name', NAMED)
def test_undecided_while_a_run_is_missing(name):
  points, holds, _ = CASES[name]
  results, curves = simulate(points, holds)
  for run in select(NAMED[name], Evidence.from_results(results, curves)).runs.index[[0, -1]]:
    for status in ('missing', 'failed', 'stopped'):
      runs = results.runs.copy()
      runs.loc[run, ['status', 'final_loss']] = status, np.nan
      found = verdict(name, results_lib.Results(runs, results.groups, results.sizes), curves)
      assert (found.verdict, found.effect) == (UNDECIDED, pytest.approx(np.nan, nan_ok=True))
      assert found.reason == f'1 of {found.n} runs {status}'


@pytest.mark.parametrize('name', [name for name, claim in NAMED.items() if claim.probes])
def test_undecided_without_probes(name):
  points, holds, _ = CASES[name]
  results, curves = simulate(points, holds)
  found = verdict(name, results, curves[['run', 'step', 'loss']])
  assert found.verdict == UNDECIDED and 'was not logged' in found.reason and found.n > 0
  found = verdict(name, results, None)
  assert found.verdict == UNDECIDED and found.n == 0
  some = curves['run'].isin(results.runs['run'].iloc[1::2])
  curves.loc[some, curves.columns.drop(['run', 'step', 'loss'])] = np.nan
  found = verdict(name, results, curves)
  assert found.verdict == UNDECIDED and 'was not logged in ' in found.reason


@pytest.mark.parametrize('name', CASES)
def test_runs_of_other_trainers_may_lack_columns(name):
  """All but the size, what varies and what every run has: a claim is decided or not, no error."""
  results, curves = simulate(CASES[name][0], CASES[name][1])
  kept = list(dict.fromkeys([*ALWAYS, *results.groups]))
  results = dataclasses.replace(results, runs=results.runs[kept], sizes=[])
  found = verdict(name, results, curves)
  assert found.verdict in (HOLDS, DOES_NOT_HOLD) or found.reason


def test_no_claim_applies_to_a_single_run():
  table = registry.judge(*simulate([{}], Outcomes(sim.flat)))
  assert set(table['verdict']) == {UNDECIDED} and set(table['n']) == {0}
  assert (table['reason'] != '').all()


def test_no_claim_is_decided_before_the_sweep_starts():
  results, _ = simulate(QK, Outcomes(sim.flat))
  runs = results.runs.assign(status='missing', final_loss=np.nan, initial_loss=np.nan)
  table = registry.judge(results_lib.Results(runs, results.groups, results.sizes))
  assert set(table['verdict']) == {UNDECIDED}


# Of intervals over two seeds: Student's t over the normal quantile, times sqrt(2).
STRETCH = 6.313752 / 1.644854 * 2**0.5


def two_seeds(other_seed):
  """The benefit of qk-norm, a ratio of LR sensitivity, is 2 with seed 0 and given for seed 1."""
  points = hyper.product([QK, hyper.sweep('seed', [0, 1])])

  def steep(c):
    return 0.1 * (1 if c['model.qk_norm'] != 'none' else other_seed if c['seed'] else 2.0)

  return simulate(points, Outcomes(lambda c: sim.bowl(c, steep(c))))


def test_interval_resamples_whole_seeds():
  found = verdict('1a', *two_seeds(2.1))
  # The seeds have 2 and 2.1; each alone is drawn in a quarter of the draws. Two seeds tell little.
  low, high = (2.05 * (of_seed / 2.05) ** STRETCH for of_seed in (2.0, 2.1))
  assert (found.low, found.effect, found.high) == pytest.approx((low, 2.05, high))
  assert found.verdict == HOLDS


def test_interval_of_a_ratio_is_positive():
  points = hyper.product([CASES['4b'][0], hyper.sweep('seed', [0, 1, 2])])

  def log_z(c):  # drifts by factors of 2, 30 and 500
    return -5.0, -5.0 * (1 if c['objective.z_loss'] else (2.0, 30.0, 500.0)[c['seed']])

  found = verdict('4b', *simulate(points, Outcomes(sim.flat, {'log_z': log_z})))
  assert 0 < found.low < 2 < found.effect < found.high
  assert found.verdict == UNDECIDED
  assert np.sqrt(found.low * found.high) == pytest.approx(found.effect, rel=0.2)


@pytest.mark.parametrize('name', NAMED)
def test_ratios_are_positive_in_every_case(name):
  points, *both = CASES[name]
  effects = [verdict(name, *simulate(points, outcomes)).effect for outcomes in both]
  assert not NAMED[name].is_ratio or min(effects) > 0
  if 'ratio of LR sensitivity' in NAMED[name].measure:
    assert NAMED[name].is_ratio


def test_seeds_that_some_runs_lack_do_not_count():
  """Draws of them would leave rows as they are: an interval without width, and a verdict."""
  results, curves = two_seeds(1.0)
  runs = results.runs
  is_largest = runs['parameters'] == runs['parameters'].max()
  alone = verdict('1a', dataclasses.replace(results, runs=runs[runs['seed'] == 0]), curves)
  kept = (runs['seed'] == 0) | (runs.index == 1)
  found = verdict('1a', dataclasses.replace(results, runs=runs[kept]), curves)
  assert np.isnan([found.low, found.high]).all()
  assert (found.verdict, found.effect, found.n) == (alone.verdict, alone.effect, alone.n)
  # Of a sweep of several seeds, a single one decides nothing.
  kept = (runs['seed'] == 0) | ~is_largest
  found = verdict('1a', dataclasses.replace(results, runs=runs[kept]), curves)
  assert found.verdict == UNDECIDED and 'no two seeds have all sizes' in found.reason
  other = runs.assign(seed=runs['seed'].where(is_largest, runs['seed'] + 5))
  found = verdict('1a', dataclasses.replace(results, runs=other), curves)
  assert found.verdict == UNDECIDED and 'no two seeds have all sizes' in found.reason
  one_each = other[other['seed'] % 5 == 0]
  found = verdict('1a', dataclasses.replace(results, runs=one_each), curves)
  assert found.verdict == UNDECIDED and 'no seed has all sizes' in found.reason


def with_runs(results, *added):
  """The results with copies of runs, each a dict: the index of the run and what is changed."""
  copies = [results.runs.loc[[index]].assign(run=f'more {i}', **changes)
            for i, (index, changes) in enumerate(added)]  # fmt: skip
  runs = pd.concat([results.runs, *copies], ignore_index=True)
  return dataclasses.replace(results, runs=runs)


@pytest.mark.parametrize('windows', [(), [{'where': {}, 'windows': [[1e-3, 1.0]]}]])
def test_a_run_at_another_learning_rate_changes_no_interval(windows):
  """As launch.next adds: one rate with one seed, within the windows or beyond them."""
  points = hyper.product([QK, hyper.sweep('seed', [0, 1, 2])])

  def steep(c):  # the benefit of qk-norm is 2, 1 or 0.9
    return 0.1 * (1 if c['model.qk_norm'] != 'none' else (2.0, 1.0, 0.9)[c['seed']])

  results, curves = simulate(points, sim.steep(steep), windows=windows)
  before = verdict('1a', results, curves)
  assert before.verdict == UNDECIDED and 'within the interval' in before.reason
  for rate in (3e-2, 10.0):
    more = with_runs(results, (0, {'learning_rate': rate}))
    assert verdict('1a', more, curves) == before
  seed = {'seed': 7}  # a further seed at a rate of the grid
  assert verdict('1a', with_runs(results, (0, seed)), curves) == before


def test_seeds_of_rates_beyond_the_windows_do_not_choose():
  points = hyper.product([QK, hyper.sweep('seed', [0, 1, 2])])
  windows = [{'where': {}, 'windows': [[1e-3, 1.0]]}]

  def steep(c):
    return 0.1 * (1 if c['model.qk_norm'] != 'none' else (2.0, 2.1, 2.2)[c['seed']])

  results, curves = simulate(points, sim.steep(steep), windows=windows)
  before = verdict('1a', results, curves)
  beyond = {'learning_rate': 10.0}
  more = with_runs(results, (0, beyond), (1, beyond))  # of two of the three seeds
  assert verdict('1a', more, curves) == before and before.n == len(points)


def test_undecided_without_a_finite_interval():
  results, curves = two_seeds(2.1)
  claim = dataclasses.replace(NAMED['1a'], statistic=lambda e: [2.0] + [np.nan] * 1000)
  found = decide(claim, Evidence.from_results(results, curves))
  assert found.verdict == UNDECIDED and 'resampled seeds is not a finite number' in found.reason


def test_a_range_that_leaves_the_grid_decides_only_one_side():
  points, _, _ = CASES['extension_m']

  def of(base, other):
    slope = sim.where('optimizer.name', 'hyperball', other, base)
    return verdict('extension_m', *simulate(points, sim.steep(slope)))

  assert of(0.06, 0.001).verdict == HOLDS  # by 1.2 decades or more
  found = of(0.06, 0.048)  # its lower end is at most a little below the grid
  assert (found.verdict, found.reason) == (UNDECIDED, 'the range of Hyperball leaves the grid')


@pytest.mark.parametrize('name', ['extension_t', 'extension_u'])
@pytest.mark.parametrize('end', [1e-5, 1e3])
def test_best_rates_at_an_end_of_the_grid_decide_nothing(name, end):
  points, _, _ = CASES[name]
  found = verdict(name, *simulate(points, extension_cases.by_rank(dict.fromkeys((1, 4, 16), end))))
  assert found.verdict == UNDECIDED and 'is the first or the last one of its row' in found.reason


def test_best_rate_of_lora_may_be_too_high():
  """By two decades, where 3 to 30 times is meant; neither is at an end of the grid."""
  far = extension_cases.tuned(lambda c: 10 ** (-0.5 if c['adapter.kind'] == 'lora' else -2.5))
  found = verdict('extension_t', *simulate(CASES['extension_t'][0], far))
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, pytest.approx(2 - np.log10(30)))


@pytest.mark.parametrize('other_seed, expected', [(1.0, UNDECIDED), (1.2, UNDECIDED), (1.9, HOLDS)])
def test_undecided_if_seeds_disagree(other_seed, expected):
  found = verdict('1a', *two_seeds(other_seed))
  assert found.verdict == expected
  assert found.effect == pytest.approx(1 + other_seed / 2)
  assert ('interval' in found.reason) == (expected == UNDECIDED)


def test_effects():
  def effect(name):
    return verdict(name, *simulate(CASES[name][0], CASES[name][1])).effect

  assert effect('1a') == pytest.approx(2.0)
  assert effect('1b') == pytest.approx(0.25)  # the power of the parameters
  assert effect('1c') == pytest.approx(1.0)  # from a rate of 1 to one of 0.1
  assert effect('2c') == pytest.approx(0.1 / 3, rel=0.2)  # the end is a mean over the last steps
  assert effect('4c') == pytest.approx(0.6)  # the first logged step at half of them or later
  smallest, largest = (0.2 - 5 / 16e3) / (0.2 - 100 / 16e3), 0.195 / 0.1
  assert effect('5b') == pytest.approx(largest / smallest)
  assert effect('7a') == pytest.approx(0.5 - 0.25)  # width^0.5 is parameters^0.25
  assert effect('8a') == pytest.approx(0.0, abs=1e-9)
  assert effect('9c') == pytest.approx(0.0, abs=1e-9)
  assert effect('9d') == 1.0
  assert effect('10a') < 0.5
  assert effect('10b') == pytest.approx(0.5)
  assert effect('11a') == pytest.approx(-0.5, rel=0.05)
  assert effect('13a') == pytest.approx(0.2, rel=0.2)  # of the block that collapses least
  assert effect('E.1a') == pytest.approx(2 * np.log(90) / np.log(1e4), rel=0.05)
  assert effect('5c') == pytest.approx(0.095)
  assert effect('E.6c') == pytest.approx(0.03)
  assert effect('E.10a') == pytest.approx(0.5, abs=0.01)
  assert effect('E.15a') == pytest.approx(1.0 / 3.5)


def test_other_interventions_are_held_at_the_paper_value():
  points = hyper.product([QK, hyper.sweep('optimizer.eps', [1e-8, 1e-3])])

  def steep(c):
    return 0.2 if c['model.qk_norm'] == 'none' and c['optimizer.eps'] == 1e-8 else 0.1

  found = verdict('1a', *simulate(points, Outcomes(lambda c: sim.bowl(c, steep(c)))))
  assert (found.verdict, found.effect, found.n) == (HOLDS, pytest.approx(2.0), len(QK))


def test_batch_claim_does_not_apply_to_sequence_lengths():
  points, holds, _ = CASES['extension_l']
  found = verdict('E.9a', *simulate(points, holds))
  assert (found.verdict, found.n) == (UNDECIDED, 0)
  assert found.reason == 'the sweep varies data.sequence_length as well'


def test_sequence_length_needs_constant_tokens_per_step():
  points = [p | {'data.batch_size': 16} for p in CASES['extension_l'][0]]
  found = verdict('extension_l', *simulate(points, CASES['extension_l'][1]))
  assert (found.verdict, found.n) == (UNDECIDED, 0)
  assert found.reason == 'the tokens per step change with the sequence length'


def test_fields_without_a_paper_value_are_matched():
  points = hyper.product([QK, hyper.sweep('data.seed', [0, 1])])

  def steep(c):
    return (0.15 if c['data.seed'] else 0.2) if c['model.qk_norm'] == 'none' else 0.1

  found = verdict('1a', *simulate(points, Outcomes(lambda c: sim.bowl(c, steep(c)))))
  assert (found.effect, found.n) == (pytest.approx(1.5), 2 * len(QK))  # the lower of both


def test_steps_claim_does_not_apply_to_batch_sizes():
  points, holds, _ = CASES['E.9a']
  found = verdict('E.7a', *simulate(points, holds))
  assert (found.verdict, found.n) == (UNDECIDED, 0)
  assert found.reason == 'the sweep varies data.batch_size as well'


def test_only_varies():
  points, holds, _ = CASES['5a']
  results, curves = simulate(points, holds)
  for name in ('11a', '11b', 'C.1a', 'C.1b', 'E.12a', 'E.12b', 'E.13a', 'E.13b'):
    found = verdict(name, results, curves)
    assert (found.n, found.reason) == (0, 'the sweep varies schedule.warmup_steps as well')


def test_probe_after_warmup():
  points = hyper.sweep('schedule.warmup_steps', [5, 60, 61, 500])
  results, curves = simulate(points, Outcomes(sim.flat, {'log_z': (1.0, 2.0)}))
  curves['log_z'] = curves['step'].astype(float)
  found = Evidence.from_results(results, curves).after_warmup('log_z')
  assert list(found) == [20, 60, 100, 500]


@pytest.mark.parametrize(
    'name', [name for name, claim in NAMED.items() if claim.criterion.comparison == '>']
)
def test_ties_do_not_hold(name):
  points, _, _ = CASES[name]
  found = verdict(name, *simulate(points, sim.best(lambda c: 2.0)))
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, pytest.approx(0.0, abs=1e-9))


@pytest.mark.parametrize(
    'name, outcomes, reason',
    [
        ('E.5a', Outcomes(sim.flat), 'no run diverged'),
        ('8a', sim.steep(lambda c: 0.1), 'does not change either'),
        ('E.4b', sim.steep(lambda c: 0.1), 'does not change either'),
        ('E.14a', sim.steep(lambda c: 0.1), 'does not change either'),
        # Unstable with z-loss as well: not because of output logits.
        ('4c', Outcomes(sim.cliff, curve=sim.late(0.5)), 'z-loss cures'),
        ('E.13b', Outcomes(sim.flat, claim_cases.update(1.0)), 'are 1000 times eps there'),
    ],
)
def test_undecided_without_a_contrast(name, outcomes, reason):
  found = verdict(name, *simulate(CASES[name][0], outcomes))
  assert found.verdict == UNDECIDED and found.n > 0 and reason in found.reason


def test_full_muparam_diverges_alone():
  def loss(c):
    is_full = c['parameterization.name'] == 'muparam_full'
    return 6.0 if sim.highest(c) and is_full else 2.0

  found = verdict('E.5a', *simulate(CASES['E.5a'][0], Outcomes(loss)))
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, 1.0)


def test_slopes_of_opposite_signs_do_not_cancel():
  points, _, _ = CASES['C.1a']

  def rms(c):  # falls with size at low learning rates, rises at high ones
    return 1.0, sim.size(c) ** (0.5 if sim.rate(c) > 0.05 else -0.5)

  probes = {f'block_{block}/output_rms': rms for block in range(3)}
  found = verdict('C.1a', *simulate(points, Outcomes(sim.flat, probes)))
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, pytest.approx(0.5, rel=0.05))


def test_steps_claim_needs_one_warmup_per_length():
  points = hyper.product([
      sim.sweep('schedule.steps', 250, 500),
      sim.sweep('schedule.warmup_steps', 25, 50),
      sim.RATES,
  ])
  found = verdict('E.7a', *simulate(points, CASES['E.7a'][1]))
  assert (found.verdict, found.n) == (UNDECIDED, 0)
  assert found.reason == 'the sweep varies schedule.warmup_steps as well'


def test_prediction_of_the_paper():
  """One run of 4.8B at 1e-2 with predicted logits above 1e4, as in configs/qk_layernorm.py."""
  experiment = runpy.run_path(str(ROOT / 'configs/qk_layernorm.py'))
  points, config = experiment['get_sweep']('paper'), experiment['get_config']('paper').to_dict()
  largest = max(width for point in points if (width := point.get('model.width')))

  def judged(is_unstable):
    def loss(c):
      return 5.4 if is_unstable and c['model.width'] == largest else sim.flat(c)

    def logit(c):  # 1e4 is first passed at 4.8B
      parameters = 12 * c['model.depth'] * c['model.width'] ** 2
      return (10.0 * (parameters / 1e6) ** 0.85,) * 2

    results, curves = simulate(points, Outcomes(loss, {results_lib.LOGIT: logit}), config)
    return verdict('9d', results, curves.assign(step=200 * curves['step']))

  assert (judged(True).verdict, judged(True).effect) == (HOLDS, 1.0)
  assert judged(False).verdict == DOES_NOT_HOLD


def test_no_prediction_where_smaller_sizes_are_unstable():
  points, holds, _ = CASES['9d']
  found = verdict('9d', *simulate(points, Outcomes(holds.loss, {results_lib.LOGIT: (1e5, 1e5)})))
  assert found.verdict == UNDECIDED and 'the first past 1e4' in found.reason


def test_long_runs_are_read_at_step_2000():
  points = hyper.sweep('schedule.steps', [50_000, 100_000])
  points = hyper.product([points, hyper.sweep('schedule.warmup_steps', [5_000])])
  results, curves = simulate(points, Outcomes(sim.flat, {'log_z': (1.0, 2.0)}))
  curves['step'] *= 100
  curves['log_z'] = curves['step'].astype(float)
  assert list(Evidence.from_results(results, curves).after_warmup('log_z')) == [6_000, 2_000]


def test_prediction_is_independent_of_the_measurement():
  """Predicted above 1e4 but measured far below it, and predicted below it."""
  points, holds, _ = CASES['9d']
  below = Outcomes(holds.loss, claim_cases.steep_logits(1e-3))
  found = verdict('9d', *simulate(points, below))
  assert (found.verdict, found.effect) == (HOLDS, 1.0)
  results, curves = simulate(points, holds)
  curves[results_lib.LOGIT] /= 100
  found = verdict('9d', results, curves)
  assert found.verdict == UNDECIDED and 'the first past 1e4' in found.reason


def test_one_way_of_scaling():
  points, holds, _ = CASES['C.1c']
  results, curves = simulate(points, holds)
  for name in ('1b', '1c', '9c', '11a', 'C.1a'):
    found = verdict(name, results, curves)
    assert (found.n, found.reason) == (0, 'the sweep scales models up in more than one way')


def test_joint_scaling_is_neither_width_nor_depth():
  shapes = hyper.zipit(
      [hyper.sweep('model.width', [16, 32, 64, 96]), hyper.sweep('model.depth', [1, 3, 5, 7])]
  )
  points = hyper.product([shapes, sim.BOTH_QK, sim.RATES])
  results, curves = simulate(points, Outcomes(sim.flat))
  for name in ('7a', '7b', 'E.2a', 'E.3a', 'C.1c'):
    found = verdict(name, results, curves)
    assert found.n == 0 and 'shapes scaled in' in found.reason


def test_optimum_at_the_edge_of_the_grid():
  points, _, _ = CASES['8a']
  found = verdict('8a', *simulate(points, sim.centred(lambda c: 1.0)))
  assert found.verdict == UNDECIDED and 'first or the last' in found.reason


def test_windows_of_learning_rates():
  points, _, _ = CASES['6a']
  kind = 'optimizer.weight_decay_kind'

  def loss(c):  # the coupled kind suffers at the highest learning rate alone
    return 4.0 if c[kind] == 'coupled' and sim.highest(c) else sim.bowl(c)

  def judged(windows):
    report = {'windows': [{'where': {kind: 'coupled'}, 'windows': windows}]}
    return verdict('6a', *simulate(points, Outcomes(loss), **report))

  assert judged([[1e-3, 1.0]]).verdict == HOLDS
  # Over 1e-3, 1e-2 and 1e-1 it is (0.1 + 0 + 0.1) / 3, that of the other (0.1 + 0 + 0.1 + 0.4) / 4.
  found = judged([[1e-3, 1e-1], [1e-2, 1.0]])
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, pytest.approx((0.2 / 3) / (0.6 / 4)))


def at_rates(points, field, **rates):
  """The runs of a sweep without those at other learning rates, by the value of a field."""
  return [p for p in points if p['optimizer.learning_rate'] in rates.get(p[field], FINE)]


FINE = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def test_arms_are_compared_at_the_same_rates():
  """Runs that launch.next chose are where each arm tells most."""
  points = sim.grid(sim.WIDTHS, sim.BOTH_QK, sim.sweep('optimizer.learning_rate', *FINE))
  outcomes = sim.steep(sim.where('model.qk_norm', 'none', 0.2, 0.1))

  def of(**rates):
    return verdict('1a', *simulate(at_rates(points, 'model.qk_norm', **rates), outcomes))

  assert (of().verdict, of().effect) == (HOLDS, pytest.approx(2.0))
  found = of(none=[3e-3, 1e-2, 3e-2, 1e-1], layernorm=[1e-3, 3e-2, 1.0])
  assert (found.verdict, found.reason) == (
      UNDECIDED,
      'interventions of a size have LR sensitivities over different learning rates',
  )
  found = of(none=[1e-3, 1e-2, 1.0])
  assert (found.verdict, found.effect) == (HOLDS, pytest.approx(2.0))
  found = of(none=FINE[1:])
  assert found.verdict == UNDECIDED and 'over different learning rates' in found.reason


def test_sizes_are_compared_at_the_same_rates():
  points = sim.grid(sim.WIDTHS, sim.BOTH_QK, sim.sweep('optimizer.learning_rate', *FINE))
  outcomes = sim.steep(lambda c: 0.1 * sim.size(c) ** 0.5)

  def of(rates):  # of the largest size
    kept = [
        p for p in points if p['model.width'] < 64 or p['optimizer.learning_rate'] in rates
    ]
    return verdict('1b', *simulate(kept, outcomes))

  assert of(FINE).effect == pytest.approx(of([1e-3, 1e-2, 1.0]).effect)
  found = of(FINE[2:])
  assert (found.verdict, found.reason) == (
      UNDECIDED,
      'sizes of an intervention have LR sensitivities over different learning rates',
  )


def test_grids_of_optimizers_may_be_moved():
  (name,) = (name for name in NAMED if NAMED[name].statement.startswith('Lion and Adafactor'))
  points, holds, _ = CASES[name]
  rate, moved = 'optimizer.learning_rate', {'lion': 0.1}
  points = [p | {rate: p[rate] * moved.get(p['optimizer.name'], 1)} for p in points]
  found = verdict(name, *simulate(points, holds))
  assert found.effect > 0 and not found.reason
  lowest = min(p[rate] for p in points)
  found = verdict(name, *simulate([p for p in points if p[rate] > lowest], holds))
  assert found.verdict == UNDECIDED and 'over different learning rates' in found.reason


def test_not_comparable():
  points, holds, _ = CASES['1a']
  found = verdict('1a', *simulate(points, holds, not_comparable='model.qk_norm'))
  assert found.verdict == UNDECIDED and 'not comparable: model.qk_norm' in found.reason
  points, holds, _ = CASES['E.14a']
  scale = 'optimizer.learning_rate_scale'
  assert verdict('E.14a', *simulate(points, holds, not_comparable=scale)).verdict == HOLDS


def test_size_with_a_single_learning_rate_is_ignored():
  points, holds, _ = CASES['1b']
  alone = [{'model.width': 128, 'model.qk_norm': 'none', 'optimizer.learning_rate': 1e-2}]
  found = verdict('1b', *simulate(points + alone, holds))
  assert (found.verdict, found.effect) == (HOLDS, pytest.approx(0.25))


def test_table_order_and_round_trip(tmp_path):
  table = registry.judge(*simulate(QK, CASES['1a'][1]))
  assert list(table) == [
      'figure', 'claim', 'verdict', 'effect', 'low', 'high', 'threshold', 'measure', 'n', 'reason',
      'variant',
  ]  # fmt: skip
  order = list(dict.fromkeys(table['figure']))
  of_appendix = [f'E.{number}' for number in range(1, 16)]
  assert order == [*map(str, range(1, 14)), 'C.1', *of_appendix, EXTENSION]
  assert table.loc[0, ['verdict', 'threshold', 'n']].to_list() == [HOLDS, '>= 1.1', len(QK)]
  table.to_csv(tmp_path / 'claims.csv', index=False)
  pd.testing.assert_frame_equal(registry.read(tmp_path / 'claims.csv'), table)


def test_arms_are_judged_by_their_fields():
  points, outcomes, _ = CASES['1a']
  results, curves = simulate(points, outcomes)
  of_arms = dataclasses.replace(
      results,
      runs=results.runs.assign(arm='with ' + results.runs['model.qk_norm']),
      groups=['arm'],
      windows=[{'where': {'arm': 'with none'}, 'windows': [[1e-3, 1e-1]]}],
  )
  by_fields = results_lib.by_fields(of_arms)
  assert by_fields.groups == ['model.qk_norm']
  assert by_fields.windows[0]['where'] == {'model.qk_norm': 'none'}
  half = of_arms.runs['run'].isin(of_arms.runs['run'].iloc[::2])
  clips = of_arms.runs.assign(**{'optimizer.clip_norm': half.astype(float), 'batch': half})
  within = dataclasses.replace(of_arms, runs=clips, groups=['arm', 'batch'])
  copy = of_arms.runs[of_arms.runs['arm'] == of_arms.runs['arm'].iloc[0]].assign(arm='again')
  copy['seed'] += 10  # a control: the first arm with other seeds
  with_copy = dataclasses.replace(of_arms, runs=pd.concat([of_arms.runs, copy]))
  assert len(results_lib.by_fields(with_copy).runs) == len(by_fields.runs)
  by_fields = results_lib.by_fields(within)
  assert by_fields.groups == ['batch', 'model.qk_norm', 'optimizer.clip_norm']
  assert by_fields.windows[0]['where'] == {'model.qk_norm': 'none'}
  assert len(by_fields.runs) == len(clips)
  again = of_arms.runs.assign(arm='once more', run='again ' + of_arms.runs['run'])
  runs = pd.concat([of_arms.runs, again], ignore_index=True)
  of_arms = dataclasses.replace(of_arms, runs=runs, windows=())
  assert registry.probes(of_arms) == registry.probes(results)
  pd.testing.assert_frame_equal(
      registry.judge(of_arms, curves), registry.judge(results, curves)
  )


def test_probes_of_applicable_claims():
  results, _ = simulate(QK, Outcomes(sim.flat))
  wanted = registry.probes(results)
  assert 'block_2/attention_logit_max' in wanted and 'block_0/query_norm' in wanted
  assert 'block_3/output_rms' not in wanted and 'log_z' not in wanted
  assert len(wanted) == len(set(wanted))
  assert registry.probes(simulate([{}], Outcomes(sim.flat))[0]) == []


def with_qk_norms(points, *names):
  """The same sweep with these normalisations of queries and keys in place of layernorm."""
  others = [p for p in points if p.get('model.qk_norm') != 'layernorm']
  replaced = [p for p in points if p.get('model.qk_norm') == 'layernorm']
  return others + [p | {'model.qk_norm': name} for name in names for p in replaced]


def on_layernorm(outcomes):
  """The outcomes that a sweep with layernorm has, whatever its normalisation is called."""

  def as_layernorm(function):
    def of(c, *more):
      name = 'none' if c['model.qk_norm'] == 'none' else 'layernorm'
      return function(c | {'model.qk_norm': name}, *more)

    return of if callable(function) else function

  return Outcomes(
      as_layernorm(outcomes.loss),
      {name: as_layernorm(probe) for name, probe in outcomes.probes.items()},
      as_layernorm(outcomes.curve),
  )


OF_THE_FAMILY = [
    name
    for name, claim in NAMED.items()
    if families.QK_NORMS in itertools.chain(*claim.requires.values(), *claim.where.values())
]


@pytest.mark.parametrize('name', OF_THE_FAMILY)
def test_rmsnorm_decides_the_claims_on_qk_norm(name):
  points, *both = CASES[name]
  for outcomes in both:
    paper = verdict(name, *simulate(points, outcomes))
    found = verdict(name, *simulate(with_qk_norms(points, 'rmsnorm'), on_layernorm(outcomes)))
    assert found.variant == 'model.qk_norm=rmsnorm'
    assert (found.verdict, found.n, found.reason) == (paper.verdict, paper.n, paper.reason)
    assert found.effect == pytest.approx(paper.effect)


@pytest.mark.parametrize(
    'names, used, effect',
    [
        (('rmsnorm', 'layernorm'), '', 2.0),
        (('l2', 'rmsnorm'), 'model.qk_norm=rmsnorm', 4.0),
        (('l2',), 'model.qk_norm=l2', 8.0),
    ],
)
def test_one_member_of_a_family_is_used(names, used, effect):
  steep = {'none': 0.8, 'layernorm': 0.4, 'rmsnorm': 0.2, 'l2': 0.1}
  points = with_qk_norms(QK, *names)
  found = verdict('1a', *simulate(points, sim.steep(lambda c: steep[c['model.qk_norm']])))
  assert (found.variant, found.effect, found.n) == (used, pytest.approx(effect), len(QK))


def test_other_claims_hold_a_family_at_one_member():
  points = hyper.product([CASES['5a'][0], sim.sweep('model.qk_norm', 'none', 'rmsnorm')])

  def steep(c):  # without qk-norm, the warm-up makes no difference
    return 0.2 - c['schedule.warmup_steps'] / 1000 * (c['model.qk_norm'] == 'rmsnorm')

  found = verdict('5a', *simulate(points, sim.steep(steep)))
  assert (found.variant, found.n) == ('model.qk_norm=rmsnorm', len(points) // 2)
  assert found.effect == pytest.approx(0.195 / 0.1)


def test_variant_in_the_table(tmp_path):
  judged = registry.judge(*simulate(with_qk_norms(QK, 'l2'), CASES['1a'][1]))
  assert judged.loc[0, 'variant'] == 'model.qk_norm=l2'
  judged.to_csv(tmp_path / 'claims.csv', index=False)
  pd.testing.assert_frame_equal(registry.read(tmp_path / 'claims.csv'), judged)
  judged.drop(columns='variant').to_csv(tmp_path / 'claims.csv', index=False)
  old = registry.read(tmp_path / 'claims.csv')
  pd.testing.assert_frame_equal(old, judged.assign(variant=''))
