"""The leaderboard of a made-up sweep whose true answers are known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import special

from stability.analysis.leaderboard import controls, front
from stability.analysis.leaderboard import table as table_lib
from stability.analysis.results import Results

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
INITIAL = 6.0
# Best loss, slope per decade, rate from which nothing is learned, best rate.
ARMS = {
    'AdamW': (2.0, 0.2, np.inf, 1e-2),
    'wide': (2.0, 0.08, np.inf, 1e-2),
    'better': (1.9, 0.2, 1e-1, 1e-2),
    'bad': (2.3, 0.3, 3e-2, 1e-2),
    'shifted': (2.0, 0.2, np.inf, 3e-3),
}


def rows(name, arm, parameters=1000, seeds=(0,), rates=RATES, noise=0.0, **fields):
  best, slope, cliff, best_rate = arm
  for seed in seeds:
    rng = np.random.default_rng([seed, len(name)])
    shift = 0.03 * seed + noise * rng.normal()  # the effect of the seed, and of the run
    for rate in rates:
      loss = best + slope * abs(np.log10(rate / best_rate)) + shift
      is_over = rate >= cliff
      yield {
          'run': f'{name} {parameters} {rate} {seed}', 'arm': name, 'parameters': parameters,
          'status': 'diverged' if is_over else 'done', 'learning_rate': rate,
          'seed': seed, 'initial_loss': INITIAL, 'final_loss': np.nan if is_over else loss,
          'seconds': 10.0, 'steps': 100,
      } | fields  # fmt: skip


def results_of(*parts, **options):
  runs = pd.DataFrame([row for part in parts for row in part])
  return Results(runs.astype({'parameters': 'Int64'}), ['arm'], [], **options)


def leaderboard(*parts, acted=table_lib._NO_ROWS, costs=None, **options):
  table = table_lib.leaderboard(results_of(*parts, **options), acted, costs)
  return table.set_index('arm')


def test_one_seed():
  found = leaderboard(*(rows(name, arm) for name, arm in ARMS.items()))
  assert list(found.index) == list(ARMS)
  assert found.loc['AdamW', 'is_baseline'] and not found['is_baseline'].iloc[1:].any()
  assert found['best_loss'].to_dict() == pytest.approx(
      {'AdamW': 2.0, 'wide': 2.0, 'better': 1.9, 'bad': 2.3, 'shifted': 2.0}
  )
  # 3e-3 is no grid point at exactly half a decade, so the vertex is a little off the optimum.
  log_rates = np.log10(found['best_learning_rate'])
  assert log_rates['shifted'] - log_rates['AdamW'] == pytest.approx(-0.5, abs=0.1)
  assert found.loc['AdamW', 'width_05'] == pytest.approx(0.5)
  assert found.loc['wide', 'width_05'] == pytest.approx(1.25)
  assert found.loc['wide', 'critical_learning_rate'] == pytest.approx(3e-1)
  assert 'headroom>=' in found.loc['wide', 'censored']
  assert found.loc['AdamW', 'censored'] == ''
  # Lowest loss: better. Highest headroom: wide. AdamW is behind wide in headroom alone.
  assert found.index[found['front']].tolist() == ['wide', 'better']
  assert (found['loss_verdict'] == '').all() and (found['headroom_verdict'] == '').all()
  assert 'best_loss_low' not in found and (found['seeds'] == 1).all()
  assert (found['missing'] == 0).all() and not found['inert'].any()


def test_one_initial_loss_for_all_arms():
  """An arm with another head starts lower; a diverged run of it counts no less."""
  lower = list(rows('bad', ARMS['bad'], initial_loss=5.0))
  found = leaderboard(rows('AdamW', ARMS['AdamW']), lower, rows('usual', ARMS['bad']))
  for column in ('lr_sensitivity', 'critical_learning_rate', 'loss_at_10x'):
    assert found.loc['bad', column] == pytest.approx(found.loc['usual', column])


def test_arms_have_windows_of_their_own():
  """The same curve at a hundredth of the rates has the same numbers but for the rates."""
  lower = [row | {'learning_rate': row['learning_rate'] / 100} for row in rows('L', ARMS['AdamW'])]
  found = leaderboard(rows('AdamW', ARMS['AdamW']), lower)
  assert 100 * found.loc['L', 'best_learning_rate'] == pytest.approx(
      found.loc['AdamW', 'best_learning_rate']
  )
  for column in ('headroom', 'lr_sensitivity', 'width_10', 'loss_at_3x'):
    assert found.loc['L', column] == pytest.approx(found.loc['AdamW', column])


def test_regret_is_that_of_the_rate_of_the_smallest_size():
  small, large = ARMS['AdamW'], (1.8, 0.2, np.inf, 3e-3)
  results = results_of(rows('AdamW', large, 4000), rows('AdamW', small, 1000))
  found = table_lib.leaderboard(results)
  assert found['parameters'].tolist() == [1000, 4000]
  assert np.isnan(found['regret'][0])
  assert found['regret'][1] == pytest.approx(0.2 * np.log10(1e-2 / 3e-3))


def seeded(noise, seeds=(1, 2, 3, 4, 5), again=(11, 12, 13, 14, 15)):
  """Five arms, an equal one, and the baseline under other seeds."""
  parts = [rows(name, arm, seeds=seeds, noise=noise) for name, arm in ARMS.items()]
  parts.append(rows('equal', ARMS['AdamW'], seeds=seeds, noise=noise))
  control = [row | {'final_loss': row['final_loss'] - 0.3} for row in rows(
      'AdamW again', ARMS['AdamW'], seeds=again, noise=noise)]  # fmt: skip
  return leaderboard(*parts, control, controls={'bad': 'worse', 'AdamW again': 'tie'})


def test_further_seeds_at_a_rate_change_nothing():
  """launch.next adds them; seeds differ by 0.03, which would move the critical rate."""
  one = [*rows('AdamW', ARMS['AdamW'])]
  more = [*rows('AdamW', ARMS['AdamW'], seeds=(4, 5, 6), rates=(1e-1,))]
  columns = ['best_loss', 'critical_learning_rate', 'headroom', 'lr_sensitivity', 'width_10']
  alone, found = leaderboard(one).iloc[0], leaderboard(one, more).iloc[0]
  assert found[columns].tolist() == pytest.approx(alone[columns].tolist())
  assert found['seeds'] == 4 and np.isnan(found['headroom_low'])


def test_verdicts():
  found = seeded(0.002)
  assert found['loss_verdict'].to_dict() == {
      'AdamW': '', 'wide': 'tie', 'better': 'better', 'bad': 'worse', 'shifted': 'tie',
      'equal': 'tie', 'AdamW again': 'undecided',  # seeds differ by 0.05, more than the band
  }  # fmt: skip
  rooms = found['headroom_verdict'].to_dict()
  # That of wide is a lower bound, and better all the same; those with a cliff are worse.
  assert rooms | {'shifted': ''} == {
      'AdamW': '', 'wide': 'better', 'better': 'worse', 'bad': 'worse', 'shifted': '',
      'equal': 'tie', 'AdamW again': 'tie',
  }  # fmt: skip
  assert found.loc['better', 'loss_difference'] == pytest.approx(-0.1, abs=0.003)
  assert found.loc['better', 'loss_difference_low'] < -0.1 + 0.003
  assert found.loc['bad', 'headroom_ratio_high'] < 1
  # Of seeds that are 0.03, 0.06 ... 0.15 above 2.
  assert 2.04 < found.loc['AdamW', 'best_loss_low'] < 2.09 < found.loc['AdamW', 'best_loss_high']
  assert found.loc['AdamW', 'headroom_low'] <= found.loc['AdamW', 'headroom']
  assert found['control'].to_dict()['bad'] == 'worse'


def of_losses(name, losses, rates=(1e-3, 1e-2, 1e-1, 1.0)):
  """Runs with these final losses: a row per rate, a column per seed."""
  found = list(rows(name, ARMS['AdamW'], seeds=range(len(losses[0])), rates=rates))
  for row, loss in zip(found, np.ravel(losses, order='F'), strict=True):
    row['final_loss'] = loss
  return found


def test_differences_are_those_of_the_mean_curves():
  """A seed whose lowest loss is at another rate by chance makes no arm better."""
  base = [[1.9] * 3, [1.6] * 3, [1.8] * 3, [3.0] * 3]
  lucky = [[1.57, 1.63, 1.60], [1.60, 1.57, 1.63], [1.63, 1.60, 1.57], [3.0] * 3]
  high = [[1.9] * 3, *lucky[:3]]  # the same, at rates that are ten times as high
  found = leaderboard(of_losses('AdamW', base), of_losses('lucky', high))
  assert found.loc['lucky', 'loss_difference'] == pytest.approx(0)
  assert found.loc['lucky', 'loss_verdict'] != 'better'


def test_differences_have_the_error_of_the_jackknife():
  rng = np.random.default_rng(0)
  base, arm = (
      np.array([1.9, 1.6, 1.62, 2.3])[:, None] + rng.normal(0, 0.01, (4, 4)) for _ in range(2)
  )
  found = leaderboard(of_losses('AdamW', base), of_losses('arm', arm)).loc['arm']
  means = [(np.delete(arm, s, 1), np.delete(base, s, 1)) for s in range(4)]
  without = np.array([ours.mean(1).min() - other.mean(1).min() for ours, other in means])
  error = np.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
  reach = special.stdtrit(3, 0.95) * error
  assert found['loss_difference'] == pytest.approx(arm.mean(1).min() - base.mean(1).min())
  assert found['loss_difference_high'] - found['loss_difference'] == pytest.approx(reach)
  rooms = leaderboard(of_losses('AdamW', base), of_losses('arm', arm))['headroom']
  assert found['headroom_ratio'] == pytest.approx(rooms['arm'] / rooms['AdamW'])


def test_an_arm_that_lacks_runs_is_one_of_many_tests():
  """Its low p value does not help another arm to pass Holm's procedure."""
  base = [[1.9] * 3, [1.6] * 3, [1.8] * 3, [3.0] * 3]
  near = [[1.9] * 3, [1.55, 1.565, 1.58], [1.8] * 3, [3.0] * 3]  # p = 0.056
  parts = [of_losses('AdamW', base), of_losses('near', near)]
  assert leaderboard(*parts).loc['near', 'loss_verdict'] == 'better'
  lacking = of_losses('lacking', np.array(base) - 0.4)
  assert leaderboard(*parts, lacking)['loss_verdict'].tolist() == ['', 'better', 'better']
  lacking[0] |= {'status': 'missing', 'final_loss': np.nan}
  assert leaderboard(*parts, lacking)['loss_verdict'].tolist() == ['', 'undecided', 'undecided']


