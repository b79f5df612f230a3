"""Parents of configs/finetuning.py: three sizes, trained on Python source at seven learning rates.

Each run keeps its parameters (runs/NAME/parameters.safetensors), and configs/finetuning.py starts
from some of them, of three seeds. All rates of the window are trained, which shows whether those
that configs/finetuning.py takes for the best ones are: at cpu scale, with three seeds, they are.
Not in the paper.

Time at cpu scale: 63 runs, 7 minutes on two cores beside other work; those of configs/quickstart.py
with qk-layernorm are the same (--reuse). Add --seeds=3, since configs/finetuning.py needs them:

  python -m launch.sweep --config=configs/pretraining.py --workdir=runs/pretraining --seeds=3
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
