"""Each claim comes out as holding, as not holding and as undecided, for its reason."""

import pathlib
import re
import runpy
import string

import numpy as np
import pandas as pd
import pytest
from helpers import beyond_cases, claim_cases, worlds
from helpers.worlds import QK, World, results_of

from stability import hyper
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.analysis.claims.claim import (
  BEYOND,
  DOES_NOT_HOLD,
  HOLDS,
  UNDECIDED,
  MoreThan,
  decide,
  is_about,
  narrow,
)
from stability.analysis.claims.evidence import Evidence

CASES = claim_cases.CASES | beyond_cases.CASES
ROOT = pathlib.Path(__file__).parents[3]
NAMED = {}
for claim in registry.CLAIMS:
  number = sum(other.figure == claim.figure for other in NAMED.values())
  NAMED[claim.figure + string.ascii_lowercase[number]] = claim
FIGURES = {*map(str, range(1, 14)), 'C.1', *(f'E.{number}' for number in range(1, 16))}


def verdict(name, results, curves):
  return decide(NAMED[name], Evidence.of(results, curves))


def test_every_figure_of_the_paper_has_a_claim():
  assert {claim.figure for claim in registry.CLAIMS} == FIGURES | {BEYOND}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    'scale', ['cpu', pytest.param('gpu', marks=SLOW), pytest.param('paper', marks=SLOW)]
)
def test_every_claim_is_about_an_experiment_of_its_figure(scale):
  found = set()
  for path in (ROOT / 'configs').glob('*.py'):
    experiment = runpy.run_path(str(path))
    if 'get_sweep' in experiment:
      points, config = experiment['get_sweep'](scale), experiment['get_config'](scale).to_dict()
      results, _ = results_of(points, World(lambda c: 2.0), config)
      evidence = Evidence.of(results, None)
      figures = re.findall(r'\bFigure ((?:[A-Z]\.)?\d+)', experiment['__doc__'])
      figures.append(BEYOND)
      named = {name: claim for name, claim in NAMED.items() if claim.figure in figures}
      found |= {name for name, claim in named.items() if is_about(claim, evidence)}
  assert found == NAMED.keys()


def test_every_claim_has_its_cases():
  assert NAMED.keys() == CASES.keys()


@pytest.mark.parametrize('name', NAMED)
def test_claim_holds_where_it_should(name):
  points, holds, _ = CASES[name]
  found = verdict(name, *results_of(points, holds))
  assert (found.verdict, found.reason) == (HOLDS, '')
  assert NAMED[name].holds.met(found.effect)
  assert 0 < found.n <= len(points)
  assert np.isnan([found.low, found.high]).all()  # one seed


@pytest.mark.parametrize('name', NAMED)
def test_claim_does_not_hold_where_it_should_not(name):
  points, _, fails = CASES[name]
  found = verdict(name, *results_of(points, fails))
  assert (found.verdict, found.reason) == (DOES_NOT_HOLD, '')
  assert not NAMED[name].holds.met(found.effect)


