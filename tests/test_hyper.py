"""The sweep vocabulary, and the expansion of a sweep into named runs."""

import hashlib
import json
import re
import time

import numpy as np
import pytest

from configs import base
from launch.common import app
from stability import config as config_lib
from stability import hyper
from stability.config import field, fields
from stability.errors import BadInput

WIDTHS = hyper.sweep('model.width', [32, 64])
SEEDS = hyper.sweep('seed', [1, 2])


def expand(points, overrides=()) -> hyper.Runs:
  return hyper.expand(base.get_config().to_dict(), points, overrides)


def names(points) -> list[str]:
  return list(expand(points).configs)


def test_sweep_and_fixed():
  assert hyper.sweep('seed', (n for n in range(2))) == [{'seed': 0}, {'seed': 1}]
  assert hyper.fixed('seed', 3) == [{'seed': 3}]


def test_product():
  assert hyper.product([WIDTHS, SEEDS, hyper.fixed('model.depth', 3)]) == [
      {'model.width': 32, 'seed': 1, 'model.depth': 3},
      {'model.width': 32, 'seed': 2, 'model.depth': 3},
      {'model.width': 64, 'seed': 1, 'model.depth': 3},
      {'model.width': 64, 'seed': 2, 'model.depth': 3},
  ]


def test_zipit():
  assert hyper.zipit([WIDTHS, SEEDS]) == [
      {'model.width': 32, 'seed': 1},
      {'model.width': 64, 'seed': 2},
  ]


def test_chain():
  assert hyper.chain([WIDTHS, SEEDS]) == WIDTHS + SEEDS


def test_nesting():
  points = hyper.product([hyper.zipit([WIDTHS, SEEDS]), hyper.chain([hyper.fixed('a', 1)])])
  assert points == [
      {'model.width': 32, 'seed': 1, 'a': 1},
      {'model.width': 64, 'seed': 2, 'a': 1},
  ]


def test_zipit_lengths():
  with pytest.raises(BadInput, match=re.escape('different lengths: [2, 3]')):
    hyper.zipit([WIDTHS, hyper.sweep('seed', [1, 2, 3])])


@pytest.mark.parametrize('join', [hyper.product, hyper.zipit])
def test_field_swept_twice(join):
  with pytest.raises(BadInput, match=r'config\.seed: swept twice'):
    join([SEEDS, SEEDS])


def test_names():
  points = hyper.product([
      hyper.fixed('model.width', 64),
      hyper.fixed('model.qk_norm', 'none'),
      hyper.fixed('optimizer.learning_rate', 1e-2),
  ])
  runs = expand(points)
  assert list(runs.configs) == ['width=64,qk_norm=none,learning_rate=0.01,seed=0']
  assert runs.fields == ('model.width', 'model.qk_norm', 'optimizer.learning_rate')
  (config,) = runs.configs.values()
  assert config['model']['width'] == 64
  assert config['model']['qk_norm'] == 'none'
  assert config['optimizer'] == base.get_config().optimizer.to_dict()


def test_name_without_a_sweep():
  runs = expand([{}])
  assert list(runs.configs) == ['seed=0']
  assert runs.fields == ()
  assert runs.configs['seed=0'] == base.get_config().to_dict()


def test_seed_comes_last():
  runs = expand(hyper.product([SEEDS, WIDTHS]))
  assert list(runs.configs) == [
      'width=32,seed=1',
      'width=64,seed=1',
      'width=32,seed=2',
      'width=64,seed=2',
  ]
  assert runs.fields == ('seed', 'model.width')


def test_order_of_fields():
  runs = expand(hyper.chain([WIDTHS, hyper.product([hyper.fixed('model.depth', 1), SEEDS])]))
  assert runs.fields == ('model.width', 'model.depth', 'seed')
  assert list(runs.configs) == [
      'width=32,depth=3,seed=0',  # fields that a point lacks have base's value
      'width=64,depth=3,seed=0',
      'width=64,depth=1,seed=1',
      'width=64,depth=1,seed=2',
  ]


@pytest.mark.parametrize(
    'fields, name',
    [
        (['log.every_steps'], 'every_steps=1,seed=0'),
        (['log.every_steps', 'probe.every_steps'], 'log.every_steps=1,probe.every_steps=1,seed=0'),
        (['data.seed'], 'data.seed=1,seed=0'),  # since seed is always in the name
        (['schedule.steps', 'log.every_steps'], 'steps=1,every_steps=1,seed=0'),
    ],
)
def test_shortest_unambiguous_suffix(fields, name):
  points = hyper.product([hyper.fixed(field, 1) for field in fields])
  points = hyper.product([points, hyper.fixed('schedule.warmup_steps', 0)])
  assert names(points) == [name.replace(',seed=0', ',warmup_steps=0,seed=0')]


