r"""How does LR sensitivity grow with size? The ladder of arXiv 2309.14322, smallest to largest.

Named sizes x seven learning rates over three decades, with qk-layernorm and z-loss: the paper's
default model. To see what a ladder costs on given devices, and which of its sizes fit on them:

  python -m launch.sweep --config=configs/ladder.py:paper --dry_run --devices=8 \
      --device_memory_gb=80 --device_tflops=990

Paper (figure 1): with qk-layernorm, LR sensitivity stays low up to 1.2B. The paper trains its
largest model, 4.8B, at few learning rates; here it has all seven, to be planned or cut.

Expected at cpu scale: not measured. configs/quickstart.py has three of the sizes (0.2 to 0.3).

The paper trains on C4 with T5's vocabulary of 32,101. At paper scale, give a folder of such token
files as --config.data.path. Otherwise a BPE of the same size is learned from the text at hand.

Time at cpu scale: 42 runs, about 5 minutes on two CPU cores (estimate).

  python -m launch.sweep --config=configs/ladder.py --workdir=runs/ladder
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

SIZES = {
    'cpu': ('9.2K', '37K', '83K', '147K', '332K', '590K'),
    'night': grid.SIZES['night'],
    'gpu': ('2.4M', '9.4M', '19M', '42M', '85M'),
    'paper': (*grid.SIZES['paper'], '4.8B'),
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x learning rate."""
  names = config_lib.for_scale(scale, SIZES)
  return hyper.product([grid.sizes(scale, names), grid.learning_rates(scale)])
