"""configs/: each file expands to the runs it promises, and the paper's figures are all there."""

import importlib
import pathlib
import re

import pytest

from configs import grid
from stability import config as config_lib
from stability import hyper
from stability.analysis import windows

SCALES = ('cpu', 'gpu', 'paper')
NOT_EXPERIMENTS = {'__init__', 'grid'}  # grid is what experiments share
EXPERIMENTS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[1] / 'configs').glob('*.py')
    if path.stem not in NOT_EXPERIMENTS
)

# Every figure of arXiv 2309.14322, in the experiments that reproduce it.
FIGURES = {
    '1': {'quickstart', 'qk_layernorm'},
    '2': {'qk_layernorm'},
    '3': {'z_loss'},
    '4': {'z_loss'},
    '5': {'warmup'},
    '6': {'weight_decay_kind'},
    '7': {'width_and_depth'},
    '8': {'muparam'},
    '9': {'qk_layernorm'},
    '10': {'logit_scale'},
    '11': {'qk_layernorm'},
    '12': {'epsilon'},
    '13': {'epsilon'},
    'C.1': {'qk_layernorm', 'width_and_depth'},
    'E.1': {'qk_layernorm'},
    'E.2': {'width_and_depth'},
    'E.3': {'width_and_depth'},
    'E.4': {'muparam'},
    'E.5': {'muparam'},
    'E.6': {'attention_scale'},
    'E.7': {'steps'},
    'E.8': {'qk_norm_variants'},
    'E.9': {'batch_size'},
    'E.10': {'weight_decay'},
    'E.11': {'pointwise_attention'},
    'E.12': {'qk_layernorm'},
    'E.13': {'qk_layernorm'},
    'E.14': {'parameter_scaling'},
    'E.15': {'epsilon'},
}


def experiment(name: str):
  return importlib.import_module(f'configs.{name}')


def expanded(name: str, scale: str = 'cpu') -> hyper.Runs:
  module = experiment(name)
  points = module.get_sweep(scale) if hasattr(module, 'get_sweep') else [{}]
  return hyper.expand(module.get_config(scale).to_dict(), points)


def values(runs: hyper.Runs, field: str) -> list:
  """The values of a field, in order."""
  return sorted({config_lib.flatten(config)[field] for config in runs.configs.values()})


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_expands_at_every_scale(name, scale):
  runs = expanded(name, scale)
  assert runs.configs
  if hasattr(experiment(name), 'get_report'):
    assert windows.check(experiment(name).get_report(scale), runs)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_experiment_says_how_to_run_it(name):
  command = rf'  python -m launch\.\w+ --config=configs/{name}\.py --workdir=\S+$'
  assert re.search(command, experiment(name).__doc__, re.MULTILINE)


def test_the_experiments_are_found():
  assert {'base', 'quickstart', 'qk_layernorm'} <= set(EXPERIMENTS)


def test_the_table_has_every_figure_of_the_paper():
  figures = [*range(1, 14), 'C.1', *(f'E.{n}' for n in range(1, 16))]
  assert list(FIGURES) == [str(figure) for figure in figures]


def test_experiments_name_their_figures():
  named = {}
  for name in EXPERIMENTS:
    for figure in re.findall(r'\bFigure ((?:[A-Z]\.)?\d+)', experiment(name).__doc__):
      named.setdefault(figure, set()).add(name)
  assert named == FIGURES


@pytest.mark.parametrize('scale', SCALES)
def test_no_experiment_sweeps_the_seed(scale):
  """launch.reproduce repeats them over seeds."""
  for name in EXPERIMENTS:
    assert 'seed' not in expanded(name, scale).fields, name


@pytest.mark.parametrize('scale', SCALES)
def test_learning_rates_span_three_decades(scale):
  rates = [point['optimizer.learning_rate'] for point in grid.learning_rates(scale)]
  assert len(rates) == 7
  assert rates[-1] / rates[0] == pytest.approx(1e3)
  assert grid.learning_rates(scale, shift=-1, count=8)[1:] == grid.learning_rates(scale)


def test_sizes_hold_only_what_varies():
  assert grid.sizes('cpu') == [{'model.width': 16}, {'model.width': 32}, {'model.width': 64}]
  assert grid.sizes('gpu', ['2.4M', '42M']) == [
      {'model.width': 256, 'model.depth': 3},
      {'model.width': 768, 'model.depth': 6},
  ]
  assert grid.sizes('cpu', ['147K']) == [{}]  # base.py's own


def test_quickstart_is_the_grid_it_promises():
  runs = expanded('quickstart')
  assert len(runs.configs) == 3 * 2 * 7
  assert values(runs, 'schedule.warmup_steps') == [60]


@pytest.mark.parametrize('scale', SCALES)
def test_the_ways_to_grow_start_alike_and_end_at_about_the_same_parameters(scale):
  module = experiment('width_and_depth')
  ways = [module.WIDTH[scale], module.DEPTH[scale], module.BOTH[scale]]
  assert len({way[1] for way in ways}) == 1
  assert len({depth for _, depth in ways[0]}) == len({width for width, _ in ways[1]}) == 1
  ends = [12 * depth * width**2 for width, depth in (way[-1] for way in ways)]
  assert max(ends) <= 1.1 * min(ends)


@pytest.mark.parametrize('scale', SCALES)
def test_batch_sizes_see_the_same_text(scale):
  runs = expanded('batch_size', scale)
  assert len(values(runs, 'data.batch_size')) == 3
  for other in ('schedule.steps', 'schedule.warmup_steps', 'data.validation_batches'):
    flats = map(config_lib.flatten, runs.configs.values())
    assert len({flat['data.batch_size'] * flat[other] for flat in flats}) == 1, other


@pytest.mark.parametrize('scale', SCALES)
def test_lengths_keep_the_share_of_the_warmup(scale):
  schedules = [config['schedule'] for config in expanded('steps', scale).configs.values()]
  assert len({schedule['steps'] for schedule in schedules}) == 3
  assert len({schedule['warmup_steps'] / schedule['steps'] for schedule in schedules}) == 1


@pytest.mark.parametrize('scale', SCALES)
def test_coupled_decay_has_two_windows_of_three_decades(scale):
  (entry,) = experiment('weight_decay_kind').get_report(scale)['windows']
  assert entry['where'] == {'optimizer.weight_decay_kind': 'coupled'}
  lower, higher = entry['windows']
  rates = [point['optimizer.learning_rate'] for point in grid.learning_rates(scale)]
  assert higher == [rates[0], rates[-1]]
  assert lower[0] < higher[0] and lower[1] / lower[0] == pytest.approx(1e3)


@pytest.mark.parametrize('name', ['weight_decay_kind', 'parameter_scaling', 'optimizers'])
def test_arms_with_windows_of_their_own_have_three_decades_or_more(name):
  runs = expanded(name)
  field = next(
      f for f in runs.fields if f.startswith('optimizer.') and f != 'optimizer.learning_rate'
  )
  windows = {}
  for config in runs.configs.values():
    flat = config_lib.flatten(config)
    windows.setdefault(flat[field], set()).add(flat['optimizer.learning_rate'])
  assert len(windows) > 1 and len(set(map(frozenset, windows.values()))) > 1
  assert all(max(rates) / min(rates) >= 999 for rates in windows.values())