def test_intervals_do_not_end_beyond_the_grid():
  found = leaderboard(*(rows(name, ARMS[name], seeds=(0, 1, 2), noise=0.01) for name in ARMS))
  for column in ('critical_learning_rate', 'headroom'):
    is_bound = found['censored'].str.contains(f'{column}>=')
    assert is_bound.any() and found[f'{column}_high'].isna().equals(is_bound)
    assert found[f'{column}_low'].notna().all()


def test_lower_bounds_of_headroom_decide_only_one_side():
  arms = {'AdamW': ARMS['wide'], 'wide': (2.0, 0.08, np.inf, 1e-2), 'narrow': ARMS['AdamW']}
  found = leaderboard(*(rows(name, arm, seeds=(0, 1, 2)) for name, arm in arms.items()))
  assert found['headroom_verdict'].tolist() == ['', 'undecided', 'worse']


def test_optima_at_an_end_decide_only_one_side():
  arms = {'AdamW': ARMS['AdamW'], 'worse': (2.2, 0.2, np.inf, 1e-4), 'better': (1.7, 0.2, 1, 1e-4)}
  found = leaderboard(*(rows(name, arm, seeds=(0, 1, 2)) for name, arm in arms.items()))
  assert found['edge'].tolist() == ['', 'low', 'low']
  assert found['loss_verdict'].tolist() == ['', 'undecided', 'better']
  assert found['headroom_verdict'].tolist() == ['', 'undecided', 'undecided']
  assert not found['front'].iloc[1:].any()


