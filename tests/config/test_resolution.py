"""stability.config: configs resolved, completed and split; named sizes."""

import pytest

from configs import base
from stability import config as config_lib
from stability.config import FIELDS, fields
from stability.errors import BadInput


def flat_base(scale: str = 'cpu') -> dict:
  return config_lib.flatten(base.get_config(scale).to_dict())


def resolved(**changes) -> dict:
  """base.py's config with these dotted fields, in which __ stands for the dot."""
  changed = {field.replace('__', '.'): value for field, value in changes.items()}
  return config_lib.unflatten(config_lib.resolve(flat_base() | changed))


def test_order_of_resolved_fields():
  backwards = dict(reversed(flat_base().items()))
  assert list(config_lib.resolve(backwards)) == list(FIELDS)


def test_unknown_field():
  with pytest.raises(BadInput, match=r'config\.model\.widht: no such.*is config\.model\.width$'):
    config_lib.resolve(flat_base() | {'model.widht': 64})


def test_missing_field():
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


def test_complete():
  """A stored config gets the fields it lacks; fields of other versions stay."""
  stored = resolved(model__qk_norm='none')
  del stored['model']['norm_position'], stored['control']
  completed = config_lib.complete(stored | {'later': {'option': 1}})
  assert completed == resolved(model__qk_norm='none') | {'later': {'option': 1}}
  assert list(config_lib.flatten(completed)) == [*FIELDS, 'later.option']


