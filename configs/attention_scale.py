"""Is dividing attention logits by the head dimension enough? Figure E.6 of arXiv 2309.14322.

Attention logits are divided by the head dimension d, as in muP, or by its square root, each with
and without qk-layernorm.

  Figure E.6  Paper: 1/d is slightly better at the smallest size and worse at the largest; it does
              not remove the need for qk-layernorm.

Measured here at cpu scale, 9.2K and 147K, three seeds: with 1/d, LR sensitivity without
qk-layernorm is still 1.4 and 2.2 times that with it (0.36 against 0.26, 0.45 against 0.21). 1/d
lowers the best loss of the smallest size by 0.01. At the largest size it raises the best loss by
0.10 with qk-layernorm, and lowers it by 0.01 without. The head dimension is the same at all sizes,
so 1/d only divides the logits by a further factor of 4 (8 at gpu and paper scale).

Time at cpu scale: 56 runs, 4 to 6 minutes on two cores.

  python -m launch.sweep --config=configs/attention_scale.py --workdir=runs/attention_scale
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x attention scale x qk-layernorm x learning rate."""
  return hyper.product([
      grid.sizes(scale, ['9.2K', '147K'] if scale == 'cpu' else None),
      hyper.sweep('model.attention_scale', ['inverse_sqrt', 'inverse']),
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      grid.learning_rates(scale),
  ])