def test_a_seed_without_headroom_leaves_it_undecided():
  usual = ARMS['AdamW']
  parts = [list(rows(name, usual, seeds=(0, 1, 2), noise=0.001)) for name in ('AdamW', 'same')]
  moved = [row | {'arm': 'moved'} for row in rows('m', (2, 0.2, np.inf, 1.0), seeds=(2,))]
  parts.append([*rows('moved', usual, seeds=(0, 1), noise=0.001), *moved])
  found = leaderboard(*parts)
  assert found.loc['same', 'headroom_verdict'] == 'tie'
  assert found.loc['moved', 'headroom_verdict'] == 'undecided'
  assert set(leaderboard(parts[2], *parts[:2])['headroom_verdict']) == {'', 'undecided'}


def test_a_noisy_control_does_not_widen_the_intervals_of_others():
  def found(noise):
    parts = [rows(name, arm, seeds=range(5), noise=0.001) for name, arm in ARMS.items()]
    noisy = rows('noisy', ARMS['bad'], seeds=range(5), noise=noise)
    return leaderboard(*parts, noisy, controls={'noisy': 'worse'})

  low, high = (found(noise)['loss_difference_low'] for noise in (0.001, 0.3))
  for arm in ('wide', 'better', 'shifted'):
    assert low[arm] == high[arm]


