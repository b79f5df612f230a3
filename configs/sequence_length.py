"""Does LR sensitivity depend on the sequence length? Not a figure of arXiv 2309.14322.

Half, once and twice the usual length. The batch size is inversely proportional, so that the number
of tokens per step is constant. The paper varies the number of steps (configs/steps.py) and the
batch size (configs/batch_size.py), which barely change LR sensitivity. In longer sequences, more
keys compete for the attention of a query. Losses at different lengths are not comparable, since in
a longer sequence a token has more context.

Measured here at cpu scale, three seeds: LR sensitivity with 32, 64 and 128 tokens is 0.25, 0.27 and
0.27 at 9.2K, and 0.21, 0.23 and 0.23 at 83K: a change by a factor of 1.14 (1.05 to 1.31, so that
the claim of at most 1.25 is undecided). Best losses are 2.11, 2.19 and 2.24 at 9.2K, and 1.90, 1.99
and 2.06 at 83K: in so few steps, more sequences per batch help more than longer ones.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

  python -m launch.sweep --config=configs/sequence_length.py --workdir=runs/sequence_length
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x sequence length x learning rate."""
  data = get_config(scale).data
  lengths = [
      {
          'data.sequence_length': n * data.sequence_length // 2,
          'data.batch_size': 2 * data.batch_size // n,
      }
      for n in (1, 2, 4)
  ]
  return hyper.product([
      grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None),
      lengths,
      grid.learning_rates(scale),
  ])