@pytest.mark.parametrize(
    'value, text',
    [
        (1, '1.0'),
        (1.0, '1.0'),
        (0.01, '0.01'),
        (1e-2, '0.01'),
        (3e-4, '0.0003'),
        (1e-5, '1e-05'),
        (1e16, '1e+16'),
        (0.1 + 0.2, '0.3'),
        (float(np.float32(1e-3)), '0.001'),
        (np.float32(3e-4), '0.0003'),
        (10**-2.5, '0.0031622776'),  # all digits that float32 tells apart
    ],
)
def test_floats_in_names(value, text):
  assert names(hyper.fixed('optimizer.learning_rate', value)) == [f'learning_rate={text},seed=0']
  assert np.float32(text) == np.float32(value)


@pytest.mark.parametrize(
    'field', ['optimizer.learning_rate', 'objective.z_loss', 'optimizer.eps', 'optimizer.clip_norm']
)
def test_numbers_that_float32_takes_for_one_are_one_run(field):
  points = hyper.sweep(field, [1e-3, float(np.float32(1e-3))])
  with pytest.raises(BadInput, match=r'two runs are the same: .*=0\.001,seed=0'):
    names(points)
  one_ulp_apart = [1e-3, float(np.nextafter(np.float32(1e-3), np.float32(1)))]
  assert len(names(hyper.sweep(field, one_ulp_apart))) == 2


def test_zero_with_a_sign_is_zero():
  with pytest.raises(BadInput, match=r'two runs are the same: z_loss=0\.0,seed=0'):
    names(hyper.sweep('objective.z_loss', [0.0, -0.0]))


def test_none():
  assert names(hyper.fixed('parallel.members', None)) == ['members=None,seed=0']


@pytest.fixture
def any_text():
  """An option that accepts any text."""
  fields.register(field.text('test.text', 'none', 'A text.', allowed='a text'))
  yield 'test.text'
  fields.unregister_all()


def test_percent_encoding(any_text):
  text = 'aZ9._+=,- /\\%~é\n'
  assert names(hyper.fixed(any_text, text)) == [
      'text=aZ9._+=,-%20%2F%5C%25%7E%C3%A9%0A,seed=0'
  ]


def test_long_names_have_a_hash(any_text):
  fits = 'x' * (120 - len('text=,seed=0'))
  runs = expand(hyper.sweep(any_text, [fits, fits + 'y', fits + 'z']))
  whole, *cut = runs.configs
  assert whole == f'text={fits},seed=0'
  assert len(set(cut)) == 2
  for name in cut:
    assert len(name) == 120
    flat = config_lib.flatten(runs.configs[name])
    hashed = {
        field: value
        for field, value in flat.items()
        if not fields.FIELDS[field].is_later or value != fields.FIELDS[field].absent
    }
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    assert name == f'text={fits}'[:111] + '-' + digest[:8]


def test_hashes_are_frozen():
  """Names in existing workdirs must not change when options are added: those state `absent`."""
  first, *_ = app.load('configs/interventions.py:cpu', {}).runs.configs
  assert first.endswith('qk_norm=layernorm,attention_s-96695ebb')


def test_later_option_in_hash(any_text):
  """An option that states `absent` changes the hash only where it has another value."""
  points = hyper.fixed(any_text, 'x' * 120)
  (before,) = names(points)
  fields.register(fields.number('test.later', 0.0, 'A number.', absent=0.0))
  assert names(points) == [before]
  config = base.get_config().to_dict()
  config['test']['later'] = 1.0
  assert list(hyper.expand(config, points).configs) != [before]


def test_configs_are_resolved():
  (config,) = expand(hyper.fixed('optimizer.learning_rate', 1)).configs.values()
  assert type(config['optimizer']['learning_rate']) is float
  assert list(config_lib.flatten(config)) == list(config_lib.FIELDS)


def test_configs_share_no_state():
  first, second = expand(SEEDS).configs.values()
  first['model']['width'] = 1
  assert second['model']['width'] == 64