def test_runs_in_which_somebody_stepped_in_are_not_judged():
  points = hyper.product([QK, hyper.sweep('control.on_alarm', ['none', 'policy'])])

  def loss(c):  # unstable at the highest rate but for the policy
    saved = c['control.on_alarm'] == 'policy' or c['model.qk_norm'] != 'none'
    return 4.0 if c['optimizer.learning_rate'] == 1.0 and not saved else 2.0

  found = verdict('2a', *results_of(points, World(loss)))
  assert (found.verdict, found.n) == (HOLDS, len(points) // 4)


@pytest.mark.parametrize('name', NAMED)
def test_claim_is_undecided_while_a_run_that_it_reads_is_missing(name):
  points, holds, _ = CASES[name]
  results, curves = results_of(points, holds)
  for run in narrow(NAMED[name], Evidence.of(results, curves)).runs.index[[0, -1]]:
    for status in ('missing', 'failed', 'stopped'):
      runs = results.runs.copy()
      runs.loc[run, ['status', 'final_loss']] = status, np.nan
      found = verdict(name, results_lib.Results(runs, results.groups, results.sizes), curves)
      assert (found.verdict, found.effect) == (UNDECIDED, pytest.approx(np.nan, nan_ok=True))
      assert found.reason == f'1 of {found.n} runs {status}'


@pytest.mark.parametrize('name', [name for name, claim in NAMED.items() if claim.probes])
def test_claim_is_undecided_without_its_probes(name):
  points, holds, _ = CASES[name]
  results, curves = results_of(points, holds)
  found = verdict(name, results, curves[['run', 'step', 'loss']])
  assert found.verdict == UNDECIDED and 'was not logged' in found.reason and found.n > 0
  found = verdict(name, results, None)
  assert found.verdict == UNDECIDED and found.n == 0
  some = curves['run'].isin(results.runs['run'].iloc[1::2])
  curves.loc[some, curves.columns.drop(['run', 'step', 'loss'])] = np.nan
  found = verdict(name, results, curves)
  assert found.verdict == UNDECIDED and 'was not logged in ' in found.reason


def test_no_claim_is_about_a_single_run():
  table = registry.judge_results(*results_of([{}], World(worlds.flat)))
  assert set(table['verdict']) == {UNDECIDED} and set(table['n']) == {0}
  assert (table['reason'] != '').all()


def test_no_claim_comes_out_on_a_sweep_that_has_not_begun():
  results, _ = results_of(QK, World(worlds.flat))
  runs = results.runs.assign(status='missing', final_loss=np.nan, initial_loss=np.nan)
  table = registry.judge_results(results_lib.Results(runs, results.groups, results.sizes))
  assert set(table['verdict']) == {UNDECIDED}


def two_seeds(other_seed):
  """LR sensitivity without qk-norm over that with it: 2 in the first seed, else as it says."""
  points = hyper.product([QK, hyper.sweep('seed', [0, 1])])

  def steep(c):
    return 0.1 * (1 if c['model.qk_norm'] != 'none' else other_seed if c['seed'] else 2.0)

  return results_of(points, World(lambda c: worlds.bowl(c, steep(c))))


def test_interval_is_over_whole_seeds():
  found = verdict('1a', *two_seeds(3.0))
  # The seeds have 2 and 3, their mean 2.5; each alone is drawn in a quarter of the draws.
  assert (found.low, found.effect, found.high) == pytest.approx((2.0, 2.5, 3.0))
  assert found.verdict == HOLDS


@pytest.mark.parametrize('other_seed, expected', [(1.0, UNDECIDED), (1.2, HOLDS)])
def test_claim_is_undecided_if_the_seeds_disagree(other_seed, expected):
  found = verdict('1a', *two_seeds(other_seed))
  assert found.verdict == expected
  assert found.effect == pytest.approx(1 + other_seed / 2)
  assert ('interval' in found.reason) == (expected == UNDECIDED)


def test_effects_are_what_they_are_called():
  def effect(name):
    return verdict(name, *results_of(CASES[name][0], CASES[name][1])).effect

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


def test_swept_interventions_that_a_claim_does_not_name_are_held_at_the_paper_s_value():
  points = hyper.product([QK, hyper.sweep('optimizer.eps', [1e-8, 1e-3])])

  def steep(c):
    return 0.2 if c['model.qk_norm'] == 'none' and c['optimizer.eps'] == 1e-8 else 0.1

  found = verdict('1a', *results_of(points, World(lambda c: worlds.bowl(c, steep(c)))))
  assert (found.verdict, found.effect, found.n) == (HOLDS, pytest.approx(2.0), len(QK))


def test_a_sequence_length_that_changes_the_batch_says_nothing_of_the_batch():
  points, holds, _ = CASES['beyondl']
  found = verdict('E.9a', *results_of(points, holds))
  assert (found.verdict, found.n) == (UNDECIDED, 0)
  assert found.reason == 'the sweep varies data.sequence_length as well'


def test_a_sequence_length_is_judged_with_as_many_tokens_a_step():
  points = [p | {'data.batch_size': 16} for p in CASES['beyondl'][0]]
  found = verdict('beyondl', *results_of(points, CASES['beyondl'][1]))
  assert (found.verdict, found.n) == (UNDECIDED, 0)
  assert found.reason == 'the tokens of a step differ with the sequence length'


def test_those_without_a_value_of_the_paper_are_compared_like_with_like():
  points = hyper.product([QK, hyper.sweep('data.seed', [0, 1])])

  def steep(c):
    return (0.15 if c['data.seed'] else 0.2) if c['model.qk_norm'] == 'none' else 0.1

  found = verdict('1a', *results_of(points, World(lambda c: worlds.bowl(c, steep(c)))))
  assert (found.effect, found.n) == (pytest.approx(1.5), 2 * len(QK))  # the lower of both


def test_a_batch_size_that_changes_the_steps_says_nothing_of_the_steps():
  points, holds, _ = CASES['E.9a']
  found = verdict('E.7a', *results_of(points, holds))
  assert (found.verdict, found.n) == (UNDECIDED, 0)
  assert found.reason == 'the sweep varies data.batch_size as well'


def test_claims_of_size_and_rate_alone_are_not_about_sweeps_of_other_things():
  points, holds, _ = CASES['5a']
  results, curves = results_of(points, holds)
  for name in ('11a', '11b', 'C.1a', 'C.1b', 'E.12a', 'E.12b', 'E.13a', 'E.13b'):
    found = verdict(name, results, curves)
    assert (found.n, found.reason) == (0, 'the sweep varies schedule.warmup_steps as well')


def test_a_probe_after_the_warm_up_is_that_of_the_first_step_measured_from_there():
  points = hyper.sweep('schedule.warmup_steps', [5, 60, 61, 500])
  results, curves = results_of(points, World(worlds.flat, {'log_z': (1.0, 2.0)}))
  curves['log_z'] = curves['step'].astype(float)
  found = Evidence.of(results, curves).after_warmup('log_z')
  assert list(found) == [20, 60, 100, 500]


@pytest.mark.parametrize(
    'name', [name for name, claim in NAMED.items() if isinstance(claim.holds, MoreThan)]
)
def test_nothing_is_better_where_all_are_alike(name):
  points, _, _ = CASES[name]
  found = verdict(name, *results_of(points, worlds.best(lambda c: 2.0)))
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, pytest.approx(0.0, abs=1e-9))