def test_complete_with_an_absent_value():
  """What absence stands for is not always the default."""
  fields.register(fields.number('model.mu', 0.5, 'A number.', absent=0.0))
  try:
    assert config_lib.complete(resolved())['model']['mu'] == 0.5
    stored = resolved()
    del stored['model']['mu']
    assert config_lib.complete(stored)['model']['mu'] == 0.0
  finally:
    fields.unregister_all()


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(model__width=40), 'config.model.width=40: must be a multiple of'),
        (dict(model__width=15, model__head_dim=5), 'config.model.head_dim=5: must be even'),
        (
            dict(model__query_group=3),
            'config.model.query_group=3: must divide the number of heads',
        ),
        (
            dict(model__experts=4, model__experts_per_token=5),
            'config.model.experts_per_token=5: must not be above config.model.experts=4',
        ),
        (
            dict(model__router_bias_rate=1e-3),
            'config.model.router_bias_rate=0.001: must be 0 unless config.model.mlp=moe',
        ),
        (
            dict(objective__balance_loss=0.01),
            'config.objective.balance_loss=0.01: must be 0 unless config.model.mlp=moe',
        ),
        (
            dict(objective__router_z_loss=0.01),
            'config.objective.router_z_loss=0.01: must be 0 unless config.model.mlp=moe',
        ),
        (dict(probe__sharpness_every_steps=30), 'must be 0 or a multiple of config.probe.every'),
        (
            dict(probe__sharpness_every_steps=40, probe__every_steps=0),
            'config.probe.sharpness_every_steps=40: must be 0',
        ),
        (
            dict(probe__sharpness_every_steps=40, evaluation__parameters='schedule_free'),
            'config.probe.sharpness_every_steps=40: must be 0 with config.evaluation.parameters=sc',
        ),
        (
            dict(parallel__layout='data_parallel', parallel__members=2),
            'config.parallel.members=2: must be 1 with config.parallel.layout=data_parallel',
        ),
        (
            dict(parallel__microbatches=3),
            'config.parallel.microbatches=3: must divide config.data.batch_size=16',
        ),
        (dict(schedule__min_learning_rate=0.02), 'config.schedule.min_learning_rate=0.02: must'),
        (dict(schedule__warmup_steps=501), 'config.schedule.warmup_steps=501: must not'),
        (
            dict(schedule__shape='wsd', schedule__decay_steps=476),
            'config.schedule.decay_steps=476: with config.schedule.warmup_steps=25 must not',
        ),
        (
            dict(evaluation__parameters='schedule_free', evaluation__decay=0.0),
            'config.evaluation.decay=0.0: must be above 0 with',
        ),
        (dict(model__logit_scale=2.0), 'config.model.logit_scale=2.0: must be 1 unless'),
        (
            dict(model__qk_norm='l2', model__attention_scale='inverse'),
            "config.model.attention_scale='inverse': must be inverse_sqrt with",
        ),
        (
            dict(model__qk_norm='l2', parameterization__name='muparam_full'),
            "config.model.qk_norm='l2': must not be l2 with config.parameterization.name=mup",
        ),
        (
            dict(
                parameterization__name='muparam_full',
                parameterization__exponents='no_alignment',
            ),
            "config.parameterization.exponents='no_alignment': must be none with",
        ),
        (
            dict(model__head='tied', parameterization__name='mup'),
            "config.model.head='tied': must be linear unless config.parameterization.name=stand",
        ),
        (
            dict(model__head='tied', parameterization__exponents='no_alignment'),
            "config.model.head='tied': must be linear unless config.parameterization.name=stand",
        ),
        (
            dict(model__head='tied', model__output_centering='mean'),
            "config.model.head='tied': must be linear with config.model.output_centering",
        ),
        (
            dict(model__head='tied', objective__mu_loss=1e-4),
            "config.model.head='tied': must be linear with config.model.output_centering",
        ),
        (dict(data__source='synthetic', data__path='x'), "config.data.path='x': must be unset"),
        (
            dict(data__source='synthetic', data__tokenizer='bpe'),
            "config.data.tokenizer='bpe': must be bytes when",
        ),
        (
            dict(evaluation__parameters='schedule_free', optimizer__parameter_rounding='nearest'),
            'must not be schedule_free with config.optimizer.parameter_rounding=nearest',
        ),
        (
            dict(evaluation__parameters='schedule_free', optimizer__qk_clip=100.0),
            'must not be schedule_free with config.optimizer.qk_clip',
        ),
        (
            dict(optimizer__weight_decay_kind='adamc', optimizer__name='hyperball'),
            'must not be adamc with config.optimizer.name=hyperball',
        ),
        (
            dict(optimizer__weight_decay_kind='coupled', optimizer__name='prodigy'),
            'must not be coupled with config.optimizer.name=prodigy',
        ),
        (
            dict(optimizer__weight_decay_kind='coupled', optimizer__name='dowg'),
            'must not be coupled with config.optimizer.name=dowg',
        ),
        (
            dict(optimizer__name='hyperball', parameterization__name='muparam_full'),
            'must not be hyperball, .* with config.parameterization.name=muparam_full',
        ),
        (
            dict(optimizer__name='muon_sphere', parameterization__name='muparam_full'),
            'must not be muon_sphere, .* with config.parameterization.name=muparam_full',
        ),
        (
            dict(optimizer__name='muon_sphere', parameterization__name='ntk'),
            'must not be muon_sphere, .* with config.parameterization.name=ntk',
        ),
        (
            dict(model__kernel='wesar', parameterization__name='muparam_simple'),
            'must not be wesar with config.parameterization.name=muparam_simple',
        ),
        (
            dict(model__norm_position='pre_mlp', model__block='parallel'),
            'must not be pre_mlp with config.model.block=parallel',
        ),
        (
            dict(optimizer__name='muon_sphere', init__depth_scale='block'),
            'must not be muon_sphere, .* with config.init.depth_scale=block',
        ),
        (
            dict(model__norm_position='ngpt', init__head='zero'),
            'must not be ngpt, .* with config.init.head=zero',
        ),
        (
            dict(model__norm_position='ngpt', optimizer__name='muon_sphere'),
            'must not be ngpt, .* with config.optimizer.name=muon_sphere',
        ),
        (
            dict(optimizer__qk_clip=30.0, model__kernel='sigma_reparam'),
            'config.optimizer.qk_clip=30.0: must be 0 with config.model.kernel=sigma_reparam',
        ),
        (
            dict(optimizer__qk_clip=30.0, optimizer__name='muon_sphere'),
            'must be 0 with config.optimizer.name=muon_sphere, which would undo it',
        ),
        (
            dict(model__query_group=2, model__qk_norm='ngpt'),
            'config.model.query_group=2: must be 1 with config.model.qk_norm=ngpt',
        ),
        (
            dict(model__head='tied', optimizer__embedding_rate='width'),
            'must be linear with config.optimizer.embedding_rate',
        ),
        (
            dict(optimizer__name='spam', optimizer__restart_warmup_steps=200),
            'must not be above config.optimizer.restart_every_steps=100',
        ),
        (
            dict(adapter__kind='lora', adapter__rank=65),
            'config.adapter.rank=65: must not be above the smallest side of a matrix of'
            ' config.adapter.matrices=all, which is 64',
        ),
        (
            dict(adapter__kind='lora', adapter__rank=17, model__query_group=4),
            'matrices=all, which is 16',
        ),
        (
            dict(
                adapter__kind='lora',
                adapter__matrices='query_value',
                adapter__rank=17,
                model__query_group=4,
            ),
            'matrices=query_value, which is 16',
        ),
        (
            dict(adapter__kind='lora', adapter__matrices='mlp', adapter__rank=65),
            'matrices=mlp, which is 64',
        ),
        (
            dict(adapter__kind='dora', adapter__rank=9, model__mlp_width=8),
            'matrices=all, which is 8',
        ),
        (
            dict(adapter__kind='lora', optimizer__name='hyperball'),
            "config.adapter.kind='lora': must be none with config.optimizer.name=hyperball",
        ),
        (
            dict(adapter__kind='lora', parameterization__name='ntk'),
            'must not be lora with config.parameterization.name=ntk',
        ),
        (
            dict(adapter__kind='norms', model__output_centering='mean'),
            "config.adapter.kind='norms': must be none with config.model.output_centering=mean",
        ),
        (
            dict(adapter__kind='ia3', model__depth=0),
            "config.adapter.kind='ia3': must be none, norms or prompt with config.model.depth=0",
        ),
        (
            dict(init__optimizer='checkpoint', init__checkpoint='x/runs/seed=0'),
            "config.init.optimizer='checkpoint': must be new unless config.init.checkpoint=FOLDER@",
        ),
        (
            dict(init__optimizer='checkpoint', init__checkpoint='x@3', adapter__kind='lora'),
            "config.init.optimizer='checkpoint': must be new unless",
        ),
        (
            dict(init__adapter='x', adapter__kind='norms'),
            "config.init.adapter='x': must be unset with config.adapter.kind=norms",
        ),
    ],
)
def test_refused_together(changes, said):
  with pytest.raises(BadInput, match=said):
    resolved(**changes)


