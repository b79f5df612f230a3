"""Does the shape of the schedule matter to stability? Cosine, WSD and 1 / sqrt(step).

All with the same warm-up. WSD stays at the full rate until the last fifth of the steps and falls
linearly, so it spends more steps at high rates than the cosine; rsqrt falls at once and slowly.

Measured here at cpu scale, one seed, LR sensitivity of cosine, WSD and rsqrt: 0.29, 0.27, 0.27 at
9.2K and 0.23, 0.28, 0.23 at 83K, where WSD does worst at the highest rate. So it is the most
sensitive by 8 % in the mean; a tenth or more was expected
(stability/analysis/claims/extensions.py). It has the best losses at either size, 2.15 and 1.91, as
against 2.21 and 1.99 of the cosine and 2.20 and 1.97 of rsqrt.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

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
