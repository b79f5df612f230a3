"""How does the amount of weight decay shift the optimal learning rate? Figure E.10.

Independent weight decay, from 0 to 1e-2 per step at cpu scale, around 1e-4 at larger scales. The
values of the paper (arXiv 2309.14322) appear only in the legend of its figure, so ours are our
choice.

  Figure E.10  Paper: more weight decay shifts the optimal learning rate slightly to the right.

Measured here at cpu scale, three seeds: values up to 1e-3 make no difference. 1e-2 moves the
optimum of 147K from 0.01 to 0.1 and more than doubles LR sensitivity. A decay of 1e-4 removes 2 %
of a weight over 400 steps, and nearly all of it over the paper's 100,000; a decay of 1e-2 here is
closest to that.

Time at cpu scale: 56 runs, 3 to 6 minutes on two cores.

  python -m launch.sweep --config=configs/weight_decay.py --workdir=runs/weight_decay
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

DECAYS = {
    'cpu': [0.0, 1e-4, 1e-3, 1e-2],
    'night': [0.0, 1e-4, 3e-4, 1e-3],
    'gpu': [0.0, 1e-4, 3e-4, 1e-3],
    'paper': [3e-5, 1e-4, 3e-4],
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x weight decay x learning rate."""
  return hyper.product([
      grid.sizes(scale, ['37K', '147K'] if scale == 'cpu' else None),
      hyper.sweep('optimizer.weight_decay', config_lib.for_scale(scale, DECAYS)),
      grid.learning_rates(scale),
  ])
