"""A trained model as retrieval uses it: log-probabilities, and the keys of a datastore.

Shape suffixes: N windows, T positions, D width, V vocabulary.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from stability import config as config_lib
from stability.config import FIELDS, Config
from stability.errors import BadInput
from stability.model.kernels import CARRIED
from stability.step import evaluated, run_model, train_step
from stability.storage import parameters, parents, safetensors
from stability.storage.files import Json
from stability.types import Static

_ELEMENTS = 2**24  # of the largest activation of a batch
_HIDDEN = 16  # activations of a block per position, in widths


class Outputs(NamedTuple):
  """What a model computes for windows."""

  keys_NxTxD: np.ndarray  # float32; inputs of the last block's MLP
  log_p_NxT: np.ndarray  # float32; log-probability of each target, in nats


class Model:
  """A run's model with the parameters that it has kept, those of its final loss."""

  def __init__(self, config: Config, vocabulary_size: int, variables: dict[str, Any]):
    """Prepares the model of a run.

    Args:
      config: the run's config.
      vocabulary_size: of its tokens.
      variables: `params` and `carried`; see train_step.kept_variables.
    """
    static, hparams = config_lib.split(config)
    self.vocabulary_size = vocabulary_size
    self.sequence_length = static.data.sequence_length
    self.width = static.model.width
    self._forward, self._next, self._all = _compiled(static, vocabulary_size)
    self._hparams = train_step.arrays(hparams)
    weights = run_model.weights(variables['params'], None, self._hparams, static)
    self._variables = {'params': weights, CARRIED: variables['carried']}
    self._architecture = static.model.to_dict()
    per_position = max(vocabulary_size, _HIDDEN * self.width)
    self._batch = max(1, _ELEMENTS // (self.sequence_length * per_position))

  @classmethod
  def load(cls, run: Path) -> Self:
    """The model of a run that has ended, with the hyperparameters that it had in the end.

    Raises:
      BadInput: its parameters were not kept, are damaged, or it has no keys.
    """
    file = run / parameters.FILE
    if not file.is_file():
      raise BadInput(f'{file}: no such file; config.checkpoint.parameters=float32 keeps it')
    arrays, _ = safetensors.read(file)
    about = parents.about(file)
    return cls.from_arrays(about['config'], about['data']['vocabulary_size'], arrays, str(file))

  @classmethod
  def of_parent(cls, entry: Json, sequence_length: int | None = None) -> Self:
    """The model that a run started from.

    Args:
      entry: the parent's entry in the run's record; see parents.py.
      sequence_length: of the windows that it reads, those of the run; None: its own. Positions are
        rotary, so that the parameters serve any length.
    """
    found, config = parents.load(entry), entry['config']
    static, hparams = config_lib.split(config)
    params = evaluated.of_checkpoint(
        found.params, found.average, entry['step'], train_step.arrays(hparams), static
    )
    arrays = {**params, **{parameters.CARRIED + name: a for name, a in found.carried.items()}}
    if sequence_length is not None:
      config = config | {'data': config['data'] | {'sequence_length': sequence_length}}
    return cls.from_arrays(config, entry['data']['vocabulary_size'], arrays, entry['path'])

  @classmethod
  def from_arrays(
      cls, config: Config, vocabulary_size: int, arrays: Mapping[str, np.ndarray], source: str
  ) -> Self:
    """The model of a run with this config.

    Args:
      config: of the run.
      vocabulary_size: of its tokens.
      arrays: its variables, under the names of parameters.safetensors.
      source: where they are from.

    Raises:
      BadInput: a variable is missing or has another shape, or the model has no keys.
    """
    if not config['model']['depth']:
      raise BadInput(f'{source}: config.model.depth=0: must be at least 1, to have keys')
    params, carried = _shapes(config_lib.split(config)[0], vocabulary_size)
    variables = {}
    for key, prefix, like in (('params', '', params), ('carried', parameters.CARRIED, carried)):
      variables[key] = {}
      for path, leaf in flax.traverse_util.flatten_dict(like).items():
        name = prefix + '/'.join(path)
        if name not in arrays or arrays[name].shape != leaf.shape:
          raise BadInput(f'{source}: damaged: {name} must be of shape {leaf.shape}')
        variables[key][path] = arrays[name].astype(np.float32)
      variables[key] = flax.traverse_util.unflatten_dict(variables[key])
    return cls(config, vocabulary_size, variables)

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of the architecture and the weights: that of the model whose keys a datastore has."""
    digest = hashlib.sha256(json.dumps(self._architecture, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(self._variables):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()

  def batches(self, windows: Any) -> Iterator[tuple[slice, Outputs]]:
    """Computes windows of T + 1 tokens, [N, T + 1], in batches; yields each with its slice of N."""
    for start in range(0, len(windows), self._batch):
      part = np.asarray(windows[start : start + self._batch], np.int32)
      # Batches have one shape, so that the program is compiled once.
      size = self._batch if start or len(part) == self._batch else _power_of_two(len(part))
      padded = np.concatenate([part, np.repeat(part[:1], size - len(part), 0)])
      found = jax.device_get(self._forward(self._variables, self._hparams, padded))
      cut = Outputs(*(array[: len(part)] for array in found))
      yield slice(start, start + len(part)), cut

  def log_p(self, windows: Any) -> np.ndarray:
    """The log-probability of each target of windows [N, T + 1]: float32 [N, T], in nats."""
    return np.concatenate([outputs.log_p_NxT for _, outputs in self.batches(windows)])

  def log_p_all(self, windows: np.ndarray) -> np.ndarray:
    """The log-probabilities of every token at each position: float32 [N, T, V], in nats."""
    found = []
    for start in range(0, len(windows), self._batch):
      part = np.asarray(windows[start : start + self._batch, :-1], np.int32)
      padded = np.concatenate([part, np.repeat(part[:1], _power_of_two(len(part)) - len(part), 0)])
      _, log_p = self._all(self._variables, self._hparams, padded)
      found.append(np.asarray(log_p)[: len(part)])
    return np.concatenate(found)

  def next_token(self, context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The key and the log-probabilities after the last T tokens of a context: [D] and [V]."""
    context = context[-self.sequence_length :]
    # The model is causal: what follows the context changes nothing.
    padded = np.zeros((1, self.sequence_length), np.int32)
    padded[0, : len(context)] = context
    found = self._next(self._variables, self._hparams, padded, len(context) - 1)
    key, log_p = jax.device_get(found)
    return key, log_p


def _power_of_two(number: int) -> int:
  return 1 << (number - 1).bit_length()


@functools.lru_cache(maxsize=8)
def _compiled(static: Static, vocabulary_size: int) -> tuple[Callable[..., Any], ...]:
  """The programs of an architecture, which its runs share: of _windows, _next and _apply."""
  model = run_model.make(static, vocabulary_size)
  bind = functools.partial(run_model.with_precision, static.model.matmul_precision)
  return tuple(jax.jit(bind(function, model)) for function in (_windows, _next, _apply))


@functools.lru_cache(maxsize=8)
def _shapes(static: Static, vocabulary_size: int) -> tuple[Any, Any]:
  """The shapes of the parameters and of the carried state, which take long to trace."""
  model = run_model.make(static, vocabulary_size)
  initial = functools.partial(run_model.init, model, static)
  hparams = {name: field.default_at('cpu') for name, field in FIELDS.items() if field.traced}
  return jax.eval_shape(initial, train_step.arrays(hparams))


def _windows(model: nn.Module, variables: Any, hparams: Any, windows_NxT1: jax.Array) -> Outputs:
  keys_NxTxD, log_p_NxTxV = _apply(model, variables, hparams, windows_NxT1[:, :-1])
  log_p_NxTx1 = jnp.take_along_axis(log_p_NxTxV, windows_NxT1[:, 1:, None], axis=-1)
  return Outputs(keys_NxTxD, log_p_NxTx1[..., 0])


def _next(
    model: nn.Module, variables: Any, hparams: Any, tokens_1xT: jax.Array, position: jax.Array
) -> tuple[jax.Array, jax.Array]:
  keys_1xTxD, log_p_1xTxV = _apply(model, variables, hparams, tokens_1xT)
  return keys_1xTxD[0, position], log_p_1xTxV[0, position]


def _apply(
    model: nn.Module, variables: Any, hparams: Any, tokens_NxT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The keys [N, T, D] and the log-probabilities of the next token [N, T, V], in float32."""
  last, keys = (f'block_{model.c.depth - 1}', 'mlp'), []

  def keep(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if context.module.path == last and context.method_name == '__call__':
      keys.append(args[0])
    return call(*args, **kwargs)

  with nn.intercept_methods(keep):
    logits_NxTxV = model.apply(variables, tokens_NxT, hparams)
  # Vectors of a prompt stand before the tokens.
  keys_NxTxD = keys[0][:, -tokens_NxT.shape[1] :].astype(jnp.float32)
  return keys_NxTxD, jax.nn.log_softmax(logits_NxTxV)
