"""The leaderboard's configs follow its protocol."""

import collections
import math

import pytest

from configs import arms, grid, leaderboard, leaderboard_finals, leaderboard_pairs
from stability import config as config_lib
from stability import hyper
from stability.errors import BadInput

SCALES = ('cpu', 'night', 'gpu', 'paper')


def rates_of(points):
  """Arm -> its learning rates."""
  found = collections.defaultdict(list)
  for point in points:
    found[point['arm']].append(point['optimizer.learning_rate'])
  return found


@pytest.mark.parametrize('scale', SCALES)
def test_every_arm_has_four_decades_and_one_seed(scale, monkeypatch):
  """Before any is extended."""
  monkeypatch.setattr(leaderboard, 'MORE_RATES', {})
  points = leaderboard.points(scale)
  assert {point['seed'] for point in points} == {0}
  rates = rates_of(points)
  assert rates.keys() == arms.ARMS.keys() | leaderboard.CONTROL_ARMS.keys()
  assert next(iter(rates)) == arms.BASELINE
  for name, of_arm in rates.items():
    assert len(of_arm) == 9 and max(of_arm) / min(of_arm) == pytest.approx(1e4), name
    usual = rates[arms.BASELINE][0]
    decades = math.log10(of_arm[0] / usual)
    if name in leaderboard.MULTIPLIERS:
      assert of_arm[0] == 1e-2 and of_arm[-1] == 100, name
    else:
      assert decades == pytest.approx(arms.SHIFTS.get(name, 0) / 2, abs=0.03), name


def test_more_rates_extend_a_window(monkeypatch):
  more = {'Muon': (1, 2), 'DoWG': (2, 0), 'Prodigy': (0, 1), 'WeSaR': (3, 0)}
  monkeypatch.setattr(leaderboard, 'MORE_RATES', more)
  rates = rates_of(leaderboard.points('night'))
  assert rates['Muon'] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0]
  assert rates['DoWG'][0] == 1e-3 and len(rates['DoWG']) == 11
  assert rates['Prodigy'][-1] == 300 and len(rates['Prodigy']) == 10
  assert rates['WeSaR'][0] == pytest.approx(3e-7) and len(rates['WeSaR']) == 12


def test_more_rates_of_the_baseline_and_of_pairs(monkeypatch):
  """The controls keep the baseline's window: they must not differ by it."""
  monkeypatch.setattr(leaderboard_pairs, 'BEST', {'output': 'tied head', 'clipping': 'AGC'})
  monkeypatch.setattr(leaderboard, 'MORE_RATES', {'AdamW': (0, 2), 'tied head + AGC': (1, 0)})
  rates = {name: sorted(set(of)) for name, of in rates_of(leaderboard_pairs.get_sweep()).items()}
  assert len(rates['AdamW']) == 11
  assert all(rates[control] == rates['AdamW'] for control in leaderboard.CONTROLS)
  assert len(rates['tied head + AGC']) == 10 and len(rates['AGC']) == 9


def test_more_rates_are_of_arms():
  """A misspelt name would change nothing. Those of the finals are beside those of the screening."""
  known = {*arms.ARMS, *leaderboard.CONTROL_ARMS}
  more = leaderboard.MORE_RATES | leaderboard_finals.MORE_RATES
  names = {part for name in more for part in name.split(' + ')}
  assert names <= known
  rates = rates_of(leaderboard_finals.get_sweep('night'))
  assert {name: len(set(rates[name])) for name in ('AdEMAMix', 'WeSaR', 'Muon')} == {
      'AdEMAMix': 10, 'WeSaR': 11, 'Muon': 9,
  }  # fmt: skip
  assert max(rates['AdEMAMix']) == 1.0


def test_a_window_that_the_grid_does_not_hold():
  with pytest.raises(BadInput, match='9 rates from -30 half decades'):
    grid.learning_rates('cpu', -30, 9)
  with pytest.raises(BadInput, match=r'grid\.RATES'):
    grid.rates_from(100.0, 0, 9)


def test_regime():
  c = leaderboard.get_config('night').schedule
  assert c.steps == leaderboard.STEPS >= 2_000 and c.warmup_steps == c.steps // 20
  assert leaderboard_finals.get_config('night').schedule.steps >= 4_000
  assert leaderboard_pairs.get_config('night') == leaderboard_finals.get_config('night')
  assert leaderboard.get_config('gpu').schedule.steps == 5_000


