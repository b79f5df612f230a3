"""stability.config and configs/base.py: defaults, rules, sizes and the split."""

import numpy as np
import pytest

from configs import base
from stability import config as config_lib
from stability.config import RULES
from stability.errors import BadInput

SCALES = ('cpu', 'gpu', 'paper')


def flat_base(scale: str = 'cpu') -> dict:
  return config_lib.flatten(base.get_config(scale).to_dict())


def resolved(**changes) -> dict:
  """base.py's config with these dotted fields, in which __ stands for the dot."""
  changed = {field.replace('__', '.'): value for field, value in changes.items()}
  return config_lib.unflatten(config_lib.resolve(flat_base() | changed))


# A refused value of the right type for each field; what is wrong with wrong types is tested apart.
REFUSED = {
    'seed': -1,
    'data.source': 'web',
    'data.path': '',
    'data.tokenizer': 'words',
    'data.vocabulary_size': 256,
    'data.batch_size': 0,
    'data.sequence_length': 0,
    'data.seed': -1,
    'data.validation_batches': 0,
    'model.width': 0,
    'model.depth': -1,
    'model.head_dim': 0,
    'model.norm': 'none',
    'model.norm_position': 'post',
    'model.qk_norm': 'rmsnorm!',
    'model.logit_scale': 0.0,
    'model.attention': 'relu',
    'model.attention_scale': 'sqrt',
    'model.attention_gate': 'tanh',
    'model.attention_soft_cap': -1.0,
    'model.output_soft_cap': -1.0,
    'model.output_centering': 'median',
    'model.dtype': 'float16',
    'objective.z_loss': -1e-4,
    'objective.mu_loss': -1e-4,
    'parameterization.name': 'muparam',
    'parameterization.base_width': 0,
    'parameterization.exponents': 'half',
    'optimizer.name': 'sgd',
    'optimizer.learning_rate_scale': 'rms',
    'optimizer.learning_rate': 0.0,
    'optimizer.beta1': 1.0,
    'optimizer.beta2': -0.1,
    'optimizer.eps': 0.99e-19,
    'optimizer.clip_norm': -1.0,
    'optimizer.weight_decay': -1.0,
    'optimizer.weight_decay_kind': 'l2',
    'schedule.steps': 0,
    'schedule.warmup_steps': -1,
    'schedule.shape': 'linear',
    'schedule.decay_steps': -1,
    'schedule.min_learning_rate': -1e-5,
    'parallel.layout': 'many',
    'parallel.members': 0,
    'parallel.microbatches': 0,
    'parallel.remat': 'all',
    'log.every_steps': 0,
    'probe.every_steps': -1,
    'probe.sharpness_every_steps': -1,
    'checkpoint.every_steps': -1,
    'checkpoint.keep': 0,
    'control.on_alarm': 'stop',
    'control.timeout_seconds': -1,
    'control.default_action': 'pause',
    'control.tries': -1,
}


@pytest.mark.parametrize('scale', SCALES)
def test_base_defines_exactly_the_fields_that_have_rules(scale):
  assert set(flat_base(scale)) == set(RULES)


def test_every_field_of_the_contract_is_there():
  sections = {
      'data': ('path', 'batch_size', 'sequence_length', 'seed', 'validation_batches'),
      'model': ('width', 'depth', 'head_dim', 'qk_norm'),
      'optimizer': ('learning_rate', 'eps', 'weight_decay'),
      'objective': ('z_loss',),
      'schedule': ('steps', 'warmup_steps', 'min_learning_rate'),
      'log': ('every_steps',),
      'probe': ('every_steps',),
      'checkpoint': ('every_steps',),
  }
  fields = {f'{section}.{name}' for section, names in sections.items() for name in names}
  assert fields | {'seed'} <= set(RULES)


@pytest.mark.parametrize('field', RULES)
def test_each_rule_accepts_its_default_and_refuses(field):
  rule, default = RULES[field], flat_base()[field]
  assert rule.convert(default) == default
  wrong_type = 1.5 if rule.type is int else 'word' if rule.type is float else 3
  refused = [REFUSED[field], wrong_type, True, [], {}]
  if rule.type is float:
    refused += [float('nan'), float('inf'), -float('inf'), 1e39, 1e-46, 10**400]
  if rule.type is int:
    refused += [2**31, '1']
  if not rule.optional:
    refused.append(None)
  for value in refused:
    with pytest.raises(BadInput) as error:
      config_lib.resolve(flat_base() | {field: value})
    assert str(error.value) == f'config.{field}={value!r}: must be {rule.allowed}'