@pytest.mark.parametrize(
    'name, world, reason',
    [
        ('E.5a', World(worlds.flat), 'no run at all diverged'),
        ('8a', worlds.steep(lambda c: 0.1), 'does not change either'),
        ('E.4b', worlds.steep(lambda c: 0.1), 'does not change either'),
        ('E.14a', worlds.steep(lambda c: 0.1), 'does not change either'),
        # Unstable with z-loss as well: it is none of the output logits'.
        ('4c', World(worlds.cliff, curve=worlds.late(0.5)), 'z-loss cures'),
        ('E.13b', World(worlds.flat, claim_cases.update(1.0)), 'are 1000 times eps there'),
    ],
)
def test_without_a_contrast_a_claim_is_undecided(name, world, reason):
  found = verdict(name, *results_of(CASES[name][0], world))
  assert found.verdict == UNDECIDED and found.n > 0 and reason in found.reason


def test_full_muparam_that_diverges_alone_is_not_excused():
  def loss(c):
    return 6.0 if worlds.highest(c) and c['parameterization.name'] == 'muparam_full' else 2.0

  found = verdict('E.5a', *results_of(CASES['E.5a'][0], World(loss)))
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, 1.0)


def test_slopes_of_two_signs_are_no_flat_line():
  points, _, _ = CASES['C.1a']

  def rms(c):  # falls with size at low learning rates, rises at high ones
    return 1.0, worlds.size(c) ** (0.5 if worlds.rate(c) > 0.05 else -0.5)

  probes = {f'block_{block}/output_rms': rms for block in range(3)}
  found = verdict('C.1a', *results_of(points, World(worlds.flat, probes)))
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, pytest.approx(0.5, rel=0.05))


