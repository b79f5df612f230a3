"""Fine-tuning methods: which parameters of a model are trained, and which are added to it.

A method is an entry of ADAPTERS. The parameters that it does not train are frozen: they are a part
of the run's state without gradients, decay or optimizer state. The parameters that it adds have a
path with a name that ends in `_adapter`. LoRA and DoRA add them beside the kernels of a tree of
parameters, from which `weights` computes the kernels that the model sees. The other methods add
them in modules: a model calls `adapt` at these points, with x and its shape:

  embedding    the input of the blocks [B, T, D]; `stream` is that of the final norm [B, T, D]
  key, value   the products with these kernels, before any normalisation [B T, D]
  hidden       the MLP after its activation [B T, F]
  attention    the output of attention, before the residual connection [B, T, D]; `mlp` likewise

In comments, in and out are the sides of a kernel W [in, out], r is adapter.rank and s the factor
of adapter.scale.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections

from stability.model.kernels import SMALLEST_NORM, dot, fan_in_init
from stability.types import HParams, Params, Static
from stability.variants import Choices, Variant

Path = tuple[str, ...]  # of a parameter
Flat = dict[Path, jax.Array]

SUFFIX = '_adapter'
OF_RANK = ('b', 'up')  # matrices of adapters whose fan-in is the rank, whatever the width
PROMPT = 'vectors'

# Mixed into a run's seed for the parameters that are added to a tree, so that all others keep
# theirs.
_KEY = 0x10FA


class Adapter(NamedTuple):
  """A fine-tuning method."""

  trains: Callable[[Path], bool]
  # (parameters, key, hparams, static) -> parameters to add to them or to replace.
  add: Callable[[Flat, jax.Array, HParams, Static], Flat] | None = None
  # (parameters, hparams, static) -> the weights that the model computes with.
  weights: Callable[[Flat, HParams, Static], Flat] | None = None
  # Parameters -> the weights of a plain model, where `adapt` does no more than change weights.
  merge: Callable[[Flat], Flat] | None = None
  # (module, name of the point, x) -> x.
  adapt: Callable[[nn.Module, str, jax.Array], jax.Array] | None = None
  # (path, hparams) -> factor of a parameter's learning rate.
  rate: Callable[[Path, HParams], jax.Array | float] | None = None


def is_added(path: Path) -> bool:
  """Whether a parameter belongs to an adapter."""
  return any(name.endswith(SUFFIX) for name in path)


def of(static: Static) -> Adapter:
  """The method of a static config."""
  return ADAPTERS[static.adapter.kind].make


def model_config(model: Static, static: Static) -> Static:
  """config.model for the modules: with config.adapter, if the method acts in them."""
  if of(static).adapt is None:
    return model
  return ml_collections.FrozenConfigDict(dict(model) | {'adapter': static.adapter})


def adapt(module: nn.Module, point: str, x: jax.Array) -> jax.Array:
  """What the method of the module's config makes of x at a point; x itself if it does nothing."""
  config = module.c.get('adapter')
  return x if config is None else ADAPTERS[config.kind].make.adapt(module, point, x)


def acts(module: nn.Module) -> bool:
  """Whether `adapt` may change anything in a module."""
  return 'adapter' in module.c


# Trees of parameters.


def added(params: Params, hparams: HParams, static: Static) -> Params:
  """The parameters of a model and those that its method adds to the tree."""
  add = of(static).add
  if add is None:
    return params
  flat = flax.traverse_util.flatten_dict(params)
  key = jax.random.fold_in(jax.random.key(hparams['seed']), _KEY)
  return flax.traverse_util.unflatten_dict(flat | add(flat, key, hparams, static))


def parts(params: Params, static: Static) -> dict[str, Params]:
  """All parameters as entries of a run's state: `params`, and `frozen` if any are."""
  if static.adapter.kind == 'none':
    return {'params': params}
  trains, flat = of(static).trains, flax.traverse_util.flatten_dict(params)
  entries = {
      'params': {path: leaf for path, leaf in flat.items() if trains(path)},
      'frozen': {path: leaf for path, leaf in flat.items() if not trains(path)},
  }
  return {name: flax.traverse_util.unflatten_dict(entry) for name, entry in entries.items()}


def joined(params: Params, frozen: Params | None) -> Params:
  """All parameters, from those that are trained and those that are frozen, if any are."""
  if frozen is None:
    return params
  flats = (flax.traverse_util.flatten_dict(tree) for tree in (params, frozen))
  return flax.traverse_util.unflatten_dict({path: p for flat in flats for path, p in flat.items()})


def weights(params: Params, hparams: HParams, static: Static) -> Params:
  """The weights that the model computes with, apart from multipliers of the parameterization."""
  make = of(static).weights
  if make is None:
    return params
  return _plain(make(flax.traverse_util.flatten_dict(params), hparams, static))


