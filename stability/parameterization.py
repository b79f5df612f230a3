"""Layers by kind."""

from typing import Any

import jax

Params = dict[str, Any]

# By the last part of a parameter's path.
_KINDS = {
    'embedding': 'embedding',
    **dict.fromkeys(('query', 'key', 'value', 'output', 'gate', 'up', 'down'), 'hidden'),
    'head': 'readout',
    'scale': 'scale',
}


def kinds(params: Params) -> Params:
  """The kind of every parameter: embedding, hidden (the blocks' matrices), readout or scale."""
  return jax.tree_util.tree_map_with_path(lambda path, _: _KINDS[path[-1].key], params)
