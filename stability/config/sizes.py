"""Named model sizes, and the choice of values by the scale of an experiment."""

from collections.abc import Mapping
from typing import Any

from stability.errors import BadInput

SIZE_FIELDS = ('model.width', 'model.depth', 'model.head_dim')

# A size is named after its parameters, 12 depth width^2 (the blocks' matrices, paper section 2.1).
# Those from 2.4M on are the paper's. It does not state the head dimension; 64 is our choice.
SIZES = {
    name: {'model.width': width, 'model.depth': depth, 'model.head_dim': head_dim}
    for name, width, depth, head_dim in (
        ('9.2K', 16, 3, 16),
        ('37K', 32, 3, 16),
        ('83K', 48, 3, 16),
        ('147K', 64, 3, 16),
        ('332K', 96, 3, 16),
        ('590K', 128, 3, 16),
        ('2.4M', 256, 3, 64),
        ('9.4M', 512, 3, 64),
        ('19M', 512, 6, 64),
        ('42M', 768, 6, 64),
        ('85M', 768, 12, 64),
        ('151M', 1024, 12, 64),
        ('302M', 1024, 24, 64),
        ('1.2B', 2048, 24, 64),
        ('4.8B', 4096, 24, 64),
    )
}


def size(name: str) -> dict[str, int]:
  """The model fields of a named size, by dotted name; raises BadInput for an unknown name."""
  if name not in SIZES:
    raise BadInput(f'size {name!r}: must be one of {", ".join(SIZES)}')
  return dict(SIZES[name])


def for_scale(scale: str, values: Mapping[str, Any]) -> Any:
  """The entry of `values` for a scale, for use in the get_config and get_sweep of config files."""
  if scale not in values:
    raise BadInput(f'scale {scale!r}: must be one of {", ".join(values)}')
  return values[scale]


def parameters(config: Mapping[str, Any]) -> int:
  """The number of weights in the blocks' matrices.

  These are queries, keys, values, output and the MLP, whose hidden width is 4 times the width.
  """
  return 12 * config['model']['depth'] * config['model']['width'] ** 2