def merged(params: Params, hparams: HParams, static: Static) -> Params:
  """The parameters of a plain model that computes the same, for a method that `merges`."""
  merge = of(static).merge
  if merge is None:
    return weights(params, hparams, static)
  return _plain(merge(flax.traverse_util.flatten_dict(params)))


def merges(static: Static) -> bool:
  """Whether `merged` gives a plain model, with no parameters of an adapter."""
  method = of(static)
  # Other kernels may depend on their parameters in another way than in proportion.
  return method.adapt is None or (method.merge is not None and static.model.kernel == 'plain')


def _plain(flat: Flat) -> Params:
  """A tree without what adapters have added."""
  return flax.traverse_util.unflatten_dict(
      {path: leaf for path, leaf in flat.items() if not is_added(path)}
  )


# LoRA and DoRA.


def _of_attention(path: Path) -> bool:
  return path[1:2] == ('attention',) and path[-1] in ('query', 'key', 'value', 'output')


def _of_mlp(path: Path) -> bool:
  return path[1:2] == ('mlp',) and path[-1] in ('up', 'down', 'gate')


# Path of a parameter of a block -> whether LoRA and DoRA adapt it.
MATRICES = Choices(
    'adapter.matrices',
    {
        'all': Variant(
            lambda path: _of_attention(path) or _of_mlp(path), 'thinkingmachines.ai/blog/lora'
        ),
        'attention': Variant(_of_attention, 'arXiv 2106.09685, section 4.2'),
        'mlp': Variant(_of_mlp, 'thinkingmachines.ai/blog/lora'),
        'query_value': Variant(
            lambda path: _of_attention(path) and path[-1] in ('query', 'value'),
            'arXiv 2106.09685, section 5',
        ),
    },
)

# (alpha, r) -> s.
SCALES = Choices(
    'adapter.scale',
    {
        'rank': Variant(lambda alpha, rank: alpha / rank, 'arXiv 2106.09685, section 4.1'),
        'sqrt_rank': Variant(lambda alpha, rank: alpha / rank**0.5, 'arXiv 2312.03732'),
    },
)


def _pissa(
    kernel: jax.Array, rank: int, scale: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """A and B from the largest singular values of W, and what remains of W, so that the sum is W."""
  u, values, v = jnp.linalg.svd(kernel, full_matrices=False)
  root = jnp.sqrt(values[:rank] / scale)
  a, b = u[:, :rank] * root, root[:, None] * v[:rank]
  return a, b, kernel - scale * (a @ b)


# (W, r, s) -> A, B and the frozen kernel; None: A uniform with the variance 1 / (3 in), which is
# kaiming-uniform with a = sqrt(5), as in torch.nn.Linear; B zero; W.
INITS = Choices(
    'adapter.init',
    {
        'kaiming': Variant(None, 'arXiv 2106.09685; github.com/huggingface/peft'),
        'pissa': Variant(_pissa, 'arXiv 2404.02948'),
    },
)


def _name(path: Path, name: str) -> Path:
  """The path of a parameter of the adapter of a kernel."""
  return (*path[:-1], f'{path[-1]}{SUFFIX}', name)


def _scale(hparams: HParams, static: Static) -> jax.Array:
  c = static.adapter
  return SCALES[c.scale].make(hparams['adapter.alpha'], c.rank)


def _add_lora(flat: Flat, key: jax.Array, hparams: HParams, static: Static) -> Flat:
  """A [in, r] and B [r, out] of each chosen kernel."""
  c = static.adapter
  chosen = [path for path in sorted(flat) if MATRICES[c.matrices].make(path)]
  init, found = INITS[c.init].make, {}
  for number, path in enumerate(chosen):
    kernel, (fan_in, fan_out) = flat[path], flat[path].shape
    if init is None:
      shape, bound = (fan_in, c.rank), fan_in**-0.5
      a = jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound)
      b = jnp.zeros((c.rank, fan_out))
    else:
      a, b, found[path] = init(kernel, c.rank, _scale(hparams, static))
    found |= {_name(path, 'a'): a, _name(path, 'b'): b}
  return found


def _add_dora(flat: Flat, key: jax.Array, hparams: HParams, static: Static) -> Flat:
  """A and B as in LoRA, and the norm of the kernel of each output."""
  norms = {
      _name(path, 'magnitude'): _norms(kernel)
      for path, kernel in flat.items()
      if MATRICES[static.adapter.matrices].make(path)
  }
  return norms | _add_lora(flat, key, hparams, static)


def _norms(kernel: jax.Array) -> jax.Array:
  return jnp.linalg.norm(kernel, axis=0)


def _lora(flat: Flat, hparams: HParams, static: Static) -> Flat:
  """W + s A B."""
  scale = _scale(hparams, static)
  return flat | {
      path: kernel + scale * (flat[_name(path, 'a')] @ flat[_name(path, 'b')])
      for path, kernel in flat.items()
      if _name(path, 'a') in flat
  }


