"""Does LR sensitivity depend on the length of training? Figure E.7 of arXiv 2309.14322.

Half, all and twice the steps, the warm-up in proportion (our choice; the paper does not say).

  Figure E.7  Paper: 5e4, 1e5 and 2e5 steps; no change of LR sensitivity to speak of.

Measured here at cpu scale, 9.2K and 83K, one seed: 0.29, 0.31 and 0.23 at 9.2K, 0.18, 0.27 and 0.22
at 83K, so a factor of up to 1.5 and no trend. Runs this short are still undertrained at low rates.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

  python -m launch.sweep --config=configs/steps.py --workdir=runs/steps
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
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
