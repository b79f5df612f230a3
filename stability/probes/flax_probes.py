"""Probes of a Flax (linen) model and of an Optax update, measured in the steps that call them.

  def probed_loss(params):
    logits, row = flax_probes.apply(model, {'params': params}, tokens)
    return loss_of(logits), row

  (loss, row), grads = jax.value_and_grad(probed_loss, has_aux=True)(params)
  row |= flax_probes.gradients(grads, eps=1e-8)

See README.md for what is measured and what is not seen.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import scope
from jax.extend import core as jax_core

from stability.probes import structure
from stability.probes.structure import Path

COLLECTION = 'stability_probes'  # of variables, in which modules keep what was measured

# Names of variables: attention logits, and outputs of modules by whether they are of attention.
_LOGITS, _OUTPUT = '_attention_logits', {False: '_output', True: '_attention_output'}
_QUERIES = 256  # measured at a time, which bounds memory

Tree = Any  # of arrays
Row = dict[str, jax.Array]  # name -> float32 scalar


def apply(
    module: nn.Module,
    variables: Mapping[str, Any],
    *args: Any,
    mutable: Any = False,
    **kwargs: Any,
) -> tuple[Any, Row]:
  """The same as module.apply, with a row of what was measured; also under jit and grad.

  Attention logits are those that a softmax gets; behind a fused attention, they are computed again
  in float32, some queries at a time. A logit of -1e8 or less is masked. While this function runs,
  or is traced, the softmax and dot_product_attention of jax.nn and flax.linen are replaced.

  Raises:
    TypeError: the module is none of flax.linen, but, for example, of NNX.

  Returns:
    What module.apply returns, and a row:
      block_0/attention_logit_max, block_0/attention_logit_mean: over unmasked pairs of query and
        key, heads and batch, scaled as the softmax gets them
      block_0/output_rms, activation_rms/block_0/NAME: of a block and of the modules in it
      log_z: the mean over all tokens of the log of the softmax normaliser of the output, in nats
  """
  if not isinstance(module, nn.Module):
    raise TypeError(
        f'{type(module).__name__}: is no module of flax.linen; wrap one of NNX in'
        ' flax.nnx.bridge.ToLinen'
    )
  calls = _Calls()
  with nn.intercept_methods(calls.intercept), calls.replaced_functions():
    output, state = module.apply(
        variables, *args, mutable=scope.union_filters(mutable, COLLECTION), **kwargs
    )
  state = dict(state)
  row = _row(state.pop(COLLECTION, {}))
  logits = structure.output_logits(output, _is_float)
  if logits is not None:
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    row['log_z'] = jax.nn.logsumexp(logits, axis=-1).mean()
  return (output if mutable is False else (output, state)), row


def gradients(grads: Tree, eps: float | None = None) -> Row:
  """gradient_rms/NAME of gradients before clipping; with Adam's eps, gradient_over_eps/NAME."""
  found = _rms(grads)
  eps_of = {} if eps is None else {name: eps for name, x in _named(grads) if x.size > 1}
  over_eps = structure.over_eps(found, eps_of)
  return {f'gradient_rms/{name}': value for name, value in found.items()} | over_eps


def updates(
    changes: Tree, params: Tree, learning_rate: jax.typing.ArrayLike, weight_decay: float = 0.0
) -> Row:
  """update_rms/NAME: the updates that Optax returns, without learning rate and weight decay.

  Parameters of a single number are left out: their updates pass through 0.

  Args:
    changes: what the optimizer's `update` returns.
    params: the parameters before the update.
    learning_rate: that of this update; 0, as at the start of a warm-up, gives NaN under jit and an
      empty row elsewhere.
    weight_decay: that of optax.adamw and of others that multiply it by the learning rate.
  """
  if not isinstance(learning_rate, jax.core.Tracer) and learning_rate == 0:
    return {}
  directions = jax.tree.map(
      lambda change, p: change / learning_rate + weight_decay * p, changes, params
  )
  sizes = {name: x.size for name, x in _named(directions)}
  return {f'update_rms/{n}': value for n, value in _rms(directions).items() if sizes[n] > 1}


def _rms(tree: Tree) -> Row:
  return {name: jnp.sqrt(_mean_square(x)) for name, x in _named(tree)}


def _named(tree: Tree) -> list[tuple[str, jax.Array]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), x) for path, x in leaves]


def _mean_square(x: jax.Array) -> jax.Array:
  return jnp.mean(jnp.square(x.astype(jnp.float32)))


@dataclasses.dataclass
class _Call:
  """A module being called."""

  is_attention: bool
  trace: Any  # the transformation of JAX that the module is called in, as _trace has it
  logits: list[tuple[jax.Array, ...]]  # (highest, total, number of pairs)