@pytest.mark.parametrize('field', [f for f, rule in RULES.items() if rule.optional])
def test_optional_fields_may_be_unset(field):
  assert RULES[field].convert(None) is None


@pytest.mark.parametrize(
    'field, given, kept',
    [
        ('optimizer.learning_rate', 1, 1.0),
        ('optimizer.learning_rate', np.float32(0.5), 0.5),
        ('optimizer.learning_rate', np.float64(0.1), 0.1),
        ('optimizer.eps', 1e-19, 1e-19),
        ('objective.z_loss', 0, 0.0),
        ('model.width', np.int64(64), 64),
        ('seed', 2**31 - 1, 2**31 - 1),
    ],
)
def test_numbers_take_the_fields_own_type(field, given, kept):
  value = RULES[field].convert(given)
  assert value == kept
  assert type(value) is RULES[field].type


@pytest.mark.parametrize(
    'field, text, value',
    [
        ('seed', '7', 7),
        ('optimizer.learning_rate', '1', 1.0),
        ('optimizer.learning_rate', '1e-2', 0.01),
        ('model.qk_norm', 'none', 'none'),
        ('data.path', '3', '3'),
        ('parallel.members', '3', 3),
    ],
)
def test_text_is_parsed_in_the_fields_own_type(field, text, value):
  parsed = RULES[field].parse(text)
  assert parsed == value
  assert type(parsed) is type(value)


@pytest.mark.parametrize(
    'field, text',
    [('seed', '3.5'), ('seed', ''), ('seed', '-1'), ('optimizer.eps', 'x'), ('data.path', '')],
)
def test_text_that_is_refused(field, text):
  with pytest.raises(BadInput, match=r'^must be '):
    RULES[field].parse(text)


def test_resolved_fields_come_in_the_rules_order():
  backwards = dict(reversed(flat_base().items()))
  assert list(config_lib.resolve(backwards)) == list(RULES)


def test_an_unknown_field_is_named_with_the_nearest():
  with pytest.raises(BadInput, match=r'config\.model\.widht: no such.*is config\.model\.width$'):
    config_lib.resolve(flat_base() | {'model.widht': 64})


def test_a_missing_field_is_named():
  flat = flat_base()
  del flat['optimizer.eps']
  with pytest.raises(BadInput, match=r'config\.optimizer\.eps: missing; it must be a num'):
    config_lib.resolve(flat)


def test_flatten_and_unflatten():
  nested = {'seed': 0, 'model': {'width': 64, 'qk': {'norm': None}}}
  flat = {'seed': 0, 'model.width': 64, 'model.qk.norm': None}
  assert config_lib.flatten(nested) == flat
  assert config_lib.unflatten(flat) == nested
  assert config_lib.flatten({'model': {}}) == {'model': {}}  # kept, so that it can be refused


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(model__width=40), 'config.model.width=40: must be a multiple of'),
        (dict(model__width=15, model__head_dim=5), 'config.model.head_dim=5: must be even'),
        (dict(probe__sharpness_every_steps=30), 'must be 0 or a multiple of config.probe.every'),
        (
            dict(probe__sharpness_every_steps=40, probe__every_steps=0),
            'config.probe.sharpness_every_steps=40: must be 0',
        ),
        (dict(schedule__min_learning_rate=0.02), 'config.schedule.min_learning_rate=0.02: must'),
        (dict(schedule__warmup_steps=501), 'config.schedule.warmup_steps=501: must not'),
        (
            dict(schedule__shape='wsd', schedule__decay_steps=476),
            'config.schedule.decay_steps=476: with config.schedule.warmup_steps=25 must not',
        ),
        (dict(model__logit_scale=2.0), 'config.model.logit_scale=2.0: must be 1 unless'),
        (
            dict(model__qk_norm='l2', model__attention_scale='inverse'),
            "config.model.attention_scale='inverse': must be inverse_sqrt with",
        ),
        (
            dict(model__qk_norm='l2', parameterization__name='muparam_full'),
            'config.model.qk_norm=l2: must not be with config.parameterization.name=muparam_full',
        ),
        (
            dict(
                parameterization__name='muparam_full',
                parameterization__exponents='no_alignment',
            ),
            "config.parameterization.exponents='no_alignment': must be none with",
        ),
        (dict(data__source='synthetic', data__path='x'), 'config.data.path: must be unset'),
        (
            dict(data__source='synthetic', data__tokenizer='bpe'),
            "config.data.tokenizer='bpe': must be left alone",
        ),
    ],
)
def test_fields_that_do_not_fit_each_other(changes, said):
  with pytest.raises(BadInput, match=said):
    resolved(**changes)


