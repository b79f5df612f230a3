"""Conversion of a run's state to and from the flat dict of arrays that checkpoints store."""

from typing import Any

import jax
import numpy as np

from stability.storage.checkpoints import Arrays


def to_arrays(state: Any) -> Arrays:
  """The leaves of a state by their paths, such as params/block_0/mlp/up."""
  return {name: np.asarray(leaf) for name, leaf in names(state).items()}


def size(state: Any) -> int:
  """Bytes of a state."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def names(tree: Any) -> dict[str, Any]:
  """The leaves of a tree, which may be shapes, by their paths."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_path(path): leaf for path, leaf in leaves}


def from_arrays(like: Any, arrays: Arrays) -> Any:
  """The inverse of to_arrays, in the structure of `like`; KeyError if a leaf is missing.

  A missing hyperparameter keeps its value in `like`: its option was added after the checkpoint.
  """

  def restore(path, leaf):
    name = _path(path)
    return arrays.get(name, leaf) if name.startswith('hyper/') else arrays[name]

  return jax.tree_util.tree_map_with_path(restore, like)


def _path(path: Any) -> str:
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  # The file format of checkpoints names the hyperparameters `hyper`.
  return 'hyper' + name.removeprefix('hparams') if name.startswith('hparams/') else name
