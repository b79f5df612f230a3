"""stability.config.fields: the records of options, their checks, and options from outside."""

import dataclasses
import json

import numpy as np
import pytest

from configs import base
from stability import config as config_lib
from stability import variants
from stability.config import field as field_lib
from stability.config import fields
from stability.config.fields import FIELDS
from stability.errors import BadInput

# A refused value of the right type for each field.
REFUSED = {
    'seed': -1,
    'data.source': 'web',
    'data.path': '',
    'data.labels': 'dropped',
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
    'model.norm_position': 'before',
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
    'optimizer.decay_target': 'mean',
    'optimizer.layer_rate_decay': 1.0,
    'init.optimizer': 'old',
    'adapter.kind': 'full',
    'adapter.rank': 0,
    'adapter.alpha': 0.0,
    'adapter.scale': 'none',
    'adapter.rate_ratio': 0.0,
    'adapter.init': 'normal',
    'adapter.matrices': 'none',
    'schedule.steps': 0,
    'schedule.warmup_steps': -1,
    'schedule.shape': 'triangle',
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
    'checkpoint.parameters': 'float16',
    'control.on_alarm': 'stop',
    'control.timeout_seconds': -1,
    'control.default_action': 'pause',
    'control.tries': -1,
}



@pytest.fixture
def outside():
  """Removes the options and variants that a test adds."""
  yield
  fields.unregister_all()
  variants.remove_added()


def flat_base(scale: str = 'cpu') -> dict:
  return config_lib.flatten(base.get_config(scale).to_dict())


def test_names_are_unique():
  assert len(FIELDS) == len(fields.RECORDS)


@pytest.mark.parametrize('scale', field_lib.SCALES)
def test_base_config_has_every_field(scale):
  assert flat_base(scale) == fields.defaults(scale)
  config_lib.resolve(flat_base(scale))


@pytest.mark.parametrize(
    ('scale', 'size', 'base_size'),
    [
        ('cpu', '147K', '9.2K'),
        ('night', '147K', '9.2K'),
        ('gpu', '2.4M', '2.4M'),
        ('paper', '2.4M', '2.4M'),
    ],
)
def test_scales(scale, size, base_size):
  """Each scale trains a named size, with 5 % warm-up and, under wsd, 20 % decay."""
  flat = fields.defaults(scale)
  assert config_lib.size(size).items() <= flat.items()
  assert flat['parameterization.base_width'] == config_lib.size(base_size)['model.width']
  assert flat['schedule.warmup_steps'] == flat['schedule.steps'] // 20
  assert flat['schedule.decay_steps'] == flat['schedule.steps'] // 5


def test_fields_of_the_contract():
  sections = {
      'data': ('path', 'batch_size', 'sequence_length', 'seed', 'validation_batches'),
      'model': ('width', 'depth', 'head_dim', 'qk_norm'),
      'optimizer': ('learning_rate', 'eps', 'weight_decay'),
      'objective': ('z_loss',),
      'schedule': ('steps', 'warmup_steps', 'min_learning_rate'),
      'init': ('checkpoint',),
      'adapter': ('kind', 'rank'),
      'log': ('every_steps',),
      'probe': ('every_steps',),
      'checkpoint': ('every_steps',),
      'control': ('on_alarm', 'timeout_seconds'),
  }
  names = {f'{section}.{name}' for section, names in sections.items() for name in names}
  assert names | {'seed'} <= set(FIELDS)


@pytest.mark.parametrize('name', FIELDS)
def test_record(name):
  """A record explains itself in a sentence, and its own values pass its check."""
  record = FIELDS[name]
  assert record.doc.endswith('.') and record.doc[0] != ' '
  assert record.kind in field_lib.TYPES
  values = [*map(record.default_at, field_lib.SCALES), record.absent]
  for value in [*values, *([] if record.paper is fields.UNSET else [record.paper])]:
    assert record.convert(value) == value
  assert record.traced or not (record.switch or record.settable)


def refused_value(record):
  """The value in REFUSED, or else the first candidate of its type that the range excludes."""
  candidates = {str: ['no such value', ''], int: [-1, 0], float: [-1.0, 0.0, 1.0]}[record.type]
  return REFUSED.get(record.name) or next(v for v in candidates if not record.check(v))


@pytest.mark.parametrize('name', FIELDS)
def test_refused_values(name):
  record = FIELDS[name]
  wrong_type = 1.5 if record.type is int else 'word' if record.type is float else 3
  refused = [refused_value(record), wrong_type, True, [], {}]
  if record.type is float:
    refused += [float('nan'), float('inf'), -float('inf'), 1e39, 1e-46, 10**400]
  if record.type is int:
    refused += [2**31, '1']
  if not record.optional:
    refused.append(None)
  for value in refused:
    with pytest.raises(BadInput) as error:
      config_lib.resolve(flat_base() | {name: value})
    assert str(error.value) == f'config.{name}={value!r}: must be {record.allowed}'