def test_fields_that_just_fit_each_other():
  resolved(model__width=16, model__head_dim=16)
  resolved(schedule__min_learning_rate=0.01, optimizer__learning_rate=0.01)
  resolved(schedule__warmup_steps=500, schedule__steps=500)
  resolved(data__source='synthetic')
  resolved(schedule__shape='wsd', schedule__decay_steps=475)
  resolved(schedule__decay_steps=501)  # of no other shape
  resolved(model__qk_norm='fixed', model__logit_scale=100.0)
  resolved(model__qk_norm='fixed', model__attention_scale='inverse')
  resolved(parameterization__name='mup', parameterization__exponents='no_alignment')


TRACED = {
    'seed',
    'data.seed',
    'model.logit_scale',
    'model.attention_soft_cap',
    'model.output_soft_cap',
    'objective.z_loss',
    'objective.mu_loss',
    'parameterization.base_width',
    'optimizer.learning_rate',
    'optimizer.beta1',
    'optimizer.beta2',
    'optimizer.eps',
    'optimizer.clip_norm',
    'optimizer.weight_decay',
    'schedule.steps',
    'schedule.warmup_steps',
    'schedule.decay_steps',
    'schedule.min_learning_rate',
}
SWITCHES = {'model.attention_soft_cap', 'model.output_soft_cap', 'objective.mu_loss'}


def test_split_parts_every_field_into_traced_and_static():
  static, hyperparameters = config_lib.split(resolved())
  assert set(hyperparameters) == TRACED
  assert hyperparameters['optimizer.learning_rate'] == 0.01
  static_flat = config_lib.flatten(static.to_dict())
  assert set(static_flat) == set(RULES) - TRACED | SWITCHES
  assert static.model.width == 64


@pytest.mark.parametrize('field', sorted(SWITCHES))
def test_whether_a_switch_is_on_is_static_and_its_number_traced(field):
  off, low, high = (resolved(**{field.replace('.', '__'): value}) for value in (0, 0.5, 30.0))
  assert config_lib.split(low)[0] == config_lib.split(high)[0] != config_lib.split(off)[0]
  assert dict(config_lib.static_fields(off))[field] is False
  assert dict(config_lib.static_fields(low))[field] is True
  assert config_lib.split(high)[1][field] == 30.0


@pytest.mark.parametrize('field', sorted(TRACED))
def test_hyperparameters_share_the_static_config(field):
  """Equal and of equal hash: it is the key by which an executable is found again."""
  flat = flat_base() | {'model.qk_norm': 'fixed'} | dict.fromkeys(SWITCHES, 1.0)
  value = RULES[field].type(flat[field] * 0.9 or 1)
  base_static, base_hyperparameters = config_lib.split(
      config_lib.unflatten(config_lib.resolve(flat))
  )
  static, hyperparameters = config_lib.split(
      config_lib.unflatten(config_lib.resolve(flat | {field: value}))
  )
  assert static == base_static
  assert hash(static) == hash(base_static)
  assert hyperparameters[field] == value != base_hyperparameters[field]


def test_static_fields_do_not_share_it():
  base_static, _ = config_lib.split(resolved())
  for changes in (dict(model__qk_norm='none'), dict(model__width=32), dict(data__batch_size=8)):
    assert config_lib.split(resolved(**changes))[0] != base_static


@pytest.mark.parametrize('name', config_lib.SIZES)
def test_named_sizes(name):
  config = config_lib.unflatten(config_lib.resolve(flat_base() | config_lib.size(name)))
  width, depth = config['model']['width'], config['model']['depth']
  # Queries, keys, values and output are width^2 each, the two of the MLP 4 width^2.
  assert config_lib.parameters(config) == depth * (4 * width**2 + 2 * 4 * width**2)
  stated = float(name[:-1]) * {'K': 1e3, 'M': 1e6, 'B': 1e9}[name[-1]]
  assert config_lib.parameters(config) == pytest.approx(stated, rel=0.02)


def test_the_papers_ladder_is_named():
  """Arxiv 2309.14322, figure 1 and section 2.1."""
  assert {'2.4M', '9.4M', '19M', '42M', '85M', '151M', '302M', '1.2B', '4.8B'} <= set(
      config_lib.SIZES
  )


def test_a_named_size_is_a_copy():
  config_lib.size('9.2K')['model.width'] = 1
  assert config_lib.size('9.2K')['model.width'] == 16


@pytest.mark.parametrize(
    'call',
    [lambda: config_lib.size('7B'), lambda: config_lib.for_scale('7B', {'9.2K': 1, '4.8B': 2})],
)
def test_unknown_names_list_the_known(call):
  with pytest.raises(BadInput, match=r"'7B': must be one of 9\.2K, .*4\.8B"):
    call()
