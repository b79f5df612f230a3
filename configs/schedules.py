"""Does the shape of the schedule matter to stability? Cosine, WSD and 1 / sqrt(step).

All with the same warm-up. WSD stays at the full rate until the last fifth of the steps and falls
linearly, so it spends more steps at high rates than the cosine; rsqrt falls at once and slowly.

Expected here: WSD is the most sensitive, by a tenth or more (stability/analysis/beyond.py).

Time at cpu scale: 42 runs, about 3 minutes on two cores (estimate).

  python -m launch.sweep --config=configs/schedules.py --workdir=runs/schedules
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x shape x learning rate."""
  return hyper.product([
      grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None),
      hyper.sweep('schedule.shape', ['cosine', 'wsd', 'rsqrt']),
      grid.learning_rates(scale),
  ])