@pytest.mark.parametrize('name', [name for name, record in FIELDS.items() if record.optional])
def test_optional_fields_may_be_unset(name):
  assert FIELDS[name].convert(None) is None


@pytest.mark.parametrize(
    'name, given, kept',
    [
        ('optimizer.learning_rate', 1, 1.0),
        ('optimizer.learning_rate', np.float32(0.5), 0.5),
        ('optimizer.learning_rate', np.float64(0.1), 0.1),
        ('optimizer.eps', 1e-19, 1e-19),
        ('optimizer.beta1', 0, 0.0),
        ('objective.z_loss', 0, 0.0),
        ('model.width', np.int64(64), 64),
        ('seed', 2**31 - 1, 2**31 - 1),
    ],
)
def test_conversion(name, given, kept):
  value = FIELDS[name].convert(given)
  assert value == kept
  assert type(value) is FIELDS[name].type


@pytest.mark.parametrize(
    'name, text, value',
    [
        ('seed', '7', 7),
        ('optimizer.learning_rate', '1', 1.0),
        ('optimizer.learning_rate', '1e-2', 0.01),
        ('model.qk_norm', 'none', 'none'),
        ('data.path', '3', '3'),
        ('parallel.members', '3', 3),
    ],
)
def test_parsing(name, text, value):
  parsed = FIELDS[name].parse(text)
  assert parsed == value
  assert type(parsed) is type(value)


@pytest.mark.parametrize(
    'name, text',
    [('seed', '3.5'), ('seed', ''), ('seed', '-1'), ('optimizer.eps', 'x'), ('data.path', '')],
)
def test_refused_text(name, text):
  with pytest.raises(BadInput, match=rf'^config\.{name}=.*: must be '):
    FIELDS[name].parse(text)


def test_beta_of_one_in_float32_is_refused():
  with pytest.raises(BadInput, match='0 or more, below 1, in float32'):
    FIELDS['optimizer.beta2'].convert(0.9999999999)


def test_error_about_a_value_without_repr():
  class Broken:
    def __repr__(self):
      raise RuntimeError

  with pytest.raises(BadInput, match=r'config\.seed=\(a Broken\): must be'):
    FIELDS['seed'].convert(Broken())


def test_help():
  assert FIELDS['model.width'].help == (
      'Width of the residual stream. Unit: features. Default: 64 (cpu, night), 256 (gpu, paper).'
      ' Allowed: an integer from 1 to 2^31 - 1.'
  )
  assert 'Default: unset.' in FIELDS['data.path'].help
  assert 'Default: 1e-05.' in FIELDS['schedule.min_learning_rate'].help


def test_settable():
  settable = set(fields.settable())
  assert all(FIELDS[name].traced for name in settable)
  assert not settable & {'seed', 'data.seed', 'schedule.steps', 'parameterization.base_width'}
  assert settable >= {
      'optimizer.learning_rate',
      'optimizer.eps',
      'optimizer.beta1',
      'optimizer.beta2',
      'optimizer.weight_decay',
      'optimizer.clip_norm',
      'schedule.warmup_steps',
      'schedule.min_learning_rate',
      'objective.z_loss',
      'objective.mu_loss',
      'model.attention_soft_cap',
      'model.output_soft_cap',
  }
  assert not settable & {'seed', 'data.seed', 'schedule.steps', 'model.width'}


def test_papers_values():
  """The paper's setup (section 2.1), which is also the default."""
  paper = fields.paper_values()
  assert paper.items() <= fields.defaults('paper').items()
  assert len(paper) >= 20
  assert paper['objective.z_loss'] == 1e-4
  assert 'optimizer.learning_rate' not in paper


# Options from outside.


def test_registered_option(outside):
  record = fields.number('optimizer.mu', 0.5, 'Weight of a term.', above=0, settable=True)
  fields.register(record)
  flat = flat_base()
  assert flat['optimizer.mu'] == 0.5
  assert config_lib.resolve(flat | {'optimizer.mu': 2})['optimizer.mu'] == 2.0
  with pytest.raises(BadInput, match=r'config\.optimizer\.mu=0: must be a number above 0'):
    config_lib.resolve(flat | {'optimizer.mu': 0})
  assert config_lib.split(config_lib.unflatten(flat))[1]['optimizer.mu'] == 0.5
  assert 'optimizer.mu' in fields.settable()
  assert fields.paper_values()['optimizer.mu'] == 0.5  # the value that changes nothing
  fields.unregister_all()
  assert list(FIELDS) == [record.name for record in fields.RECORDS]