def test_equal_only_where_both_diverge_is_not_inert():
  base = list(rows('AdamW', ARMS['bad']))
  other = [
      row | ({'status': 'done', 'final_loss': 2.5} if row['status'] == 'done' else {})
      for row in rows('other', ARMS['bad'], rates=(3e-2, 1e-1, 3e-1))
  ]
  assert not leaderboard(base, other).loc['other', 'inert']


def test_arms_that_lack_runs_are_undecided():
  parts = [list(rows(name, arm, seeds=(0, 1, 2))) for name, arm in ARMS.items()]
  parts[2][1] |= {'status': 'failed', 'final_loss': np.nan}
  found = leaderboard(*parts)
  assert found.loc['better', 'loss_verdict'] == 'undecided' and found.loc['better', 'missing'] == 1
  assert found.loc['bad', 'loss_verdict'] == 'worse'
  parts[0][1] |= {'status': 'missing', 'final_loss': np.nan}
  assert set(leaderboard(*parts)['loss_verdict']) == {'', 'undecided'}
  # It is on no front, and its noise is not that of the others.
  parts = [list(rows(name, arm, seeds=(0, 1, 2))) for name, arm in ARMS.items()]
  whole = leaderboard(*parts)
  assert whole.loc['better', 'front']
  parts[2][10]['final_loss'] += 0.05  # of seed 1, at the best rate
  parts[2][1] |= {'status': 'missing', 'final_loss': np.nan}
  found = leaderboard(*parts)
  assert not found.loc['better', 'front']
  others = ['wide', 'shifted']
  columns = ['loss_difference_low', 'loss_difference_high']
  pd.testing.assert_frame_equal(found.loc[others, columns], whole.loc[others, columns])
  parts[0][1] |= {'status': 'missing', 'final_loss': np.nan}
  nothing = [[row | {'status': 'missing', 'final_loss': np.nan} for row in part] for part in parts]
  found = leaderboard(*nothing)
  assert found['best_loss'].isna().all() and not found['front'].any()


def test_inert():
  base, same = list(rows('AdamW', ARMS['AdamW'])), list(rows('same', ARMS['AdamW']))
  found = leaderboard(base, same, rows('wide', ARMS['wide']))
  assert found['inert'].to_dict() == {'AdamW': False, 'same': True, 'wide': False}
  shares = [('clip', 0.5, 'AdamW'), ('clip', 0.5, 'wide'), ('cap', 0.0, 'wide')]
  shares += [('clip', 0.5, 'bad'), ('cap', 0.1, 'bad')]

  def acted(shares):
    found = [(f'{arm} 1000 {RATES[0]} 0', name, share) for name, share, arm in shares]
    return pd.DataFrame(found, columns=['run', 'name', 'share'])

  near = (2.01, 0.201, np.inf, 1e-2)  # within 0.02 nats at all rates
  parts = [base, rows('wide', near), rows('bad', ARMS['bad'])]
  found = leaderboard(*parts, acted=acted(shares))
  assert found['inert'].to_dict() == {'AdamW': False, 'wide': True, 'bad': False}
  # It may have acted between measured steps: its losses differ, the lowest or at high rates alone.
  for other in ((1.95, 0.2, np.inf, 1e-2), ARMS['wide']):
    parts[1] = rows('wide', other)
    assert not leaderboard(*parts, acted=acted(shares)).loc['wide', 'inert']
  # Of the baseline's clipping, which the arm lacks: it does something, or nothing.
  for share, inert in ((0.5, False), (0.0, True)):
    found = leaderboard(base, rows('wide', near), acted=acted([('clip', share, 'AdamW')]))
    assert found.loc['wide', 'inert'] == inert


