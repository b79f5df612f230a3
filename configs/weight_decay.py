"""How does the amount of weight decay shift the optimal learning rate? Figure E.10.

Independent decay from 0 to 1e-2 a step at cpu scale, around 1e-4 above; the values of the
paper (arXiv 2309.14322) can only be seen in its figure's legend, so they are our choice.

  Figure E.10  Paper: more decay shifts the optimal learning rate slightly to the right.

Measured here at cpu scale, one seed: 0 to 1e-3 make no difference; 1e-2 has its optimum at 0.1
instead of 0.01 and more than twice the LR sensitivity. Over 400 steps a decay of 1e-4 removes 2 %
of a weight, over the paper's 100,000 nearly all; 1e-2 here is nearest to the latter.

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
  """What every run of the sweep shares."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x weight decay x learning rate."""
  return hyper.product([
      grid.sizes(scale, ['37K', '147K'] if scale == 'cpu' else None),
      hyper.sweep('optimizer.weight_decay', config_lib.for_scale(scale, DECAYS)),
      grid.learning_rates(scale),
  ])
