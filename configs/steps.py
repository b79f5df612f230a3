"""Does LR sensitivity depend on the length of training? Figure E.7 of arXiv 2309.14322.

Half, once and twice the usual number of steps. The warm-up is scaled in proportion (our choice; the
paper does not say).

  Figure E.7  Paper: 5e4, 1e5 and 2e5 steps barely change LR sensitivity.

Measured here at cpu scale, three seeds: LR sensitivity after 200, 400 and 800 steps is 0.32, 0.27
and 0.24 at 9.2K, which is a fall by a factor of 1.35 (1.28 to 1.42). At 83K it is 0.21, 0.23 and
0.23, which is barely a change. Runs this short are still undertrained at low learning rates.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

  python -m launch.sweep --config=configs/steps.py --workdir=runs/steps
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x length x learning rate."""
  schedule = get_config(scale).schedule
  lengths = [
      {
          'schedule.steps': n * schedule.steps // 2,
          'schedule.warmup_steps': n * schedule.warmup_steps // 2,
      }
      for n in (1, 2, 4)
  ]
  return hyper.product([
      grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None),
      lengths,
      grid.learning_rates(scale),
  ])
