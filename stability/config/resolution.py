"""What a config may say: named sizes, each field's rule, the split into static and traced.

configs/base.py holds the defaults; this file holds what is allowed. It imports no jax.
"""

import contextlib
import ctypes
import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from stability.data.batches import MAX_EXAMPLES
from stability.errors import BadInput

Config = dict[str, Any]  # a resolved config: nested plain dicts


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a field may hold."""

  type: type
  allowed: str
  check: Callable[[Any], bool] = lambda value: True
  traced: bool = False  # an argument of the compiled step: changing it never recompiles
  optional: bool = False  # None is allowed
  # Traced, but 0 leaves the term out of the program: whether it is there is static.
  switch: bool = False

  def convert(self, value: Any) -> Any:
    """The value in the field's own type; BadInput says what is allowed."""
    if value is None and self.optional:
      return None
    # The abstract types admit NumPy's numbers, and an integer where a float is meant.
    kind = {int: numbers.Integral, float: numbers.Real}.get(self.type, self.type)
    if isinstance(value, kind) and not isinstance(value, bool):
      with contextlib.suppress(OverflowError):  # float(10**400)
        value = self.type(value)
        if self.check(value):
          return value
    raise BadInput(f'must be {self.allowed}')

  def parse(self, text: str) -> Any:
    """The value that a command line's text stands for."""
    try:
      value = self.type(text)
    except ValueError:
      raise BadInput(f'must be {self.allowed}') from None
    return self.convert(value)


def _integer(at_least: int, power: int = 31, **options) -> Rule:
  allowed = f'an integer from {at_least} to 2^{power} - 1'
  return Rule(int, allowed, lambda value: at_least <= value < 2**power, **options)


def _float32(value: float) -> float:
  return ctypes.c_float(value).value


def _number(allowed: str, check: Callable[[float], bool], **options) -> Rule:
  def fits(value: float) -> bool:
    # Runs compute in float32: what becomes infinite there, or zero, is not what was asked for.
    return math.isfinite(_float32(value)) and bool(_float32(value)) == bool(value)

  return Rule(float, f'{allowed}, in float32', lambda v: fits(v) and check(v), **options)


def _choice(*names: str) -> Rule:
  return Rule(str, 'one of ' + ', '.join(names), lambda value: value in names)


_BETA = _number('a number, 0 <= beta < 1', lambda value: 0 <= _float32(value) < 1, traced=True)
_NOT_NEGATIVE = _number('a number, 0 or more', lambda value: value >= 0, traced=True)
_SWITCH = dataclasses.replace(_NOT_NEGATIVE, switch=True)
_POSITIVE = _number('a number above 0', lambda value: value > 0, traced=True)

