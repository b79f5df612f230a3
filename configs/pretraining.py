"""Parents of configs/finetuning.py: three sizes, trained on Python source at seven learning rates.

Each run keeps its parameters (runs/NAME/parameters.safetensors). configs/finetuning.py starts from
some of those with --seeds=3; this sweep has all rates of the window, so that it also says whether the rates that
are the best ones there are so here. Not in the paper.

Time at cpu scale: 63 runs (three seeds), 6 to 12 minutes on two cores; those of
configs/quickstart.py with qk-layernorm are the same (--reuse).

  python -m launch.sweep --config=configs/pretraining.py --workdir=runs/pretraining
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x learning rate."""
  return hyper.product([
      grid.sizes(scale, config_lib.for_scale(scale, grid.SIZES)[:3]),
      grid.learning_rates(scale),
  ])
