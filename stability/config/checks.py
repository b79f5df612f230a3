"""Checks of combinations of options, which resolution.py makes on every config."""

from collections.abc import Callable, Mapping

# Largest number of sequences in a run, steps * batch_size; their indices are uint32 on the device.
MAX_EXAMPLES = 2**32

# Checks of combinations of fields: the fields, the first of which an error names, and a function of
# their values that returns what is wrong with the first one, or None.
CHECKS: list[tuple[tuple[str, ...], Callable[..., str | None]]] = []


def _check(*fields: str) -> Callable[[Callable[..., str | None]], None]:
  return lambda check: CHECKS.append((fields, check))


def _first(given: Mapping[str, bool]) -> str | None:
  return next((name for name, is_given in given.items() if is_given), None)


@_check('model.head_dim')
def _(head_dim):
  if head_dim % 2:
    return 'must be even, since RoPE rotates pairs'


@_check('model.width', 'model.head_dim')
def _(width, head_dim):
  if width % head_dim:
    return f'must be a multiple of config.model.head_dim={head_dim}'


@_check('model.query_group', 'model.width', 'model.head_dim')
def _(query_group, width, head_dim):
  if (width // head_dim) % query_group:
    return (
        f'must divide the number of heads, config.model.width={width} divided by'
        f' config.model.head_dim={head_dim}'
    )


@_check('model.experts_per_token', 'model.experts')
def _(experts_per_token, experts):
  if experts_per_token > experts:
    return f'must not be above config.model.experts={experts}'


def _needs_experts(value, mlp):
  if value and mlp != 'moe':
    return 'must be 0 unless config.model.mlp=moe, which has routers'


for _field in ('model.router_bias_rate', 'objective.balance_loss', 'objective.router_z_loss'):
  _check(_field, 'model.mlp')(_needs_experts)


@_check('schedule.min_learning_rate', 'optimizer.learning_rate')
def _(min_learning_rate, learning_rate):
  if min_learning_rate > learning_rate:
    return f'must not be above config.optimizer.learning_rate={learning_rate!r}'


@_check('schedule.warmup_steps', 'schedule.steps')
def _(warmup_steps, steps):
  if warmup_steps > steps:
    return f'must not be above config.schedule.steps={steps}'


@_check('schedule.decay_steps', 'schedule.shape', 'schedule.warmup_steps', 'schedule.steps')
def _(decay_steps, shape, warmup_steps, steps):
  if shape == 'wsd' and warmup_steps + decay_steps > steps:
    return (
        f'with config.schedule.warmup_steps={warmup_steps} must not be above'
        f' config.schedule.steps={steps}'
    )


@_check(
    'evaluation.parameters',
    *('optimizer.name', 'optimizer.parameter_rounding', 'optimizer.qk_clip', 'optimizer.skip_step'),
    *('model.output_centering', 'model.norm_position'),
)
def _(parameters, optimizer, rounding, qk_clip, skip_step, output_centering, norm_position):
  changes = {
      f'optimizer.name={optimizer}': optimizer in ('hyperball', 'muon_sphere'),
      f'optimizer.parameter_rounding={rounding}': rounding != 'none',
      'optimizer.qk_clip': qk_clip > 0,
      'optimizer.skip_step': skip_step > 0,
      f'model.output_centering={output_centering}': output_centering != 'none',
      f'model.norm_position={norm_position}': norm_position == 'ngpt',
  }
  found = _first(changes)
  if parameters == 'schedule_free' and found:
    return f'must not be schedule_free with config.{found}, whose change it would average away'


@_check('optimizer.weight_decay_kind', 'optimizer.name')
def _(kind, name):
  if kind == 'adamc' and name in ('hyperball', 'muon_sphere'):
    return f'must not be adamc with config.optimizer.name={name}, whose matrices do not decay'
  if kind == 'coupled' and name in ('prodigy', 'dowg'):
    return (
        f'must not be coupled with config.optimizer.name={name}, whose learning rate is a factor of'
        ' the one that it estimates'
    )


@_check('optimizer.name', 'parameterization.name')
def _(optimizer, name):
  if optimizer in ('hyperball', 'muon_sphere') and name == 'muparam_full':
    return (
        f'must not be {optimizer}, which keeps the norms of matrices, with'
        ' config.parameterization.name=muparam_full, whose queries start at 0'
    )
  if optimizer == 'muon_sphere' and name in ('ntk', 'mean_field'):
    return (
        'must not be muon_sphere, which sets the size of matrices, with'
        f' config.parameterization.name={name}, which multiplies them'
    )


@_check('model.kernel', 'parameterization.name')
def _(kernel, name):
  if kernel == 'wesar' and name != 'standard':
    return (
        f'must not be wesar with config.parameterization.name={name}, which sets the size of'
        ' parameters that wesar gives one size'
    )


@_check('optimizer.name', 'init.depth_scale', 'model.norm_position', 'model.kernel')
def _(optimizer, depth_scale, norm_position, kernel):
  given = {
      f'init.depth_scale={depth_scale}': depth_scale != 'none',
      'model.norm_position=deepnorm': norm_position == 'deepnorm',
      'model.kernel=wesar': kernel == 'wesar',
  }
  found = _first(given)
  if optimizer == 'muon_sphere' and found:
    return f'must not be muon_sphere, which sets the size of matrices, with config.{found}'


@_check(
    'model.norm_position',
    *('init.head', 'init.depth_scale', 'model.kernel', 'model.output_centering'),
    *('parameterization.name', 'optimizer.qk_clip', 'optimizer.name'),
)
def _(norm_position, head, depth_scale, kernel, output_centering, name, qk_clip, optimizer):
  given = {
      f'init.head={head}': head != 'fan_in',
      f'init.depth_scale={depth_scale}': depth_scale != 'none',
      f'model.kernel={kernel}': kernel != 'plain',
      f'model.output_centering={output_centering}': output_centering != 'none',
      f'parameterization.name={name}': name != 'standard',
      'optimizer.qk_clip': qk_clip > 0,
      f'optimizer.name={optimizer}': optimizer == 'muon_sphere',
  }
  found = _first(given)
  if norm_position == 'ngpt' and found:
    return f'must not be ngpt, which sets the size of all vectors, with config.{found}'


@_check('optimizer.qk_clip', 'model.kernel', 'optimizer.name')
def _(qk_clip, kernel, name):
  undoes = {
      'model.kernel=sigma_reparam': kernel == 'sigma_reparam',
      'optimizer.name=muon_sphere': name == 'muon_sphere',
  }
  found = _first(undoes)
  if qk_clip and found:
    return f'must be 0 with config.{found}, which would undo it'


@_check('model.query_group', 'model.qk_norm')
def _(query_group, qk_norm):
  if query_group > 1 and qk_norm == 'ngpt':
    return 'must be 1 with config.model.qk_norm=ngpt, whose queries and keys share a scale'


@_check('model.norm_position', 'model.block')
def _(norm_position, block):
  if norm_position == 'pre_mlp' and block == 'parallel':
    return 'must not be pre_mlp with config.model.block=parallel, where both layers read one norm'


@_check('model.head', 'optimizer.embedding_rate')
def _(head, embedding_rate):
  if head == 'tied' and embedding_rate != 'none':
    return 'must be linear with config.optimizer.embedding_rate, which would change the head too'


@_check('optimizer.restart_warmup_steps', 'optimizer.restart_every_steps', 'optimizer.name')
def _(warmup_steps, every_steps, name):
  if name == 'spam' and warmup_steps > every_steps:
    return f'must not be above config.optimizer.restart_every_steps={every_steps}'


@_check('evaluation.decay', 'evaluation.parameters')
def _(decay, parameters):
  if parameters == 'schedule_free' and decay == 0:
    return 'must be above 0 with config.evaluation.parameters=schedule_free'


@_check('model.logit_scale', 'model.qk_norm')
def _(logit_scale, qk_norm):
  if logit_scale != 1 and qk_norm != 'fixed':
    return 'must be 1 unless config.model.qk_norm=fixed, the only value that reads it'


@_check('model.attention_scale', 'model.qk_norm')
def _(attention_scale, qk_norm):
  if attention_scale != 'inverse_sqrt' and qk_norm == 'l2':
    return 'must be inverse_sqrt with config.model.qk_norm=l2, which learns a scale instead'


@_check('model.qk_norm', 'parameterization.name')
def _(qk_norm, name):
  if qk_norm == 'l2' and name == 'muparam_full':
    return (
        'must not be l2 with config.parameterization.name=muparam_full, since the learned scale of'
        ' l2 would replace its attention scale'
    )


@_check('model.kernel', 'parameterization.name')
def _(kernel, name):
  if kernel == 'sigma_reparam' and name == 'muparam_full':
    return 'must be plain with config.parameterization.name=muparam_full, whose queries start at 0'


@_check('init.head', 'model.head')
def _(init, head):
  if init != 'fan_in' and head != 'linear':
    return 'must be fan_in unless config.model.head=linear, whose matrix it initialises'


@_check('init.head_std', 'init.head')
def _(head_std, head):
  if head_std != 1e-3 and head != 'small':
    return 'must be 0.001 unless config.init.head=small, the only value that reads it'


@_check('model.head', 'parameterization.name', 'parameterization.exponents')
def _(head, name, exponents):
  if head == 'tied' and (name != 'standard' or exponents != 'none'):
    return (
        'must be linear unless config.parameterization.name=standard and'
        ' config.parameterization.exponents=none, since others scale embedding and head differently'
    )


@_check('model.head', 'model.output_centering', 'objective.mu_loss')
def _(head, output_centering, mu_loss):
  if head == 'tied' and (output_centering != 'none' or mu_loss):
    return (
        'must be linear with config.model.output_centering or config.objective.mu_loss, which'
        ' would center the embedding of the input as well'
    )


@_check('parameterization.exponents', 'parameterization.name')
def _(exponents, name):
  if exponents != 'none' and name.startswith('muparam'):
    return (
        f'must be none with config.parameterization.name={name}, which sets learning rates itself'
    )


@_check('optimizer.state_dtype', 'optimizer.name')
def _(state_dtype, name):
  if state_dtype != 'float32' and name != 'adamw':
    return 'must be float32 unless config.optimizer.name=adamw, whose state is moments alone'


@_check(
    'adapter.kind',
    *('optimizer.name', 'optimizer.qk_clip', 'model.output_centering', 'model.norm_position'),
    *('model.depth', 'parameterization.name'),
)
def _(kind, optimizer, qk_clip, output_centering, norm_position, depth, parameterization):
  given = {
      f'optimizer.name={optimizer}': optimizer in ('hyperball', 'muon_sphere'),
      'optimizer.qk_clip': qk_clip > 0,
      f'model.output_centering={output_centering}': output_centering != 'none',
      f'model.norm_position={norm_position}': norm_position == 'ngpt',
  }
  found = _first(given)
  if kind != 'none' and found:
    return f'must be none with config.{found}, which changes parameters that would be frozen'
  if kind in ('lora', 'dora') and parameterization in ('ntk', 'mean_field'):
    return (
        f'must not be {kind} with config.parameterization.name={parameterization}, as its matrices'
        ' are not drawn for multipliers'
    )
  if kind not in ('none', 'norms', 'prompt') and not depth:
    return 'must be none, norms or prompt with config.model.depth=0, which has no blocks'


@_check(
    'adapter.rank',
    *('adapter.kind', 'adapter.matrices'),
    *('model.width', 'model.query_group', 'model.mlp_width'),
)
def _(rank, kind, matrices, width, query_group, mlp_width):
  of_attention = width // query_group  # of values, which every choice but mlp adapts
  of_mlp = min(width, mlp_width or width)
  sides = {'mlp': of_mlp, 'all': min(of_attention, of_mlp)}
  most = sides.get(matrices, of_attention)
  if kind in ('lora', 'dora') and rank > most:
    return (
        f'must not be above the smallest side of a matrix of config.adapter.matrices={matrices},'
        f' which is {most}'
    )


@_check('init.optimizer', 'init.checkpoint', 'adapter.kind')
def _(optimizer, checkpoint, kind):
  if optimizer == 'checkpoint' and (kind != 'none' or '@' not in (checkpoint or '')):
    return (
        'must be new unless config.init.checkpoint=FOLDER@STEP and config.adapter.kind=none, since'
        ' only checkpoints hold moments, those of the parameters that were trained'
    )


@_check('init.adapter', 'adapter.kind')
def _(adapter, kind):
  if adapter is not None and kind in ('none', 'norms'):
    return f'must be unset with config.adapter.kind={kind}, which adds no parameters'


@_check('probe.sharpness_every_steps', 'probe.every_steps')
def _(sharpness_every_steps, every_steps):
  if sharpness_every_steps and (not every_steps or sharpness_every_steps % every_steps):
    return (
        f'must be 0 or a multiple of config.probe.every_steps={every_steps}, since sharpness is'
        ' measured along with the other probes'
    )


@_check('probe.sharpness_every_steps', 'evaluation.parameters')
def _(every_steps, parameters):
  if every_steps and parameters == 'schedule_free':
    return (
        'must be 0 with config.evaluation.parameters=schedule_free, whose parameters do not make'
        " the optimizer's step"
    )


@_check('parallel.members', 'parallel.layout')
def _(members, layout):
  if (members or 1) > 1 and layout not in ('auto', 'population'):
    return f'must be 1 with config.parallel.layout={layout}, in which a worker trains one run'


@_check('parallel.microbatches', 'data.batch_size')
def _(microbatches, batch_size):
  if batch_size % (microbatches or 1):
    return f'must divide config.data.batch_size={batch_size}'


@_check('schedule.steps', 'data.batch_size')
def _(steps, batch_size):
  if steps * batch_size > MAX_EXAMPLES:
    return (
        f'times config.data.batch_size={batch_size} must not be above {MAX_EXAMPLES} sequences'
    )


@_check('data.path', 'data.source')
def _(path, source):
  if path is not None and source == 'synthetic':
    return 'must be unset when config.data.source=synthetic'


@_check('data.tokenizer', 'data.source')
def _(tokenizer, source):
  if tokenizer != 'bytes' and source == 'synthetic':
    return 'must be bytes when config.data.source=synthetic, which has tokens of its own'