RULES: dict[str, Rule] = {
    'seed': _integer(0, traced=True),
    'data.source': _choice('text', 'synthetic'),
    'data.path': Rule(str, 'a file or folder', bool, optional=True),
    'data.tokenizer': _choice('bytes', 'bpe'),
    'data.vocabulary_size': _integer(257),
    'data.batch_size': _integer(1),
    'data.sequence_length': _integer(1),
    'data.seed': _integer(0, traced=True),
    'data.validation_batches': _integer(1),
    'model.width': _integer(1),
    'model.depth': _integer(0),
    'model.head_dim': _integer(1),
    'model.norm': _choice('layernorm', 'rmsnorm'),
    'model.norm_position': _choice('pre', 'peri'),
    'model.qk_norm': _choice('layernorm', 'layernorm_model', 'rmsnorm', 'l2', 'fixed', 'none'),
    'model.logit_scale': _POSITIVE,
    'model.attention': _choice('softmax', 'squared_relu'),
    'model.attention_scale': _choice('inverse_sqrt', 'inverse'),
    'model.attention_gate': _choice('none', 'sigmoid'),
    'model.attention_soft_cap': _SWITCH,
    'model.output_soft_cap': _SWITCH,
    'model.output_centering': _choice('none', 'mean'),
    'model.dtype': _choice('float32', 'bfloat16'),
    'objective.z_loss': _NOT_NEGATIVE,
    'objective.mu_loss': _SWITCH,
    'parameterization.name': _choice(
        'standard',
        'muparam_simple',
        'muparam_intermediate',
        'muparam_full',
        'ntk',
        'mup',
        'mean_field',
    ),
    'parameterization.base_width': _integer(1, traced=True),
    'parameterization.exponents': _choice('none', 'full_alignment', 'no_alignment'),
    'optimizer.name': _choice('adamw', 'adam_atan2', 'stable_adamw', 'lion', 'muon', 'adafactor'),
    'optimizer.learning_rate': _POSITIVE,
    'optimizer.learning_rate_scale': _choice('none', 'parameter_rms'),
    'optimizer.beta1': _BETA,
    'optimizer.beta2': _BETA,
    # v = g^2 underflows in float32 below |g| = 1e-19, and m / (0 + eps) explodes from there.
    'optimizer.eps': _number(
        'a number, 1e-19 or more',
        lambda value: value >= 1e-19,
        traced=True,
    ),
    'optimizer.clip_norm': _NOT_NEGATIVE,
    'optimizer.weight_decay': _NOT_NEGATIVE,
    'optimizer.weight_decay_kind': _choice('independent', 'coupled'),
    'schedule.steps': _integer(1, power=24, traced=True),  # they leave a step as a float32
    'schedule.warmup_steps': _integer(0, traced=True),
    'schedule.shape': _choice('cosine', 'wsd', 'rsqrt'),
    'schedule.decay_steps': _integer(0, traced=True),
    'schedule.min_learning_rate': _NOT_NEGATIVE,
    'parallel.layout': _choice('auto', 'single', 'population', 'data_parallel', 'sharded'),
    'parallel.members': _integer(1, optional=True),
    'parallel.microbatches': _integer(1, optional=True),
    'parallel.remat': _choice('auto', 'none', 'block'),
    'log.every_steps': _integer(1),
    'probe.every_steps': _integer(0),
    'probe.sharpness_every_steps': _integer(0),
    'checkpoint.every_steps': _integer(0),
    'checkpoint.keep': _integer(1),
    'control.on_alarm': _choice('none', 'ask', 'policy'),
    'control.timeout_seconds': _integer(0),
    'control.default_action': _choice('continue', 'stop', 'policy'),
    'control.tries': _integer(0),
}

# One sweep, one text: a run's loss can only be held against another's on the same validation text.
NEVER_SWEPT = ('data.source', 'data.path', 'data.tokenizer', 'data.vocabulary_size')


def shown(value: Any) -> str:
  """A value that may be anything, for an error."""
  try:
    return repr(value)
  except Exception:
    return f'(a {type(value).__name__})'


def unknown_field(field: str) -> BadInput:
  """The error for a field that no config has, with the nearest that one does."""
  nearest = difflib.get_close_matches(field, RULES, n=1, cutoff=0.0)
  return BadInput(f'config.{field}: no such field; the nearest is config.{nearest[0]}')


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'model': {'width': 64}} -> {'model.width': 64}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:  # an empty section is kept, to be refused by name
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> Config:
  """{'model.width': 64} -> {'model': {'width': 64}}."""
  config: Config = {}
  for field, value in flat.items():
    *sections, name = field.split('.')
    section = config
    for part in sections:
      section = section.setdefault(part, {})
    section[name] = value
  return config


