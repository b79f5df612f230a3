"""Does LR sensitivity depend on the batch size? Figure E.9 of arXiv 2309.14322.

One, two and four times the batch on the same amount of text, so for fewer steps; the warm-up in
proportion (our choice; the paper does not say). Validation takes the same number of sequences.

  Figure E.9  Paper: batches of 256, 512 and 1024; no change of LR sensitivity to speak of.

Measured here at cpu scale, three seeds, batches of 8, 16 and 32: 0.25, 0.27 and 0.32 at 9.2K, 0.24,
0.23 and 0.26 at 83K, so up to 1.28 times (1.16 to 1.53): undecided, and the largest batch has but
200 steps. Below paper scale the smallest batch is half the usual one, so that steps enough are left
with the largest.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

  python -m launch.sweep --config=configs/batch_size.py --workdir=runs/batch_size
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x batch size x learning rate."""
  c = get_config(scale)
  part = 1 if scale == 'paper' else 2  # of the usual batch, the smallest
  batches = [
      {
          'data.batch_size': n * c.data.batch_size // part,
          'data.validation_batches': part * c.data.validation_batches // n,
          'schedule.steps': part * c.schedule.steps // n,
          'schedule.warmup_steps': part * c.schedule.warmup_steps // n,
      }
      for n in (1, 2, 4)
  ]
  return hyper.product([
      grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None),
      batches,
      grid.learning_rates(scale),
  ])
