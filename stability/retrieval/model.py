"""A trained model as retrieval uses it: log-probabilities, and the keys of a datastore.

Shape suffixes: N windows, T positions, D width, V vocabulary.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stability import config as config_lib
from stability.config import Config
from stability.model import parameterization
from stability.model.kernels import CARRIED
from stability.optim.evaluation import EVALUATED
from stability.retrieval import parameters
from stability.step import train_step

_ELEMENTS = 2**24  # of the largest activation of a batch
_HIDDEN = 16  # activations of a block per position, in widths


class Outputs(NamedTuple):
  """What a model computes for windows."""

  keys_NxTxD: np.ndarray  # float32; inputs of the last block's MLP
  log_p_NxT: np.ndarray  # float32; log-probability of each target, in nats
  logits_NxV: np.ndarray  # float32; at the last position


class Model:
  """A run's model with the parameters that its losses are measured with."""

  def __init__(self, config: Config, vocabulary_size: int, state: Any):
    """Prepares the model of a run.

    Args:
      config: the run's config.
      vocabulary_size: of its tokens.
      state: of the run; see stability/step/train_step.py.
    """
    static, _ = config_lib.split(config)
    self.vocabulary_size = vocabulary_size
    self.sequence_length = static.data.sequence_length
    self.width = static.model.width
    self._forward = _compiled(static, vocabulary_size)
    weights = parameterization.effective(
        EVALUATED[static.evaluation.parameters].make.read(state), state['hparams'], static
    )
    self._variables = {'params': weights, CARRIED: state['carried']}
    self._hparams = state['hparams']
    self._architecture = dict(static.model.to_dict())
    per_position = max(vocabulary_size, _HIDDEN * self.width)
    self._batch = max(1, _ELEMENTS // (self.sequence_length * per_position))

  @classmethod
  def load(cls, run: Path, config: Config, vocabulary_size: int) -> Self:
    """The model of a run that has ended; BadInput if its parameters were not kept."""
    parameters.check_config(run.name, config)
    _, state = parameters.load_state(run, vocabulary_size)
    return cls(config, vocabulary_size, state)

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

  def keys(self, windows: Any) -> np.ndarray:
    """The key of each position of windows [N, T + 1]: float32 [N, T, D]."""
    return np.concatenate([outputs.keys_NxTxD for _, outputs in self.batches(windows)])


def _power_of_two(number: int) -> int:
  return 1 << (number - 1).bit_length()


@functools.lru_cache(maxsize=8)
def _compiled(
    static: ml_collections.FrozenConfigDict, vocabulary_size: int
) -> Callable[..., Outputs]:
  """The program of an architecture, which its runs share: (variables, hparams, windows)."""
  model = train_step.make_model(static, vocabulary_size)
  return jax.jit(train_step.with_precision(static.model.matmul_precision, _forward, model))


def _forward(
    model: nn.Module, variables: Any, hparams: Any, windows_NxT1: jax.Array
) -> Outputs:
  last, keys = (f'block_{model.c.depth - 1}', 'mlp'), []

  def keep(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if context.module.path == last and context.method_name == '__call__':
      keys.append(args[0])
    return call(*args, **kwargs)

  with nn.intercept_methods(keep):
    logits_NxTxV = model.apply(variables, windows_NxT1[:, :-1], hparams)
  log_p_NxTxV = jax.nn.log_softmax(logits_NxTxV)
  log_p_NxTx1 = jnp.take_along_axis(log_p_NxTxV, windows_NxT1[:, 1:, None], axis=-1)
  return Outputs(keys[0].astype(jnp.float32), log_p_NxTx1[..., 0], logits_NxTxV[:, -1])