class _Calls:
  """The modules being called, innermost last; each sows what was measured in it.

  The values of a module inside a lifted transformation such as nn.remat must leave it as variables.
  """

  def __init__(self):
    self._stack: list[_Call] = []
    self._inside_fused = False  # its own softmax is not another attention

  def intercept(self, next_fun: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """The interceptor of method calls."""
    module = context.module
    names = (module.name or '', type(module).__name__) if module.path else ()
    is_inside = bool(self._stack) and self._stack[-1].is_attention
    self._stack.append(_Call(is_inside or structure.is_attention(*names), _trace(), []))
    try:
      output = next_fun(*args, **kwargs)
    finally:
      call = self._stack.pop()
    for measured in call.logits:
      module.sow(COLLECTION, _LOGITS, measured)
    x = output[0] if isinstance(output, tuple | list) and output else output
    if context.method_name == '__call__' and _is_float(x):
      x = jax.lax.stop_gradient(x)
      module.sow(COLLECTION, _OUTPUT[call.is_attention], (_mean_square(x), x.size))
    return output

  @contextlib.contextmanager
  def replaced_functions(self) -> Iterator[None]:
    """Replaces the functions that compute attention by those that also measure its logits."""
    wrappers = {
        (jax.nn, 'softmax'): self._softmax,
        (nn, 'softmax'): self._softmax,
        (jax.nn, 'dot_product_attention'): self._dot_product_attention,
    }
    originals = {(owner, name): getattr(owner, name) for owner, name in wrappers}
    for (owner, name), wrapper in wrappers.items():
      setattr(owner, name, functools.partial(wrapper, originals[owner, name]))
    try:
      yield
    finally:
      for (owner, name), original in originals.items():
        setattr(owner, name, original)

  def _softmax(self, original: Callable, x: Any, axis: Any = -1, where: Any = None) -> Any:
    is_attention = bool(self._stack) and self._stack[-1].is_attention and not self._inside_fused
    if is_attention and jnp.ndim(x) >= 3 and axis in (-1, jnp.ndim(x) - 1):
      keep = _is_unmasked(x)
      self._record(x, keep if where is None else keep & where)
    return original(x, axis, where)

  def _dot_product_attention(self, original: Callable, query: Any, key: Any, *args: Any, **kwargs):
    if self._stack:
      self._record_fused(query, key, *args, **kwargs)
    self._inside_fused = True
    try:
      return original(query, key, *args, **kwargs)
    finally:
      self._inside_fused = False

  def _record_fused(
      self,
      query: jax.Array,
      key: jax.Array,
      value: jax.Array,
      bias: jax.Array | None = None,
      mask: jax.Array | None = None,
      *,
      scale: float | None = None,
      is_causal: bool = False,
      query_seq_lengths: jax.Array | None = None,
      key_value_seq_lengths: jax.Array | None = None,
      local_window_size: int | tuple[int, int] | None = None,
      **_: Any,
  ) -> None:
    """Records the logits of jax.nn.dot_product_attention.

    A bias is no part of them; its entries near the lowest number mask a pair.
    """
    del value
    T, S = query.shape[-3], key.shape[-3]
    N, K = query.shape[-2:]
    i, j = jnp.arange(T)[:, None], jnp.arange(S)
    keep = jnp.ones((T, S), bool) if mask is None else jnp.asarray(mask)
    if bias is not None:
      keep &= _is_unmasked(bias)
    if is_causal:
      keep &= i >= j
    if query_seq_lengths is not None:
      keep &= i < query_seq_lengths[:, None, None, None]
    if key_value_seq_lengths is not None:
      keep &= j < key_value_seq_lengths[:, None, None, None]
    if local_window_size is not None:
      sides = local_window_size
      left, right = (sides, sides) if isinstance(sides, int) else sides
      keep &= (i - j <= left) & (j - i <= right)
    query, key = (x.astype(jnp.float32).swapaxes(-3, -2) for x in (query, key))  # [..., N, T, K]
    key = jnp.repeat(key, N // key.shape[-3], axis=-3).swapaxes(-2, -1)
    keep = jnp.broadcast_to(keep, (*query.shape[:-1], S))
    for start in range(0, T, _QUERIES):
      rows = slice(start, start + _QUERIES)
      logits = jnp.matmul(query[..., rows, :], key, precision='highest')
      self._record(logits * (K**-0.5 if scale is None else scale), keep[..., rows, :])

  def _record(self, logits: jax.Array, keep: jax.Array) -> None:
    if self._stack[-1].trace != _trace():
      return  # inside vmap, jit and others, whose values must not leave them
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    keep = jnp.broadcast_to(keep, logits.shape)
    highest = jnp.where(keep, logits, -jnp.inf).max()
    total = jnp.where(keep, logits, 0).sum()
    # A float: an int32 may overflow.
    self._stack[-1].logits.append((highest, total, keep.sum(dtype=jnp.float32)))


def _trace() -> Any:
  """The innermost transformation of JAX that is being traced; equal only inside the same one."""
  return jax_core.get_opaque_trace_state(convention='flax')


def _is_unmasked(logits: jax.Array) -> jax.Array:
  return logits > structure.masked_below(float(jnp.finfo(logits.dtype).min))


def _row(sown: Mapping[str, Any]) -> Row:
  """The row of what was sown; modules are sorted, as transformations lose the order of calls."""
  flat = flax.traverse_util.flatten_dict(dict(sown), is_leaf=lambda _, x: isinstance(x, tuple))
  found = {name: [] for name in (_LOGITS, *_OUTPUT.values())}
  for (*path, name), values in sorted(flat.items(), key=lambda item: _natural(item[0])):
    for value in values:
      found[name] += _layers(tuple(path), value)
  logits = [structure.Logits(*layer) for layer in found[_LOGITS]]
  outputs = [
      structure.Output(*layer, is_attention)
      for is_attention, name in _OUTPUT.items()
      for layer in found[name]
  ]
  return structure.row(logits, outputs, jnp.maximum)


def _layers(path: Path, value: tuple) -> Iterator[tuple]:
  """Yields (path, *value); under nn.scan, those of each layer, with its number in the path."""
  if jnp.ndim(value[0]) == 0:
    yield path, *value
  else:
    for layer in range(len(value[0])):
      yield (path[0], str(layer), *path[1:]), *(x[layer] for x in value)


def _natural(path: Path) -> list[list[str | int]]:
  """A key that sorts block_10 after block_2."""
  return [[int(x) if x.isdigit() else x for x in re.split(r'(\d+)', name)] for name in path]


def _is_float(x: Any) -> bool:
  return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating) and x.size > 0