def _dora(flat: Flat, hparams: HParams, static: Static) -> Flat:
  """V = W + s A B, scaled to the learned norm of each output; no gradient passes its own norm."""
  found = _lora(flat, hparams, static)
  for path in flat:
    if (magnitude := _name(path, 'magnitude')) in flat:
      norms = jnp.maximum(jax.lax.stop_gradient(_norms(found[path])), SMALLEST_NORM)
      found[path] = found[path] * (flat[magnitude] / norms)
  return found


def _lora_rate(path: Path, hparams: HParams) -> jax.Array | float:
  """LoRA+: B learns faster than A by a factor."""
  return hparams['adapter.rate_ratio'] if path[-1] == 'b' else 1.0


# Methods in modules.


class Bottleneck(nn.Module):
  """x + up(gelu(down(x))), with r features in between; up starts at zero."""

  rank: int

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    B, T, D = x_BxTxD.shape
    down_DxR = self.param('down', fan_in_init, (D, self.rank)).astype(x_BxTxD.dtype)
    up_RxD = self.param('up', nn.initializers.zeros, (self.rank, D)).astype(x_BxTxD.dtype)
    hidden = nn.gelu(dot(x_BxTxD.reshape(B * T, D), down_DxR))
    return x_BxTxD + dot(hidden, up_RxD).reshape(B, T, D)


def _houlsby(module: nn.Module, point: str, x: jax.Array) -> jax.Array:
  """Bottlenecks behind attention and MLP, without the biases of the paper."""
  if point not in ('attention', 'mlp'):
    return x
  return Bottleneck(module.c.adapter.rank, name=f'{point}{SUFFIX}')(x)


class Scale(nn.Module):
  """x times a learned vector, at first of ones."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x * self.param('scale', nn.initializers.ones, x.shape[-1:]).astype(x.dtype)


def _ia3(module: nn.Module, point: str, x: jax.Array) -> jax.Array:
  """Learned scales of keys, values and the hidden features of the MLP."""
  return Scale(name=f'{point}{SUFFIX}')(x) if point in ('key', 'value', 'hidden') else x


def _merge_ia3(flat: Flat) -> Flat:
  """Columns of the kernels of keys and values, and rows of that behind the hidden features."""
  found = {}
  for path, scale in flat.items():
    if is_added(path):
      *module, point, _ = path
      name, factor = point.removesuffix(SUFFIX), scale
      if name == 'hidden':
        name, factor = 'down', scale[:, None]
      kernel = (*module, name)
      found[kernel] = flat[kernel] * factor
  return flat | found


class Prompt(nn.Module):
  """r learned vectors before the embeddings of a sequence, drawn with the std of these."""

  rank: int
  has_unit_rms: bool  # whether embeddings have an RMS of 1, and not of 1 / sqrt(D)

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    B, _, D = x_BxTxD.shape
    std = 1.0 if self.has_unit_rms else D**-0.5
    vectors = self.param(PROMPT, nn.initializers.normal(std), (self.rank, D))
    prompt = jnp.broadcast_to(vectors.astype(x_BxTxD.dtype), (B, self.rank, D))
    return jnp.concatenate([prompt, x_BxTxD], axis=1)


def _prompt(module: nn.Module, point: str, x: jax.Array) -> jax.Array:
  """Vectors before the input, which get positions and attention like tokens but no logits."""
  if point == 'embedding':
    has_unit_rms = module.c.embedding in ('scaled', 'rmsnorm')
    return Prompt(module.c.adapter.rank, has_unit_rms, name=f'prompt{SUFFIX}')(x)
  return x[:, module.c.adapter.rank :] if point == 'stream' else x


def _is_of_norm(path: Path) -> bool:
  """Whether a parameter belongs to a norm: a module with `norm` in its name."""
  return any('norm' in name for name in path[:-1])


_LORA_OPTIONS = tuple(
    f'adapter.{name}' for name in ('rank', 'alpha', 'scale', 'rate_ratio', 'init', 'matrices')
)

ADAPTERS = Choices(
    'adapter.kind',
    {
        'none': Variant(Adapter(lambda path: True), 'all parameters are trained'),
        'lora': Variant(
            Adapter(is_added, add=_add_lora, weights=_lora, rate=_lora_rate),
            'arXiv 2106.09685; ratio of rates: arXiv 2402.12354',
            reads=_LORA_OPTIONS,
        ),
        'dora': Variant(
            Adapter(is_added, add=_add_dora, weights=_dora, rate=_lora_rate),
            'arXiv 2402.09353',
            reads=_LORA_OPTIONS,
        ),
        'houlsby': Variant(
            Adapter(is_added, adapt=_houlsby), 'arXiv 1902.00751', reads=('adapter.rank',)
        ),
        'ia3': Variant(Adapter(is_added, adapt=_ia3, merge=_merge_ia3), 'arXiv 2205.05638'),
        'prompt': Variant(
            Adapter(is_added, adapt=_prompt), 'arXiv 2104.08691', reads=('adapter.rank',)
        ),
        'norms': Variant(Adapter(_is_of_norm), 'arXiv 2312.11420'),
    },
)