def test_arms():
  """A label stands for the fields of its points, save those that vary among them."""
  arms = [
      {'arm': 'adamw'},
      {'arm': 'adamw again'},
      {'arm': 'lion, no decay', 'optimizer.name': 'lion', 'optimizer.weight_decay': 0.0},
  ]
  clips = hyper.sweep('optimizer.clip_norm', [0.0, 1.0])
  runs = expand(hyper.product([WIDTHS, arms, clips]))
  assert runs.fields == ('model.width', 'arm', 'optimizer.clip_norm')
  assert len(runs.configs) == 12
  assert list(runs.configs)[5] == 'width=32,arm=lion,%20no%20decay,clip_norm=1.0,seed=0'
  first, again, lion = (list(runs.configs.values())[n] for n in (0, 2, 4))
  assert lion['optimizer']['name'] == 'lion' and lion['arm'] == 'lion, no decay'
  assert config_lib.split(first) == config_lib.split(again) and first != again


@pytest.mark.parametrize(
    'points, said',
    [
        ([], 'describes no runs'),
        ([{'arm': 'a'}, {'seed': 1}], 'config.arm is missing in some points'),
        ([{'arm': ''}], "config.arm='': must be a name"),
        (['seed'], "yields 'seed', must be a dict"),
        ([{1: 2}], 'yields {1: 2}, must be a dict'),
        (hyper.sweep('seed', [1, 1]), 'two runs are the same: seed=1'),
        (hyper.sweep('optimizer.eps', [1, 1.0]), 'two runs are the same: eps=1.0,seed=0'),
        (hyper.chain([[{}], [{'seed': 0}]]), 'two runs are the same: seed=0'),
        (hyper.fixed('model.widht', 1), 'config.model.widht: no such field.*config.model.width$'),
        (hyper.fixed('model.width', 65), 'config.model.width=65: must be a multiple'),
        (hyper.fixed('seed', 'one'), "config.seed='one': must be an integer"),
        (hyper.fixed('data.path', 'x'), 'config.data.path: must not be swept'),
        (hyper.fixed('data.source', 'text'), 'config.data.source: must not be swept'),
    ],
)
def test_bad_sweeps(points, said):
  with pytest.raises(BadInput, match=said):
    expand(points)


def test_override_of_a_swept_field():
  with pytest.raises(BadInput, match=r'config\.model\.width: must not be overridden'):
    expand(WIDTHS, overrides=['model.width'])
  assert len(expand(WIDTHS, overrides=['model.depth']).configs) == 2


def test_expansion_is_fast():
  points = hyper.product([
      hyper.sweep('seed', range(1000)),
      hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 1e-1, 1.0, 10.0]),
  ])
  start = time.process_time()
  assert len(expand(points).configs) == 5_000
  assert time.process_time() - start < 5


def test_seeds():
  config = base.get_config().to_dict()
  runs = hyper.expand(config, WIDTHS, seeds=3)
  assert runs.fields == ('model.width', 'seed')
  assert [(c['model']['width'], c['seed']) for c in runs.configs.values()] == [
      (width, seed) for width in (32, 64) for seed in range(3)
  ]
  assert hyper.expand(config, WIDTHS, seeds=1).configs == expand(WIDTHS).configs


@pytest.mark.parametrize('points, overrides', [(SEEDS, ()), (WIDTHS, ('seed',))])
def test_seeds_given_twice(points, overrides):
  with pytest.raises(BadInput, match='seed'):
    hyper.expand(base.get_config().to_dict(), points, overrides, seeds=3)


def test_label_of_parents():
  """init.parent stands for the paths, which differ between sizes."""
  points = [
      {'model.width': width, 'init.parent': label, 'init.checkpoint': f'/somewhere/{width}-{label}'}
      for width in (32, 64)
      for label in ('best', '3x')
  ]
  runs = hyper.expand(base.get_config().to_dict(), points)
  assert runs.fields == ('model.width', 'init.parent')
  assert list(runs.configs) == [
      f'width={width},parent={label},seed=0' for width in (32, 64) for label in ('best', '3x')
  ]
  config = runs.configs['width=64,parent=3x,seed=0']
  assert config['init']['checkpoint'] == '/somewhere/64-3x'
  same = [points[0], points[0] | {'init.checkpoint': '/elsewhere'}]
  with pytest.raises(BadInput, match='two runs are the same: width=32,parent=best,seed=0'):
    hyper.expand(base.get_config().to_dict(), same)
