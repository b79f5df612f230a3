"""Should weight decay be independent of the learning rate? Figure 6 of arXiv 2309.14322.

Independent weight decay of 1e-4 per step is compared with coupled weight decay: 0.1 times the
learning rate, as in the AdamW of Optax and PyTorch.

  Figure 6  LR sensitivity against size. Paper: lower with independent weight decay.

The optimum may be elsewhere with coupled decay. So, for coupled decay, the paper takes the lower LR
sensitivity of two windows, [1e-4, 1e-1] and [3e-4, 3e-1], which adds an eighth learning rate below
the others. At cpu scale all windows are half a decade higher.

Measured here at cpu scale, three seeds: unlike in the paper, coupled decay has the lower LR
sensitivity at every size, 0.28, 0.23, 0.19 and 0.19 against 0.30, 0.24, 0.22 and 0.23. Runs are so
short that an independent decay of 1e-4 removes 2 % of a weight. Coupled decay acts only at high
learning rates, where it helps: from 0.1 on, it removes most of a weight.

Time at cpu scale: 60 runs, 5 to 9 minutes on two cores.

  python -m launch.sweep --config=configs/weight_decay_kind.py --workdir=runs/weight_decay_kind
"""

from typing import Any

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

INDEPENDENT = {'optimizer.weight_decay_kind': 'independent', 'optimizer.weight_decay': 1e-4}
COUPLED = {'optimizer.weight_decay_kind': 'coupled', 'optimizer.weight_decay': 0.1}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x kind x learning rate; the coupled kind has one more learning rate."""
  kinds = hyper.chain([
      hyper.product([[INDEPENDENT], grid.learning_rates(scale)]),
      hyper.product([[COUPLED], grid.learning_rates(scale, shift=-1, count=8)]),
  ])
  # Enough sizes to predict the largest from those of at most a quarter of its parameters.
  sizes = ['9.2K', '37K', '83K', '332K'] if scale == 'cpu' else None
  return hyper.product([grid.sizes(scale, sizes), kinds])


def get_report(scale: str = 'cpu') -> dict[str, Any]:
  """The two windows of the coupled kind."""
  rates = [point['optimizer.learning_rate'] for point in grid.learning_rates(scale, -1, count=8)]
  coupled = {'optimizer.weight_decay_kind': 'coupled'}
  return {
      'windows': [{'where': coupled, 'windows': [[rates[0], rates[-2]], [rates[1], rates[-1]]]}]
  }
