"""Does softmax cause the growth of attention logits? Figure E.11 of arXiv 2309.14322.

Softmax attention is compared with squared-ReLU attention, which weights each position independently
of the others, with and without qk-layernorm.

  Figure E.11  Paper: logits grow with squared-ReLU attention as well, so softmax is not the cause.

Measured here at cpu scale, 9.2K and 83K, three seeds: with squared ReLU, logits grow 1,750-fold
(870 to 2,900) at the highest learning rate, as in the paper, but do less harm. LR sensitivity
without qk-layernorm is 0.29 and 0.17, as low as with it; softmax has 0.41 and 0.47. The best loss
of squared ReLU is 0.07 to 0.15 higher.

Time at cpu scale: 56 runs, 3 to 5 minutes on two cores.

  python -m launch.sweep --config=configs/pointwise_attention.py --workdir=runs/pointwise_attention
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x attention x qk-layernorm x learning rate."""
  return hyper.product([
      grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None),
      hyper.sweep('model.attention', ['softmax', 'squared_relu']),
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      grid.learning_rates(scale),
  ])
