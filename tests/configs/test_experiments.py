"""configs/: experiments expand at every scale and cover every figure of the paper."""

import importlib
import pathlib
import re

import pytest

from configs import base, grid
from stability import config as config_lib
from stability import hyper
from stability.analysis import windows
from stability.storage import reuse

SCALES = ('cpu', 'night', 'gpu', 'paper')
NOT_EXPERIMENTS = {'__init__', 'arms', 'grid'}  # the last two have the code that experiments share
EXPERIMENTS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')
    if path.stem not in NOT_EXPERIMENTS
)

# Every figure of arXiv 2309.14322 and the experiments that reproduce it.
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
def test_docstrings_have_a_command(name):
  command = rf'  python -m launch\.\w+ --config=configs/{name}\.py --workdir=\S+( --seeds=3)?$'
  assert re.search(command, experiment(name).__doc__, re.MULTILINE)


def test_experiments_are_found():
  assert {'base', 'quickstart', 'qk_layernorm'} <= set(EXPERIMENTS)


def test_table_has_every_figure_of_the_paper():
  figures = [*range(1, 14), 'C.1', *(f'E.{n}' for n in range(1, 16))]
  assert list(FIGURES) == [str(figure) for figure in figures]


def test_experiments_name_their_figures():
  named = {}
  for name in EXPERIMENTS:
    for figure in re.findall(r'\bFigure ((?:[A-Z]\.)?\d+)', experiment(name).__doc__):
      named.setdefault(figure, set()).add(name)
  assert named == FIGURES