@pytest.mark.parametrize('scale', SCALES)
def test_memories_are_a_tenth_of_the_run(scale):
  """At night scale. At the others, those of configs/base.py are at most a quarter."""
  for file in (leaderboard, leaderboard_finals):
    c = file.get_config(scale)
    assert 0.09 < 1 / (1 - c.optimizer.beta3) / c.schedule.steps < 0.21
    assert 0.04 < c.evaluation.average_steps / c.schedule.steps < 0.26
  c = leaderboard_finals.get_config('night')
  assert c.evaluation.average_steps == 400 and c.optimizer.beta3 == pytest.approx(0.9975)


@pytest.mark.parametrize('scale', SCALES)
def test_parameterizations_act(scale):
  """All sizes are above the base width, at which they are the standard one."""
  base = leaderboard.get_config(scale).parameterization.base_width
  sizes = [leaderboard.SIZES[scale], leaderboard_finals.SIZES[scale][1]]
  assert all(config_lib.size(name)['model.width'] > base for name in sizes)


@pytest.mark.parametrize('scale', SCALES)
def test_shifted_windows_shift_the_end_of_the_schedule(scale):
  for point in leaderboard.points(scale):
    name = point['arm']
    floor = point.get('schedule.min_learning_rate', 1e-5)
    shift = 0 if name in leaderboard.MULTIPLIERS else arms.SHIFTS.get(name, 0)
    assert math.log10(floor / 1e-5) == pytest.approx(shift / 2, abs=0.03), name


@pytest.mark.parametrize('scale', SCALES)
def test_finals_have_fresh_seeds(scale):
  seeds = collections.defaultdict(set)
  runs = hyper.expand(
      leaderboard_finals.get_config(scale).to_dict(), leaderboard_finals.points(scale)
  )
  for config in runs.configs.values():
    seeds[config['arm'], config_lib.parameters(config)].add(config['seed'])
  assert {name for name, _ in seeds} == {
      *(arms.BASELINE, *leaderboard_finals.FINALISTS),
      *leaderboard.CONTROLS,
  }
  counts = {name: [] for name, _ in seeds}
  for (name, _), of_arm in sorted(seeds.items(), key=lambda pair: pair[0][1]):
    counts[name].append(len(of_arm))
  assert set(map(tuple, counts.values())) == {(5, 3)}
  again = set.union(*(of for (name, _), of in seeds.items() if name == leaderboard.AGAIN))
  others = set.union(*(of for (name, _), of in seeds.items() if name != leaderboard.AGAIN))
  assert not again & others and not (again | others) & set(leaderboard.SEEDS)


def test_pairs():
  best = {'optimizer': 'Lion', 'clipping': 'SPAM', 'output': 'tied head', 'schedule': 'WSD'}
  found = leaderboard_pairs.pairs(best)
  assert ('Lion', 'SPAM') not in found  # both set optimizer.name
  assert len(found) == 5
  assert found['tied head', 'WSD'] == {'model.head': 'tied', 'schedule.shape': 'wsd'}


def test_pairs_that_cannot_be_combined():
  assert not leaderboard_pairs.pairs({'optimizer': 'schedule-free AdamW', 'schedule': 'WSD'})
  best = {'output': 'tied head', 'residual': 'muParam (simple)', 'clipping': 'AdaGC'}
  assert set(leaderboard_pairs.pairs(best)) == {
      ('tied head', 'AdaGC'), ('muParam (simple)', 'AdaGC')
  }  # fmt: skip


def test_pairs_of_a_screening(monkeypatch):
  best = {'optimizer': 'Lion', 'output': 'tied head', 'kernel': 'WeSaR'}
  monkeypatch.setattr(leaderboard_pairs, 'BEST', best)
  monkeypatch.setattr(leaderboard, 'MORE_RATES', {'tied head': (1, 0)})
  rates = rates_of(leaderboard_pairs.get_sweep('night'))
  assert set(rates) >= {'AdamW', 'Lion', 'tied head', 'Lion + tied head', 'Lion + WeSaR'}
  assert set(rates['Lion + tied head']) == {1e-5, *rates['Lion']}
  assert min(rates['Lion + WeSaR']) == 1e-6  # shifted by both
  places = leaderboard_pairs.get_report()['places']
  assert places['Lion + tied head'] == 'optimizer + output'


def test_an_arm_of_ones_own():
  points = leaderboard.points('cpu', {'mine': {'optimizer.beta1': 0.8}})
  mine = hyper.of_arms(points, ['mine'])
  assert set(rates_of(mine)) == {'AdamW', 'mine'} and len(mine) == 18