def test_accepted_together():
  lora = dict(adapter__kind='lora', adapter__rank=64)
  resolved(**lora)
  resolved(**lora, adapter__matrices='attention', model__mlp_width=8)
  resolved(**lora, adapter__matrices='query_value', model__mlp_width=8)
  resolved(**lora, adapter__matrices='mlp', model__query_group=4)
  resolved(adapter__kind='houlsby', adapter__rank=200)
  resolved(init__optimizer='checkpoint', init__checkpoint='x/runs/seed=0@200')
  resolved(model__query_group=4)
  resolved(model__head='tied', objective__z_loss=1e-4)
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
def test_stored_numbers_are_completed_as_the_same_numbers():
  stored = resolved()
  stored['optimizer']['learning_rate'] = 0.009999999776482582  # float32 of 0.01
  stored['optimizer']['unknown'] = 0.009999999776482582  # of another version: kept as it is
  completed = config_lib.complete(stored)
  assert completed['optimizer']['learning_rate'] == 0.01
  assert completed['optimizer'].pop('unknown') == 0.009999999776482582
  assert completed == resolved()


SWITCHES = {'model.attention_soft_cap', 'model.output_soft_cap', 'objective.mu_loss'}


def test_split():
  static, hyperparameters = config_lib.split(resolved())
  assert set(hyperparameters) == {name for name, record in FIELDS.items() if record.traced}
  assert set(hyperparameters) >= TRACED
  assert hyperparameters['optimizer.learning_rate'] == 0.01
  static_flat = config_lib.flatten(static.to_dict())
  switches = {name for name, record in FIELDS.items() if record.switch}
  assert switches >= SWITCHES
  outside = {'arm', 'init.parent', 'init.checkpoint', 'init.adapter', 'init.optimizer'}
  outside |= {'control.limits'}
  assert set(static_flat) == set(FIELDS) - set(hyperparameters) - outside | switches
  assert static.model.width == 64


@pytest.mark.parametrize('field', sorted(SWITCHES))
def test_switch(field):
  off, low, high = (resolved(**{field.replace('.', '__'): value}) for value in (0, 0.5, 30.0))
  assert config_lib.split(low)[0] == config_lib.split(high)[0] != config_lib.split(off)[0]
  assert dict(config_lib.static_fields(off))[field] is False
  assert dict(config_lib.static_fields(low))[field] is True
  assert config_lib.split(high)[1][field] == 30.0


@pytest.mark.parametrize('field', sorted(TRACED))
def test_equal_static_configs(field):
  """Static configs are equal, and so are their hashes: they are the keys of executables."""
  flat = flat_base() | {'model.qk_norm': 'fixed'} | dict.fromkeys(SWITCHES, 1.0)
  value = FIELDS[field].convert(FIELDS[field].type(flat[field] * 0.9 or 1))
  base_static, base_hyperparameters = config_lib.split(
      config_lib.unflatten(config_lib.resolve(flat))
  )
  static, hyperparameters = config_lib.split(
      config_lib.unflatten(config_lib.resolve(flat | {field: value}))
  )
  assert static == base_static
  assert hash(static) == hash(base_static)
  assert hyperparameters[field] == value != base_hyperparameters[field]


def test_different_static_configs():
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


def test_ladder_of_the_paper():
  """Arxiv 2309.14322, figure 1 and section 2.1."""
  assert {'2.4M', '9.4M', '19M', '42M', '85M', '151M', '302M', '1.2B', '4.8B'} <= set(
      config_lib.SIZES
  )


def test_named_size_is_a_copy():
  config_lib.size('9.2K')['model.width'] = 1
  assert config_lib.size('9.2K')['model.width'] == 16


@pytest.mark.parametrize(
    'call',
    [lambda: config_lib.size('7B'), lambda: config_lib.for_scale('7B', {'9.2K': 1, '4.8B': 2})],
)
def test_unknown_name(call):
  with pytest.raises(BadInput, match=r"'7B': must be one of 9\.2K, .*4\.8B"):
    call()
