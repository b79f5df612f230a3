"""Several sweeps as one, and differences between them over pairs of runs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import made_up
from helpers import simulated_sweeps as sim
from helpers.simulated_sweeps import QK, RATES, WIDTHS, grid, simulate, sweep

import stability
from stability import hyper
from stability.analysis import comparison, lr_sensitivity, several_sweeps
from stability.analysis.results import Results
from stability.errors import BadInput
from stability.report import comparison_page
from stability.report.options import Options
from stability.storage import files, sweeps

QK_NORM, SMALL = 'model.qk_norm', {'widths': (16,), 'seeds': (0,), 'rates': (1e-2, 1e-1)}


def joined(**parts):
  """Simulated sweeps as `load` joins them; each part is (points, outcomes)."""
  frames, groups = [], ['sweep']
  for name, (points, outcomes) in parts.items():
    results = simulate(points, outcomes)[0]
    frames.append(results.runs.assign(sweep=name))
    groups += [field for field in results.groups if field not in groups]
  runs = pd.concat(frames, ignore_index=True)
  return Results(runs, groups, ['model.width'], sweeps=tuple(parts))


def bowl(steep=0.1, better=0.0):
  return sim.Outcomes(lambda c: sim.bowl(c, steep=steep, best=2.0 - better))


def test_differences_are_paired():
  """Seeds differ by far more than sweeps; pairs show the difference exactly."""
  points = grid(WIDTHS[:2], RATES, sweep('seed', 0, 1, 2))

  def loss(better):
    return sim.Outcomes(lambda c: sim.bowl(c) + 0.2 * c['seed'] - better)

  found = several_sweeps.differences(joined(a=(points, loss(0.0)), b=(points, loss(0.01))))
  assert found.unpaired == {}
  row = found.table.iloc[0]
  assert (row['sweep'], row['reference'], row['parameters']) == ('b', ('a',), 9216)
  assert (row['learning_rates'], row['seeds'], row['pairs']) == (4, 3, 12)
  for name in ('mean_loss', 'best_loss'):
    ends = [row[column] for column in (name, f'{name}_low', f'{name}_high')]
    assert ends == pytest.approx([-0.01] * 3)
  assert row['lr_sensitivity'] == pytest.approx(0)


# Of intervals over two seeds: Student's t over the normal quantile, times sqrt(2).
STRETCH = 6.313752 / 1.644854 * 2**0.5


def test_intervals_are_over_seeds():
  """At the level of the results, and for seeds that disagree."""
  points = grid(WIDTHS[:1], RATES, sweep('seed', 0, 1))
  disagree = sim.Outcomes(lambda c: sim.bowl(c) + {0: -0.1, 1: 0.3}[c['seed']])
  results = joined(a=(points, bowl()), b=(points, disagree))
  reach = 0.2 * STRETCH
  for interval, ends in ((0.9, (0.1 - reach, 0.1 + reach)), (0.2, (0.1, 0.1))):
    row = several_sweeps.differences(dataclasses.replace(results, interval=interval)).table.iloc[0]
    found = row[['best_loss', 'best_loss_low', 'best_loss_high']].tolist()
    assert found == pytest.approx([0.1, *ends])


def test_further_seeds_at_a_rate_change_no_difference():
  """Their higher losses would make the best rate of the flatter arm another one."""
  one = grid(WIDTHS[:1], RATES, sweep('seed', 0))
  more = grid(WIDTHS[:1], RATES[1:2], sweep('seed', 1))

  def found(points):
    parts = {
        name: (points, sim.Outcomes(lambda c, s=s: sim.bowl(c, steep=s) + 0.2 * c['seed']))
        for name, s in (('a', 0.01), ('b', 0.1))
    }
    return several_sweeps.differences(joined(**parts)).table.iloc[0][list(several_sweeps.NUMBERS)]

  assert found([*one, *more]).tolist() == pytest.approx(found(one).tolist())


def test_intervals_of_sensitivity_reach_as_far_down_as_up():
  points = grid(WIDTHS[:1], RATES, sweep('seed', 0, 1, 2))
  noisy = sim.Outcomes(lambda c: 2 + np.random.default_rng(
      [c['seed'], round(1e4 * sim.rate(c))]).normal(0, 0.02))  # fmt: skip
  row = several_sweeps.differences(joined(a=(points, bowl()), b=(points, noisy))).table.iloc[0]
  ends = row[['lr_sensitivity_low', 'lr_sensitivity_high']].tolist()
  assert np.mean(ends) == pytest.approx(row['lr_sensitivity'])


def test_differences_of_the_curve():
  found = several_sweeps.differences(
      joined(a=(grid(WIDTHS[:1], RATES), bowl(0.1)), b=(grid(WIDTHS[:1], RATES), bowl(0.2, 0.5)))
  )
  row = found.table.iloc[0]
  # bowl is steep * (1, 0, 1, 4) above its best
  assert row[['mean_loss', 'best_loss', 'lr_sensitivity']].tolist() == pytest.approx(
      [0.1 * 6 / 4 - 0.5, -0.5, 0.1 * 6 / 4]
  )
  assert np.isnan(row['lr_sensitivity_low'])  # one seed


def test_only_cells_that_both_have():
  several = grid(WIDTHS[:1], RATES, sweep('seed', 0, 1))
  fewer = grid(WIDTHS[:1], RATES[1:], sweep('seed', 1, 2))
  results = joined(a=(several, bowl()), b=(fewer, bowl(0.3)))
  chosen = (results.runs['sweep'] == 'b') & (results.runs['learning_rate'] == 1.0)
  results.runs.loc[chosen, 'status'] = 'failed'
  row = several_sweeps.differences(results).table.iloc[0]
  assert (row['learning_rates'], row['seeds'], row['pairs']) == (2, 1, 2)
  assert row['mean_loss'] == pytest.approx(0.2 * (0 + 1) / 2)


def test_same_arm_or_else_the_baseline():
  of_a, of_b = QK[:8], grid(WIDTHS[:1], sweep(QK_NORM, 'none', 'l2'), RATES)
  results = joined(a=(of_a, bowl()), b=(of_b, bowl()))
  assert comparison.baseline(results).iloc[0].to_dict() == {'sweep': 'a', QK_NORM: 'layernorm'}
  table = several_sweeps.differences(results).table
  pairs = dict(zip(table[QK_NORM], table['reference'], strict=True))
  assert pairs == {'none': ('a', 'none'), 'l2': ('a', 'layernorm')}


def test_baseline_is_of_the_first_sweep():
  """Even if another one is closer to the paper."""
  first = grid(WIDTHS[:1], sweep(QK_NORM, 'none'), RATES)
  second = grid(WIDTHS[:1], sweep(QK_NORM, 'layernorm'), RATES)
  results = joined(a=(first, bowl()), b=(second, bowl()))
  assert comparison.baseline(results)['sweep'].item() == 'a'


@pytest.mark.parametrize(
    ('points', 'reason'),
    [
        (grid(WIDTHS[1:], RATES), 'size'),
        (grid(WIDTHS[:1], sweep('optimizer.learning_rate', 2e-3, 2e-2)), 'learning rate'),
        (grid(WIDTHS[:1], RATES, sweep('seed', 1, 2)), 'seed'),
        (grid(WIDTHS[:1], RATES), 'finished run'),
    ],
)
def test_what_sweeps_without_pairs_lack(points, reason):
  whole = (grid(WIDTHS[:1], RATES), bowl())
  results = joined(a=whole, b=(points, bowl()), c=whole)
  if reason == 'finished run':
    results.runs.loc[results.runs['sweep'] == 'b', 'status'] = 'failed'
  found = several_sweeps.differences(results)
  assert found.unpaired == {'b': reason} and set(found.table['sweep']) == {'c'}


def test_windows_and_rates_that_are_not_comparable():
  parts = {name: (grid(WIDTHS[:1], RATES), bowl(s)) for name, s in (('a', 0.1), ('b', 0.2))}
  results = joined(**parts)
  windows = [{'where': {'sweep': 'b'}, 'windows': [(1e-2, 1e-1)]}]
  row = several_sweeps.differences(dataclasses.replace(results, windows=windows)).table.iloc[0]
  assert row['lr_sensitivity'] == pytest.approx(0.2 / 2 - 0.1 * 6 / 4)
  results = dataclasses.replace(results, not_comparable='optimizer.name')
  row = several_sweeps.differences(results).table.iloc[0]
  assert np.isnan(row['lr_sensitivity']) and row['best_loss'] == pytest.approx(0)


def test_field_that_the_first_sweep_does_not_set():
  field = 'parallel.microbatches'
  of_b = grid(WIDTHS[:1], sweep(field, 1, 2), RATES)
  results = joined(a=(grid(WIDTHS[:1], RATES), bowl(0.1)), b=(of_b, bowl(0.2)))
  table = lr_sensitivity.lr_sensitivity(results)
  compared = comparison.compare(results, table)
  assert compared['is_baseline'].tolist() == [True, False, False]
  assert compared['ratio'].tolist()[1:] == pytest.approx([2, 2])
  assert several_sweeps.differences(results).table[field].tolist() == [1, 2]


# Sweeps on disk.


def change(workdir, field, value, **data):
  """Changes a field of all runs of a sweep, and its data."""
  found = sweeps.read_sweep(workdir)
  section, name = field.split('.')
  for config in found.runs.values():
    config[section][name] = value
  sweeps.write_sweep(workdir, dataclasses.replace(found, data=found.data | data))


@pytest.fixture
def workdirs(tmp_path):
  found = {name: tmp_path / name for name in ('a', 'b')}
  for workdir in found.values():
    made_up.write_sweep(workdir, **SMALL)
  return found


def differing(workdirs):
  contents = {name: sweeps.read_sweep(workdir) for name, workdir in workdirs.items()}
  return several_sweeps.differing(several_sweeps.load(workdirs), contents)


def test_load(workdirs):
  results = several_sweeps.load(workdirs)
  assert results.groups == ['sweep', QK_NORM] and results.sweeps == ('a', 'b')
  assert results.runs['run'].is_unique and len(results.runs) == 8
  table = lr_sensitivity.lr_sensitivity(results)
  assert list(table['sweep']) == ['a', 'a', 'b', 'b']
  curves = several_sweeps.load_curves(workdirs, ['gradient_norm'])
  assert set(curves['run']) == set(results.runs['run'])
  assert curves['run'].dtype == 'category' and len(curves) == 8 * 30


def test_arms_keep_places_controls_and_what_acted(tmp_path):
  bare = {'model.qk_norm': 'none'}
  workdirs = {}
  for name, report in (
      ('theirs', {'places': {'bare': 'attention'}, 'controls': {'bare': 'worse'}}),
      ('mine', {'places': {'bare': 'other', 'again': 'seed'}}),
  ):
    workdirs[name] = tmp_path / name
    arms = [{'arm': 'AdamW'}, {'arm': 'bare', **bare}, {'arm': 'again', 'optimizer.eps': 1e-9}]
    made_up.write_sweep(workdirs[name], interventions=arms, **SMALL | {'rates': (1e-3, 1e-2, 1e-1)})
    sweep = files.read_json(workdirs[name] / 'sweep.json')
    files.write_json(workdirs[name] / 'sweep.json', sweep | {'report': report})
  results = several_sweeps.load(workdirs)
  assert results.places == {'bare': 'attention', 'again': 'seed'}
  assert results.controls == {'bare': 'worse'}
  compared = comparison_page.compare(workdirs, Options(figures=('leaderboard_front',)))
  acted = comparison_page._acted(compared)
  shares = results.runs.merge(acted, on='run').groupby('arm')['share'].agg(['mean', 'size'])
  assert shares['mean'].to_dict() == {'AdamW': 0, 'again': 0, 'bare': 1}
  assert set(shares['size']) == {6}
  output = tmp_path / 'page'
  comparison_page.write_comparison(compared, output, Options(figures=('leaderboard_front',)))
  table = pd.read_csv(output / 'leaderboard.csv').set_index('arm')
  assert table['control'].dropna().to_dict() == {'theirs, bare': 'worse', 'mine, bare': 'worse'}


def test_sweeps_over_different_fields(workdirs, tmp_path):
  """Each field that one of them varies is an intervention of both."""
  eps = hyper.sweep('optimizer.eps', [1e-8, 1e-6])
  made_up.write_sweep(tmp_path / 'c', interventions=eps, **SMALL)
  results = several_sweeps.load({'a': workdirs['a'], 'c': tmp_path / 'c'})
  assert results.groups == ['sweep', QK_NORM, 'optimizer.eps']
  assert results.runs[results.groups].notna().all(axis=None)


def test_equal_configs_do_not_differ(workdirs):
  assert differing(workdirs) == {}


def test_what_configs_differ_in(workdirs):
  change(workdirs['b'], 'schedule.steps', 400)
  found = differing(workdirs)
  assert found['schedule.steps'][1] == [400] and list(found) == ['schedule.steps']


def test_data_are_compared_by_their_tokens(workdirs):
  change(workdirs['a'], 'data.path', 'x.txt', sha256={'train': 'a' * 64, 'validation': 'v' * 64})
  change(workdirs['b'], 'data.path', 'y.txt', sha256={'train': 'a' * 64, 'validation': 'v' * 64})
  assert differing(workdirs) == {}
  change(workdirs['b'], 'data.path', 'y.txt', sha256={'train': 'b' * 64, 'validation': 'v' * 64})
  assert differing(workdirs) == {'train tokens, SHA-256': [['aaaaaaaa'], ['bbbbbbbb']]}


def test_numbers_of_another_trainer_that_were_rounded(tmp_path):
  """Learning rates and settings that were logged through float32 are paired with exact ones."""
  rates = [1e-3, 10**-2.5, 1e-2]
  runs = pd.DataFrame({
      'learning_rate': rates + rates, 'optimizer.eps': [1e-8] * 3 + [1e-6] * 3,
      'final_loss': [3.0, 2.9, 3.1, 3.2, 3.1, 3.3], 'parameters': 10_000_000,
  })  # fmt: skip
  rounded = runs.copy()
  for name in ('learning_rate', 'optimizer.eps'):
    rounded[name] = rounded[name].astype(np.float32).astype(float)
  workdirs = {}
  for name, of_name in {'a': runs, 'b': rounded}.items():
    workdirs[name] = tmp_path / name
    stability.from_frames(of_name, initial_loss=10.0, workdir=workdirs[name])
  found = several_sweeps.differences(several_sweeps.load(workdirs))
  assert found.table['learning_rates'].tolist() == [3, 3]
  assert [reference[1] for reference in found.table['reference']] == [1e-8, 1e-6]


def test_close_numbers_of_one_sweep_stay_apart():
  values, sweep = pd.Series([1e-3, 1.000001e-3, 1e-3]), pd.Series(['a', 'a', 'b'])
  assert several_sweeps._same_numbers(values, sweep).equals(values)


def test_sweep_without_results(workdirs, tmp_path):
  made_up.write_sweep(tmp_path / 'c', leave_out=(0, 1, 2, 3), **SMALL)
  with pytest.raises(BadInput, match='c: none of its runs has finished; leave it out'):
    several_sweeps.load({**workdirs, 'c': tmp_path / 'c'})
