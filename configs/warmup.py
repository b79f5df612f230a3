"""Does a longer warm-up make high learning rates stable? Figure 5 of arXiv 2309.14322.

Warm-ups of 1, 5, 15 and 25 % of a constant number of steps. 5 % is the paper's default. The other
lengths appear only in the legend of its figure, so they are our choice.

  Figure 5  LR sensitivity against size. Paper: a longer warm-up lowers LR sensitivity and the loss,
            most for the larger models, which are unstable at 0.3 without it.

Measured here at cpu scale, three seeds: warm-ups of 4, 20, 60 and 100 of 400 steps have LR
sensitivities of 0.32, 0.29, 0.27 and 0.25 at 9.2K, 0.25, 0.26, 0.24 and 0.25 at 37K, and 0.30,
0.27, 0.24 and 0.22 at 147K. Best losses at 147K are 1.98, 1.95, 1.93 and 1.90. The seeds do not
agree on whether it helps larger models more.

Time at cpu scale: 84 runs, 4 to 7 minutes on two cores.

  python -m launch.sweep --config=configs/warmup.py --workdir=runs/warmup
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x warm-up x learning rate."""
  steps = get_config(scale).schedule.steps
  return hyper.product([
      grid.sizes(scale),
      hyper.sweep(
          'schedule.warmup_steps', [steps * percent // 100 for percent in (1, 5, 15, 25)]
      ),
      grid.learning_rates(scale),
  ])