@pytest.mark.parametrize(
    'record, said',
    [
        (fields.number('mu', 0.0, 'A number.'), "option 'mu': must be named section.name"),
        (fields.number('Model.mu', 0.0, 'A number.'), 'must be named section.name'),
        (fields.number('model.mu ', 0.0, 'A number.'), 'must be named section.name'),
        (fields.number('model.width', 1.0, 'A number.'), 'config.model.width is an option already'),
        (fields.number('model.width.mu', 1.0, 'A number.'), 'config.model.width is an option'),
        (fields.number('data.mu', -1.0, 'A number.', above=0), 'config.data.mu=-1.0: must be'),
        (fields.number('data.mu', 0.0, 'A number.', absent='x'), "config.data.mu='x': must be"),
        (fields.number('data.mu', 0.0, 'A number.', paper='x'), "config.data.mu='x': must be"),
        (fields.integer('data.mu', 0, 'A number.', settable=True), 'must be traced'),
        (fields.choice('data.mu', 'a', ('a',), 'A name.', traced=True), 'must be a number'),
    ],
)
def test_refused_option(record, said, outside):
  with pytest.raises(BadInput) as error:
    fields.register(record)
  assert said in str(error.value)
  assert record.name not in FIELDS or FIELDS[record.name] is not record


def test_option_registered_twice(outside):
  record = fields.number('model.mu', 0.0, 'A number.')
  fields.register(record)
  with pytest.raises(BadInput, match=r'config\.model\.mu is an option already'):
    fields.register(record)


def test_section_with_the_name_of_an_option(outside):
  fields.register(fields.number('model.mu.nu', 0.0, 'A number.'))
  with pytest.raises(BadInput, match=r'config\.model\.mu\.nu is an option already'):
    fields.register(fields.number('model.mu', 0.0, 'A number.'))


def test_defaults_for_some_scales_are_refused():
  with pytest.raises(BadInput, match=r'config\.model\.mu: its default must be a value, or one for'):
    fields.number('model.mu', {'cpu': 0.0}, 'A number.')


def test_choice_accepts_added_variants(outside):
  record = FIELDS['optimizer.name']
  assert not record.check('mine')
  variants.add_variant('optimizer.name', 'mine', variants.Variant(make=None, source=''))
  assert record.convert('mine') == 'mine'
  assert record.allowed.startswith('one of adamw, ') and record.allowed.endswith(', mine')
  assert not FIELDS['model.norm'].check('mine')


RECORDS_FROM_OUTSIDE = [
    fields.number('a.number', dict(cpu=1.0, night=1.0, gpu=2.0, paper=2.0), 'Text.', above=0,
                  unit='steps', source='here', settable=True, absent=3.0),
    fields.switch('a.switch', 0.0, 'Text.'),
    fields.integer('a.integer', None, 'Text.', optional=True),
    fields.choice('a.choice', 'none', ('none', 'some'), 'Text.', paper='none'),
]  # fmt: skip


@pytest.mark.parametrize('record', RECORDS_FROM_OUTSIDE, ids=lambda record: record.kind)
def test_json(record):
  """A record comes back whole from JSON, but for its check."""
  restored = config_lib.Field.from_json(json.loads(json.dumps(record.to_json())))
  assert dataclasses.replace(restored, check=record.check) == dataclasses.replace(record)
  assert restored.allowed == record.allowed


def test_restored_record_accepts_any_value_of_its_kind(outside):
  restored = config_lib.Field.from_json(RECORDS_FROM_OUTSIDE[0].to_json())
  fields.register(restored)
  assert restored.convert(-1) == -1.0
  with pytest.raises(BadInput, match='must be a number above 0, in float32'):
    restored.convert('x')


@pytest.mark.parametrize(
    'changed, said',
    [
        ({'doc': 3}, "option 'a.number': doc has the wrong type"),
        ({'traced': 1}, 'traced has the wrong type'),
        ({'kind': 'list'}, 'kind must be one of integer, number, choice, text'),
    ],
)
def test_damaged_json(changed, said):
  stored = RECORDS_FROM_OUTSIDE[0].to_json()
  with pytest.raises(BadInput) as error:
    config_lib.Field.from_json(stored | changed)
  assert said in str(error.value)
  (name,) = changed
  del stored[name]
  if name != 'traced':
    with pytest.raises(BadInput, match=f'{name} is missing'):
      config_lib.Field.from_json(stored)
  with pytest.raises(BadInput, match='must be a JSON object'):
    config_lib.Field.from_json([])