def test_inert_although_losses_differ_where_all_are_unstable():
  """Two programs that round differently end apart there; the critical rates must agree."""
  acted = pd.DataFrame([('arm 1000 0.0003 0', 'clip', 0.0)], columns=['run', 'name', 'share'])
  base, arm = (list(rows(name, (2.0, 0.15, np.inf, 1e-2))) for name in ('AdamW', 'arm'))
  for row in (base[-1], arm[-1]):  # at 3e-1; 0.1 is stable
    row['final_loss'] = 3.0
  arm[-1]['final_loss'] = 3.3
  assert leaderboard(base, arm, acted=acted).loc['arm', 'inert']
  for index in (-1, -2):  # only one of the two is unstable at this rate
    lower = [dict(row) for row in arm]
    lower[index]['final_loss'] = 2.1
    for first, second in ((base, lower), (lower, base)):
      parts = [row | {'arm': 'AdamW'} for row in first], [row | {'arm': 'arm'} for row in second]
      assert not leaderboard(*parts, acted=acted).loc['arm', 'inert'], index


def test_inert_where_a_seed_lacks_a_rate():
  """Only runs that both have are compared: seed 2 is 0.06 nats above seed 0 in both arms."""
  acted = pd.DataFrame([('arm 1000 0.0003 0', 'clip', 0.0)], columns=['run', 'name', 'share'])
  base, arm = (list(rows(name, ARMS['AdamW'], seeds=(0, 2))) for name in ('AdamW', 'arm'))
  arm[0]['final_loss'] += 1e-3
  arm[10] |= {'status': 'missing', 'final_loss': np.nan}  # seed 2 at 1e-2
  assert leaderboard(base, arm, acted=acted).loc['arm', 'inert']


def test_not_inert_where_differences_of_seeds_cancel():
  acted = pd.DataFrame([('arm 1000 0.0003 0', 'clip', 0.0)], columns=['run', 'name', 'share'])
  base, arm = (list(rows(name, ARMS['AdamW'], seeds=(0, 1))) for name in ('AdamW', 'arm'))
  arm[0]['final_loss'] += 0.05
  arm[7]['final_loss'] -= 0.05
  assert not leaderboard(base, arm, acted=acted).loc['arm', 'inert']


def test_sizes_by_the_nearest_baseline():
  """Without width and depth, an arm with other matrices belongs to the size it is nearest to."""
  parts = [
      rows(name, ARMS['AdamW'], parameters)
      for parameters in (1000, 4000)
      for name, parameters in (('AdamW', parameters), ('SwiGLU', parameters * 1.3))
  ]
  found = table_lib.leaderboard(results_of(*parts))
  assert list(found['arm']) == ['AdamW', 'SwiGLU'] * 2
  assert list(found['is_baseline']) == [True, False] * 2
  assert list(found['parameters']) == [1000, 1300, 4000, 5200]


def test_sizes_of_several_sweeps():
  """A size that lacks the first sweep's baseline has that of its own; one with none is left out."""
  parts = [
      rows('AdamW', ARMS['AdamW'], 1000, sweep='A'),
      rows('Muon', ARMS['wide'], 1000, sweep='A'),
      rows('Muon', ARMS['wide'], 4000, sweep='B'),
      rows('AdamW', ARMS['AdamW'], 4000, sweep='B'),
      rows('Muon', ARMS['wide'], 9000, sweep='B'),
  ]
  parts = [[row | {'model.width': row['parameters']} for row in part] for part in parts]
  results = results_of(*parts)
  found = table_lib.leaderboard(dataclasses.replace(results, groups=['sweep', 'arm']))
  assert list(found['arm']) == ['A, AdamW', 'A, Muon', 'B, AdamW', 'B, Muon']
  assert list(found['is_baseline']) == [True, False] * 2


