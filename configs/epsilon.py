"""When is AdamW's eps too large? Figures of section 3.4.

eps over several decades, at the largest size and the highest learning rates, where gradients are
smallest.

  Figure 12    Loss and gradient RMS, 4.8B at a learning rate of 0.3. Paper: eps = 1e-15 improves
               the loss over 1e-8 and keeps the gradient from collapsing; 1e-6 diverges.
  Figure 13    Gradient and update RMS of each block. Paper: updates collapse where gradients are
               below eps.
  Figure E.15  Loss and gradient RMS with eps = 1e-6. Paper: diverges.

What transfers between sizes is the ratio of eps to the gradient RMS, which is larger here: about
2e-5 at width 64 and a learning rate of 0.3. So the paper's 1e-6 at 4.8B corresponds to 1e-3 or 1e-2
here, and its 1e-8 to 1e-5.

Measured here at cpu scale, three seeds: mean losses at learning rates of 0.1, 0.3 and 1:

  eps    0.1   0.3   1
  1e-15  2.03  2.17  2.58
  1e-8   2.03  2.17  2.65
  1e-5   2.04  2.19  2.66
  1e-3   2.08  2.21  2.60

At a learning rate of 1, the loss of 1e-8 is 0.06 +- 0.11 above that of 1e-15, although the gradient
RMS differs by only 15 %. Where eps exceeds the gradient RMS, updates shrink to 7 % in every block.
At these learning rates this does not harm stability: LR sensitivity falls from 0.26 to 0.06 at an
eps of 1e-2.

Time at cpu scale: 27 runs, 2 to 4 minutes on two cores.

  python -m launch.sweep --config=configs/epsilon.py --workdir=runs/epsilon
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

SIZE = {'cpu': '147K', 'night': '147K', 'gpu': '42M', 'paper': '4.8B'}
RATES = {'cpu': [0.1, 0.3, 1.0], 'night': [0.1, 0.3], 'gpu': [0.1, 0.3], 'paper': [0.3]}
EPS = {
    'cpu': [1e-15, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2],
    'night': [1e-15, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3],
    'gpu': [1e-15, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4],
    'paper': [1e-15, 1e-8, 1e-6],
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Epsilon x learning rate."""
  return hyper.product([
      grid.sizes(scale, [config_lib.for_scale(scale, SIZE)]),
      hyper.sweep('optimizer.eps', EPS[scale]),
      hyper.sweep('optimizer.learning_rate', RATES[scale]),
  ])
