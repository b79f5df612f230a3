"""Which numbers of a run may be in a short format? bfloat16, stochastic rounding, simulated FP8.

The arms, against float32: bfloat16 activations; simulated FP8 in the blocks' linear layers; AdamW's
moments in bfloat16; parameters rounded to bfloat16 after each update, to the nearest number or
stochastically; and all of them in bfloat16, with stochastic rounding.

Expected: rounding to the nearest number loses updates below 1/512 of a parameter, so that runs
with low learning rates stall; stochastic rounding keeps them on average (arXiv 2010.06192).

Nothing was measured here. Time at cpu scale: 49 runs, 4 to 8 minutes on two cores (estimate).

  python -m launch.sweep --config=configs/precision.py --workdir=runs/precision
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

ARMS = [
    {},
    {'model.dtype': 'bfloat16'},
    {'model.linear_precision': 'fp8'},
    {'optimizer.state_dtype': 'bfloat16'},
    {'optimizer.parameter_rounding': 'nearest'},
    {'optimizer.parameter_rounding': 'stochastic'},
    {
        'model.dtype': 'bfloat16',
        'optimizer.state_dtype': 'bfloat16',
        'optimizer.parameter_rounding': 'stochastic',
    },
]


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  c = grid.get_config(scale)
  c.model.dtype = 'float32'
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Arm x learning rate, in a window that starts half a decade lower."""
  sizes = grid.sizes(scale, ['83K'] if scale == 'cpu' else None)
  return hyper.product([sizes, ARMS, grid.learning_rates(scale, shift=-1)])