def test_costs():
  parts = [list(rows('AdamW', ARMS['AdamW'], **{'model.width': 32}))]
  parts.append(list(rows('slow', ARMS['wide'], **{'model.width': 32, 'seconds': 15.0})))
  found = leaderboard(*parts)
  assert found['seconds_ratio'].to_dict() == pytest.approx({'AdamW': 1.0, 'slow': 1.5})
  assert np.isnan(found.loc['slow', 'bytes_ratio'])
  measured = {'arm': 'slow', 'width': [32, 48], 'seconds': [2.0, 3.0], 'bytes': [4.0, 5.0]}
  found = leaderboard(*parts, costs=pd.DataFrame(measured))
  assert found.loc['slow', ['seconds_ratio', 'bytes_ratio']].tolist() == [2.0, 4.0]
  unknown = leaderboard(*parts, costs=pd.DataFrame(measured | {'arm': 'other'}))
  assert unknown.loc['slow', ['seconds_ratio', 'bytes_ratio']].isna().all()


def test_front():
  losses = np.array([2.0, 1.9, 2.1, 2.0, 2.0, 1.9, np.nan, 2.03])
  rooms = np.array([10.0, 3.0, 30.0, 5.0, 10.0, 2.0, 100.0, 7.0])
  on_front, distance = front.place(losses, rooms)
  assert on_front.tolist() == [True, True, True, False, True, False, False, False]
  assert distance[:3].tolist() == [0, 0, 0]
  assert distance[3] == distance[5] == 0  # as good as another in one of the two
  assert np.isnan(distance[6])
  # 0.03 nats are 1.5 bands, and a factor of 10 / 7 in headroom is one: the smaller counts.
  assert distance[7] == pytest.approx(np.log10(10 / 7) / 0.15)


def test_finalists():
  table = pd.DataFrame({
      'arm': ['AdamW', 'a', 'b', 'c', 'd', 'e', 'f', 'g'],
      'place': ['', 'x', 'y', 'x', 'y', 'y', 'x', 'x'],
      'distance': [0, 0.5, 0, 0, 0, 0.2, 0, np.nan],
      'best_loss': [2.0, 2.0, 2.1, 1.9, 1.8, 1.7, 1.6, 6.0],
      'control': ['', '', '', '', 'tie', '', '', ''],
      'is_baseline': [True] + [False] * 7,
      'inert': [False] * 6 + [True, False],
      'edge': [''] * 5 + ['high', '', ''],
      'censored': '',
      'missing': 0,
  })
  assert front.finalists(table, 10) == ['c', 'b', 'a']
  assert front.finalists(table, 2) == ['c', 'b']
  assert front.best_of_places(table) == {'x': 'c', 'y': 'b'}
  assert front.at_edges(table) == [('e', 'its loss is lowest at the highest of its rates')]
  table.loc[3, 'censored'] = 'critical_learning_rate>= headroom>='
  assert ('c', 'it is stable at the highest of its rates') in front.at_edges(table)
  assert front.finalists(table, 10) == ['b', 'a']
  table.loc[5, 'missing'] = 3  # the rates beyond may be waiting
  assert [arm for arm, _ in front.at_edges(table)] == ['c']


@pytest.mark.parametrize(
    'lacking, missing',
    [((), ''), (('near',), '2 of its runs'), (('AdamW',), "2 of the baseline's runs")],
)
def test_undecided_controls_say_what_is_missing(lacking, missing):
  arms = {'AdamW': ARMS['AdamW'], 'near': (2.01, 0.2, np.inf, 1e-2), 'none': ARMS['bad']}
  parts = {name: list(rows(name, arm, seeds=(0, 1), noise=0.05)) for name, arm in arms.items()}
  for row in [*(row for name in lacking for row in parts[name][:2]), *parts['none']]:
    row |= {'status': 'missing', 'final_loss': np.nan}
  results = results_of(*parts.values(), controls={'near': 'tie', 'none': 'worse'})
  # Nothing is known of the control without a result.
  (outcome,) = controls.outcomes(table_lib.leaderboard(results))
  assert (outcome.arm, outcome.found, outcome.missing) == ('near', 'undecided', missing)


def test_a_control_is_inert_only_with_all_its_runs():
  base, same = (list(rows(name, ARMS['AdamW'])) for name in ('AdamW', 'same'))
  other = list(rows('other', ARMS['wide']))
  for row in (same[3], other[3]):
    row |= {'status': 'missing', 'final_loss': np.nan}
  results = results_of(base, same, other, controls={'same': 'inert', 'other': 'inert'})
  found = {each.arm: each for each in controls.outcomes(table_lib.leaderboard(results))}
  assert (found['same'].found, found['same'].missing) == ('undecided', '1 of its runs')
  assert (found['other'].found, found['other'].missing) == ('not inert', '')
