"""Which initial weights, residual connections and norms are stable? Each in place of the default.

Each run differs in one of these from the default without qk-layernorm, which has pre-LN and draws
kernels with std 1 / sqrt(fan in):

  initial head      small (std 1e-3) or 0
  initial kernels   those that write to the residual stream by 1 / sqrt(2 depth) or, in block i, by
                    1 / sqrt(2 i)
  embedding         its learning rate times width / base_width (arXiv 2605.21486)
  norms             LayerNorm scaling, peri-LN, post-LN, DeepNorm, DyT in place of LayerNorm
  residual stream   ReZero; a learned share of the embedding in each block
  kernels           learned multipliers of rows and columns; WeSaR, in a window a decade and a half
                    lower
  all of these      nGPT, with its own normalisation of queries and keys and no weight decay

With a small head, a head of 0, DyT or nGPT, initial_loss is about ln(vocabulary size), 0.5 nats
lower than in the other arms. Diverged runs count with it, so compare best losses and critical
learning rates rather than LR sensitivities.

Nothing was measured here. Time at cpu scale: 112 runs, 8 to 16 minutes on two cores (estimate).

  python -m launch.sweep --config=configs/residuals.py --workdir=runs/residuals
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

NGPT = {f'model.{part}': 'ngpt' for part in ('norm_position', 'qk_norm', 'mlp', 'head')}
ARMS = [
    {},
    {'init.head': 'small'},
    {'init.head': 'zero'},
    {'init.depth_scale': 'depth'},
    {'init.depth_scale': 'block'},
    {'optimizer.embedding_rate': 'width'},
    {'model.norm_position': 'pre_scaled'},
    {'model.norm_position': 'peri'},
    {'model.norm_position': 'post'},
    {'model.norm_position': 'deepnorm'},
    {'model.norm_position': 'rezero'},
    {'model.norm': 'dyt'},
    {'model.embedding_skip': 'learned'},
    {'model.kernel': 'multipliers'},
    NGPT | {'optimizer.weight_decay': 0.0},
]
WESAR_SHIFT = -3  # of its window, in half decades: its parameters start about 20 times as small


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  c = grid.get_config(scale)
  c.model.qk_norm = 'none'
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Arm x learning rate."""
  arms = hyper.chain([
      hyper.product([ARMS, grid.learning_rates(scale)]),
      hyper.product([[{'model.kernel': 'wesar'}], grid.learning_rates(scale, WESAR_SHIFT)]),
  ])
  return hyper.product([grid.sizes(scale, ['83K'] if scale == 'cpu' else None), arms])