def test_a_warm_up_that_moves_by_itself_is_not_laid_to_the_steps():
  points = hyper.product([
      worlds.sweep('schedule.steps', 250, 500),
      worlds.sweep('schedule.warmup_steps', 25, 50),
      worlds.RATES,
  ])
  found = verdict('E.7a', *results_of(points, CASES['E.7a'][1]))
  assert (found.verdict, found.n) == (UNDECIDED, 0)
  assert found.reason == 'the sweep varies schedule.warmup_steps as well'


def test_the_paper_s_own_prediction_comes_out():
  """One run of 4.8B at 1e-2, whose logits are foretold past 1e4, as configs/qk_layernorm.py has."""
  experiment = runpy.run_path(str(ROOT / 'configs/qk_layernorm.py'))
  points, config = experiment['get_sweep']('paper'), experiment['get_config']('paper').to_dict()
  largest = max(width for point in points if (width := point.get('model.width')))

  def foretold(broke):
    def loss(c):
      return 5.4 if broke and c['model.width'] == largest else worlds.flat(c)

    def logit(c):  # 1e4 is first passed at 4.8B
      parameters = 12 * c['model.depth'] * c['model.width'] ** 2
      return (10.0 * (parameters / 1e6) ** 0.85,) * 2

    results, curves = results_of(points, World(loss, {results_lib.LOGIT: logit}), config)
    return verdict('9d', results, curves.assign(step=200 * curves['step']))

  assert (foretold(True).verdict, foretold(True).effect) == (HOLDS, 1.0)
  assert foretold(False).verdict == DOES_NOT_HOLD


def test_at_a_rate_at_which_smaller_sizes_have_broken_nothing_is_foretold():
  points, holds, _ = CASES['9d']
  found = verdict('9d', *results_of(points, World(holds.loss, {results_lib.LOGIT: (1e5, 1e5)})))
  assert found.verdict == UNDECIDED and 'the first past 1e4' in found.reason


def test_the_paper_s_reading_of_logits_is_that_of_its_step_2000():
  points = hyper.sweep('schedule.steps', [50_000, 100_000])
  points = hyper.product([points, hyper.sweep('schedule.warmup_steps', [5_000])])
  results, curves = results_of(points, World(worlds.flat, {'log_z': (1.0, 2.0)}))
  curves['step'] *= 100
  curves['log_z'] = curves['step'].astype(float)
  assert list(Evidence.of(results, curves).after_warmup('log_z')) == [6_000, 2_000]


def test_what_breaks_is_asked_where_it_is_foretold_whatever_was_measured_there():
  """Foretold past 1e4, but measured far below; and foretold below."""
  points, holds, _ = CASES['9d']
  below = World(holds.loss, claim_cases.steep_logits(1e-3))
  found = verdict('9d', *results_of(points, below))
  assert (found.verdict, found.effect) == (HOLDS, 1.0)
  results, curves = results_of(points, holds)
  curves[results_lib.LOGIT] /= 100
  found = verdict('9d', results, curves)
  assert found.verdict == UNDECIDED and 'the first past 1e4' in found.reason


def test_shapes_that_grow_in_several_ways_say_nothing_of_size_alone():
  points, holds, _ = CASES['C.1c']
  results, curves = results_of(points, holds)
  for name in ('1b', '1c', '9c', '11a', 'C.1a'):
    found = verdict(name, results, curves)
    assert (found.n, found.reason) == (0, 'the sweep grows in more than one way')


