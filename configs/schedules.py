"""Does the shape of the schedule matter to stability? Cosine, WSD and 1 / sqrt(step).

All schedules have the same warm-up. WSD stays at the full learning rate until the last fifth of the
steps and then falls linearly, so it spends more steps at high rates than the cosine. rsqrt starts
to fall right after the warm-up, slowly.

Measured here at cpu scale, three seeds: LR sensitivity of cosine, WSD and rsqrt is 0.27, 0.25 and
0.26 at 9.2K, and 0.23, 0.28 and 0.23 at 83K, where WSD is worst at the highest learning rate. At
least 10 % more than the others was expected of WSD (stability/analysis/claims/extensions.py); it
has 5 % more (-15 to 21 %). WSD has the best losses at both sizes, 2.14 and 1.91, against 2.19 and
1.99 for cosine and 2.18 and 1.97 for rsqrt.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

  python -m launch.sweep --config=configs/schedules.py --workdir=runs/schedules
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x shape x learning rate."""
  return hyper.product([
      grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None),
      hyper.sweep('schedule.shape', ['cosine', 'wsd', 'rsqrt']),
      grid.learning_rates(scale),
  ])
