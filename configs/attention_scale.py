"""Is dividing attention logits by the head dimension enough? Figure E.6 of arXiv 2309.14322.

Logits over the head dimension, one part of muP, against its square root, with and without
qk-layernorm.

  Figure E.6  Paper: slightly better at the smallest size, worse at the largest; does not remove the
              need for qk-layernorm.

Measured here at cpu scale, 9.2K and 147K, three seeds: without qk-layernorm LR sensitivity is 1.4
and 2.2 times that with it for 1/d as well (0.36 against 0.26, 0.45 against 0.21); 1/d lowers the
smallest size's best loss by 0.01, and raises the largest one's by 0.10 with qk-layernorm, not
without it (-0.01). The head dimension is the same at all sizes, so this is a factor of 4 on the
logits (8 above).

Time at cpu scale: 56 runs, 4 to 6 minutes on two cores.

  python -m launch.sweep --config=configs/attention_scale.py --workdir=runs/attention_scale
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x attention scale x qk-layernorm x learning rate."""
  return hyper.product([
      grid.sizes(scale, ['9.2K', '147K'] if scale == 'cpu' else None),
      hyper.sweep('model.attention_scale', ['inverse_sqrt', 'inverse']),
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      grid.learning_rates(scale),
  ])