def test_growing_in_width_and_depth_at_once_is_neither_alone():
  shapes = hyper.zipit(
      [hyper.sweep('model.width', [16, 32, 64, 96]), hyper.sweep('model.depth', [1, 3, 5, 7])]
  )
  points = hyper.product([shapes, worlds.BOTH_QK, worlds.RATES])
  results, curves = results_of(points, World(worlds.flat))
  for name in ('7a', '7b', 'E.2a', 'E.3a', 'C.1c'):
    found = verdict(name, results, curves)
    assert found.n == 0 and 'shapes that grow in' in found.reason


def test_an_optimum_at_the_end_of_the_grid_decides_nothing():
  points, _, _ = CASES['8a']
  found = verdict('8a', *results_of(points, worlds.centred(lambda c: 1.0)))
  assert found.verdict == UNDECIDED and 'first or the last' in found.reason


def test_windows_of_learning_rates_reach_the_claims():
  points, _, _ = CASES['6a']
  kind = 'optimizer.weight_decay_kind'

  def loss(c):  # the coupled kind suffers at the highest learning rate alone
    return 4.0 if c[kind] == 'coupled' and worlds.highest(c) else worlds.bowl(c)

  def judged(windows):
    report = {'windows': [{'where': {kind: 'coupled'}, 'windows': windows}]}
    return verdict('6a', *results_of(points, World(loss), **report))

  assert judged([[1e-3, 1.0]]).verdict == HOLDS
  # Over 1e-3, 1e-2 and 1e-1 it is (0.1 + 0 + 0.1) / 3, that of the other (0.1 + 0 + 0.1 + 0.4) / 4.
  found = judged([[1e-3, 1e-1], [1e-2, 1.0]])
  assert (found.verdict, found.effect) == (DOES_NOT_HOLD, pytest.approx((0.2 / 3) / (0.6 / 4)))


def test_what_is_not_comparable_decides_no_claim_on_lr_sensitivity():
  points, holds, _ = CASES['1a']
  found = verdict('1a', *results_of(points, holds, not_comparable='model.qk_norm'))
  assert found.verdict == UNDECIDED and 'not comparable: model.qk_norm' in found.reason
  points, holds, _ = CASES['E.14a']
  scale = 'optimizer.learning_rate_scale'
  assert verdict('E.14a', *results_of(points, holds, not_comparable=scale)).verdict == HOLDS


def test_a_size_with_a_single_learning_rate_is_no_size_without_lr_sensitivity():
  points, holds, _ = CASES['1b']
  alone = [{'model.width': 128, 'model.qk_norm': 'none', 'optimizer.learning_rate': 1e-2}]
  found = verdict('1b', *results_of(points + alone, holds))
  assert (found.verdict, found.effect) == (HOLDS, pytest.approx(0.25))


def test_table_is_in_the_order_of_figures_and_survives_its_file(tmp_path):
  table = registry.judge_results(*results_of(QK, CASES['1a'][1]))
  assert list(table) == [
      'figure', 'claim', 'verdict', 'effect', 'low', 'high', 'threshold', 'measure', 'n', 'reason'
  ]  # fmt: skip
  order = list(dict.fromkeys(table['figure']))
  of_appendix = [f'E.{number}' for number in range(1, 16)]
  assert order == [*map(str, range(1, 14)), 'C.1', *of_appendix, BEYOND]
  assert table.loc[0, ['verdict', 'threshold', 'n']].to_list() == [HOLDS, '>= 1.1', len(QK)]
  table.to_csv(tmp_path / 'claims.csv', index=False)
  pd.testing.assert_frame_equal(registry.read(tmp_path / 'claims.csv'), table)


def test_only_the_probes_of_claims_about_the_sweep_are_loaded():
  results, _ = results_of(QK, World(worlds.flat))
  wanted = registry.probes(results)
  assert 'block_2/attention_logit_max' in wanted and 'block_0/query_norm' in wanted
  assert 'block_3/output_rms' not in wanted and 'log_z' not in wanted
  assert len(wanted) == len(set(wanted))
  assert registry.probes(results_of([{}], World(worlds.flat))[0]) == []
