"""Does LR sensitivity depend on the batch size? Figure E.9 of arXiv 2309.14322.

One, two and four times the smallest batch on the same amount of text, so larger batches train for
fewer steps. The warm-up is scaled in proportion (our choice; the paper does not say). Validation
uses the same number of sequences for all. Below paper scale, the smallest batch is half the usual
one, which leaves the largest batch with enough steps.

  Figure E.9  Paper: batches of 256, 512 and 1024 barely change LR sensitivity.

Measured here at cpu scale, three seeds: LR sensitivity at batches of 8, 16 and 32 is 0.25, 0.27 and
0.32 at 9.2K, and 0.24, 0.23 and 0.26 at 83K. It changes by a factor of up to 1.28 (1.03 to 1.88),
so the claim is undecided. The largest batch has only 200 steps.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

  python -m launch.sweep --config=configs/batch_size.py --workdir=runs/batch_size
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x batch size x learning rate."""
  c = get_config(scale)
  part = 1 if scale == 'paper' else 2  # the smallest batch is the usual one divided by this
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