# The setup that arXiv 2309.14322 states (section 2, appendix A).
PUBLISHED = {
    'data.batch_size': [256],
    'data.sequence_length': [512],
    'data.vocabulary_size': [32_101],
    'model.norm': ['layernorm'],
    'model.norm_position': ['pre'],
    'model.qk_norm': ['layernorm'],
    'model.attention_scale': ['inverse_sqrt'],
    'model.dtype': ['bfloat16'],
    'objective.z_loss': [1e-4],
    'optimizer.name': ['adamw'],
    'optimizer.learning_rate': [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
    'optimizer.beta1': [0.9],
    'optimizer.beta2': [0.95],
    'optimizer.eps': [1e-8],
    'optimizer.clip_norm': [1.0],
    'optimizer.weight_decay': [1e-4],
    'optimizer.weight_decay_kind': ['independent'],
    'parameterization.name': ['standard'],
    'parameterization.base_width': [256],
    'schedule.shape': ['cosine'],
    'schedule.steps': [100_000],
    'schedule.warmup_steps': [5_000],
    'schedule.min_learning_rate': [1e-5],
}
ON_AND_OFF = {'model.qk_norm': ['layernorm', 'none']}
# The values that each experiment varies; None where the paper does not state them.
VARIED = {
    'qk_layernorm': ON_AND_OFF,
    'z_loss': {'objective.z_loss': [0.0, 1e-4], 'optimizer.weight_decay': [0.0, 1e-4]},
    'warmup': {'schedule.warmup_steps': None},
    'weight_decay_kind': {
        'optimizer.weight_decay_kind': ['coupled', 'independent'],
        'optimizer.weight_decay': [1e-4, 0.1],
        'optimizer.learning_rate': [1e-4, *PUBLISHED['optimizer.learning_rate']],
    },
    'width_and_depth': ON_AND_OFF,
    'muparam': ON_AND_OFF | {
        'optimizer.learning_rate': [*PUBLISHED['optimizer.learning_rate'], 1.0],
        'parameterization.name': [
            'muparam_full', 'muparam_intermediate', 'muparam_simple', 'standard'
        ],
    },
    'logit_scale': {'model.qk_norm': ['fixed'], 'optimizer.learning_rate': None},
    'epsilon': {'optimizer.eps': [1e-15, 1e-8, 1e-6], 'optimizer.learning_rate': [0.3]},
    'attention_scale': ON_AND_OFF | {'model.attention_scale': ['inverse', 'inverse_sqrt']},
    'steps': {
        'schedule.steps': [50_000, 100_000, 200_000],
        'schedule.warmup_steps': None,
    },
    'qk_norm_variants': {'model.qk_norm': ['l2', 'layernorm', 'layernorm_model', 'rmsnorm']},
    'batch_size': {
        'data.batch_size': [256, 512, 1024],
        'schedule.steps': [25_000, 50_000, 100_000],
        'schedule.warmup_steps': None,
    },
    'weight_decay': {'optimizer.weight_decay': None},
    'pointwise_attention': ON_AND_OFF,
    'parameter_scaling': {'optimizer.learning_rate': None},
}  # fmt: skip


@pytest.mark.parametrize('name', VARIED)
def test_paper_scale_is_as_published(name):
  runs = expanded(name, 'paper')
  for field, published in (PUBLISHED | VARIED[name]).items():
    if published is not None:
      assert values(runs, field) == published, field


def test_base_of_a_sweep_at_paper_scale_is_as_published():
  c = base.get_config('paper')
  assert c.to_dict() == grid.get_config('paper').to_dict()
  assert (c.data.tokenizer, c.data.vocabulary_size, c.model.dtype) == ('bpe', 32_101, 'bfloat16')


def test_every_figure_is_compared_with_the_paper():
  assert set.union(*FIGURES.values()) - {'quickstart'} == VARIED.keys()


@pytest.mark.parametrize(
    'name, fewest, most',
    [
        ('qk_layernorm', 2.4e6, 4.8e9),  # with the run of Figure 9
        ('logit_scale', 10e6, 10e6),
        ('epsilon', 4.8e9, 4.8e9),
        ('muparam', 2.4e6, 1.2e9),
    ],
)
def test_paper_sizes(name, fewest, most):
  """Parameters without embedding and head agree to the digits that the paper gives."""
  configs = expanded(name, 'paper').configs.values()
  sizes = {config_lib.parameters(c) for c in configs if c['model']['depth']}
  assert (min(sizes), max(sizes)) == pytest.approx((fewest, most), rel=0.06)


@pytest.mark.parametrize('scale', SCALES)
def test_no_experiment_sweeps_the_seed(scale):
  """launch.reproduce repeats experiments over seeds. Leaderboards have seeds of their own, and runs
  that are fine-tuned those of their parents.
  """
  for name in EXPERIMENTS:
    if not name.startswith('leaderboard'):
      assert ('seed' in expanded(name, scale).fields) == (name == 'finetuning'), name


@pytest.mark.parametrize('scale', SCALES)
def test_learning_rates_span_three_decades(scale):
  rates = [point['optimizer.learning_rate'] for point in grid.learning_rates(scale)]
  assert len(rates) == 7
  assert rates[-1] / rates[0] == pytest.approx(1e3)
  assert grid.learning_rates(scale, shift=-1, count=8)[1:] == grid.learning_rates(scale)


def test_sizes_have_only_fields_that_vary():
  assert grid.sizes('cpu') == [{'model.width': 16}, {'model.width': 32}, {'model.width': 64}]
  assert grid.sizes('gpu', ['2.4M', '42M']) == [
      {'model.width': 256, 'model.depth': 3},
      {'model.width': 768, 'model.depth': 6},
  ]
  assert grid.sizes('cpu', ['147K']) == [{}]  # the size of base.py


def test_quickstart_grid():
  runs = expanded('quickstart')
  assert len(runs.configs) == 3 * 2 * 7
  assert values(runs, 'schedule.warmup_steps') == [60]


@pytest.mark.parametrize('scale', SCALES)
def test_ways_of_scaling_share_a_shape_and_end_at_similar_sizes(scale):
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
def test_sequence_lengths_have_equal_tokens_per_step(scale):
  data = [config['data'] for config in expanded('sequence_length', scale).configs.values()]
  assert len({d['sequence_length'] for d in data}) == 3
  assert len({d['sequence_length'] * d['batch_size'] for d in data}) == 1
  assert len({d['validation_batches'] for d in data}) == 1  # so validation tokens are equal too


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('name, lengths', [('steps', {3}), ('length', {3, 4, 5})])
def test_warmup_is_proportional_to_length(name, lengths, scale):
  schedules = [config['schedule'] for config in expanded(name, scale).configs.values()]
  assert len({schedule['steps'] for schedule in schedules}) in lengths
  assert len({schedule['warmup_steps'] / schedule['steps'] for schedule in schedules}) == 1


def test_night_scale_uses_the_paper_window():
  for name in ('qk_layernorm', 'warmup', 'z_loss', 'muparam'):
    runs = expanded(name, 'night')
    assert values(runs, 'schedule.steps') == [10_000], name
    rates = values(runs, 'optimizer.learning_rate')
    assert rates[:7] == PUBLISHED['optimizer.learning_rate'], name
    sizes = {config_lib.parameters(config) for config in runs.configs.values()}
    assert {9216, 36864, 147456} <= sizes <= {9216, 36864, 147456, 589824}, name
    assert (589824 in sizes) == (name == 'qk_layernorm')


def test_lengths_share_runs_with_qk_layernorm_at_night():
  long = {reuse.key(c) for c in expanded('length', 'night').configs.values()
          if c['schedule']['steps'] == 10_000}  # fmt: skip
  assert len(long) == 2 * 2 * 7
  assert long <= {reuse.key(c) for c in expanded('qk_layernorm', 'night').configs.values()}


def test_extrapolation_sizes():
  runs = expanded('extrapolation')
  sizes = sorted({config_lib.parameters(config) for config in runs.configs.values()})
  assert sizes[-4:] == [147_456, 589_824, 2_359_296, 9_437_184]
  assert len(runs.configs) == len(sizes) * 4 * 7
  assert values(runs, 'schedule.steps') == [400]
  for scale in ('cpu', 'night'):
    assert values(expanded('extrapolation', scale), 'model.head_dim') == [16]


@pytest.mark.parametrize('scale', SCALES)
def test_coupled_decay_has_two_windows_of_three_decades(scale):
  (entry,) = experiment('weight_decay_kind').get_report(scale)['windows']
  assert entry['where'] == {'optimizer.weight_decay_kind': 'coupled'}
  lower, higher = entry['windows']
  rates = [point['optimizer.learning_rate'] for point in grid.learning_rates(scale)]
  assert higher == [rates[0], rates[-1]]
  assert lower[0] < higher[0] and lower[1] / lower[0] == pytest.approx(1e3)


@pytest.mark.parametrize('name', ['weight_decay_kind', 'parameter_scaling', 'optimizers'])
def test_arms_with_own_windows_span_three_decades(name):
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


@pytest.mark.parametrize('scale', SCALES)
def test_parents_of_fine_tuning(scale):
  """Runs of configs/pretraining.py of the same size and seed, at 1, 3 and 10 times one rate."""
  pretraining = experiment('pretraining')
  parents = hyper.expand(
      pretraining.get_config(scale).to_dict(), pretraining.get_sweep(scale), seeds=3
  ).configs
  rates = {}
  for config in expanded('finetuning', scale).configs.values():
    workdir, _, name = config['init']['checkpoint'].rpartition('/runs/')
    assert workdir == 'runs/pretraining'
    assert (parents[name]['model'], parents[name]['seed']) == (config['model'], config['seed'])
    size = config['model']['width'], config['model']['depth']
    rate = parents[name]['optimizer']['learning_rate']
    rates.setdefault((size, config['init']['parent']), set()).add(rate)
  assert len(rates) == 9 and all(len(found) == 1 for found in rates.values())
  for (size, label), (rate,) in rates.items():
    (best,) = rates[size, 'best']
    assert rate / best == pytest.approx({'best': 1, '3x': 3, '10x': 10}[label], rel=0.12)