def resolve(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Checks dotted fields and values; returns them in RULES' order, numbers in each field's type."""
  for field in flat:
    if field not in RULES:
      raise unknown_field(field)
  for field, rule in RULES.items():
    if field not in flat:
      raise BadInput(f'config.{field}: missing; it must be {rule.allowed}')
  resolved = convert({field: flat[field] for field in RULES})
  _check_together(resolved)
  return resolved


def convert(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Some fields' values, each in its field's own type; BadInput for one that it may not hold."""
  converted = {}
  for field, value in flat.items():
    try:
      converted[field] = RULES[field].convert(value)
    except BadInput as error:
      raise BadInput(f'config.{field}={shown(value)}: {error}') from None
  return converted


def _check_together(c: Mapping[str, Any]) -> None:
  """What no field can say of itself alone."""
  if c['model.head_dim'] % 2:
    raise BadInput(
        f'config.model.head_dim={c["model.head_dim"]}: must be even, RoPE rotates pairs'
    )
  if c['model.width'] % c['model.head_dim']:
    raise BadInput(
        f'config.model.width={c["model.width"]}: must be a multiple of'
        f' config.model.head_dim={c["model.head_dim"]}'
    )
  if c['schedule.min_learning_rate'] > c['optimizer.learning_rate']:
    raise BadInput(
        f'config.schedule.min_learning_rate={c["schedule.min_learning_rate"]!r}: must not be above'
        f' config.optimizer.learning_rate={c["optimizer.learning_rate"]!r}'
    )
  if c['schedule.warmup_steps'] > c['schedule.steps']:
    raise BadInput(
        f'config.schedule.warmup_steps={c["schedule.warmup_steps"]}: must not be above'
        f' config.schedule.steps={c["schedule.steps"]}'
    )
  if (
      c['schedule.shape'] == 'wsd'
      and c['schedule.warmup_steps'] + c['schedule.decay_steps'] > c['schedule.steps']
  ):
    raise BadInput(
        f'config.schedule.decay_steps={c["schedule.decay_steps"]}: with'
        f' config.schedule.warmup_steps={c["schedule.warmup_steps"]} must not be above'
        f' config.schedule.steps={c["schedule.steps"]}'
    )
  if c['model.logit_scale'] != 1 and c['model.qk_norm'] != 'fixed':
    raise BadInput(
        f'config.model.logit_scale={c["model.logit_scale"]!r}: must be 1 unless'
        f' config.model.qk_norm=fixed, which alone reads it'
    )
  if c['model.attention_scale'] != 'inverse_sqrt' and c['model.qk_norm'] == 'l2':
    raise BadInput(
        f'config.model.attention_scale={c["model.attention_scale"]!r}: must be inverse_sqrt with'
        f' config.model.qk_norm=l2, which learns a scale in its place'
    )
  name, exponents = c['parameterization.name'], c['parameterization.exponents']
  if name == 'muparam_full' and c['model.qk_norm'] == 'l2':
    raise BadInput(
        'config.model.qk_norm=l2: must not be with config.parameterization.name=muparam_full, whose'
        ' scale of attention logits the one that l2 learns would replace'
    )
  if name.startswith('muparam') and exponents != 'none':
    raise BadInput(
        f'config.parameterization.exponents={exponents!r}: must be none with'
        f' config.parameterization.name={name}, whose learning rates are its own'
    )
  sharpness_every, probe_every = c['probe.sharpness_every_steps'], c['probe.every_steps']
  if sharpness_every and (not probe_every or sharpness_every % probe_every):
    raise BadInput(
        f'config.probe.sharpness_every_steps={sharpness_every}: must be 0 or a multiple of'
        f' config.probe.every_steps={probe_every}, as it is measured on top of the other probes'
    )
  if c['schedule.steps'] * c['data.batch_size'] > MAX_EXAMPLES:
    raise BadInput(
        f'config.schedule.steps={c["schedule.steps"]}: times config.data.batch_size='
        f'{c["data.batch_size"]} must not be above {MAX_EXAMPLES} sequences'
    )
  if c['data.source'] == 'synthetic' and c['data.path'] is not None:
    raise BadInput('config.data.path: must be unset when config.data.source=synthetic')
  if c['data.source'] == 'synthetic' and c['data.tokenizer'] != 'bytes':
    raise BadInput(
        f'config.data.tokenizer={c["data.tokenizer"]!r}: must be left alone when'
        ' config.data.source=synthetic, whose tokens are its own'
    )


def split(config: Config) -> tuple[ml_collections.FrozenConfigDict, dict[str, float | int]]:
  """A resolved config -> (static config, hyperparameters by dotted field).

  The static config shapes the programs; runs that share it form a population and its executables.
  A switch is there as True or False: whether its number, a hyperparameter, is above 0.
  """
  hyperparameters = {f: value for f, value in flatten(config).items() if RULES[f].traced}
  return ml_collections.FrozenConfigDict(unflatten(dict(static_fields(config)))), hyperparameters


def static_fields(config: Config) -> tuple[tuple[str, Any], ...]:
  """The static config as (dotted field, value) pairs: equal for runs that share executables."""
  return tuple(
      (field, value > 0 if rule.switch else value)
      for field, value in flatten(config).items()
      if not (rule := RULES[field]).traced or rule.switch
  )
