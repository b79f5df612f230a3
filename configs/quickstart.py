"""Which learning rates work with and without qk-layernorm? A small Figure 1 of arXiv 2309.14322.

Three sizes x seven learning rates over three decades x qk-layernorm on and off: 42 runs.

Paper: without qk-layernorm, the loss rises steeply at high learning rates, at lower ones for larger
models; with it, training is stable across three decades. Attention logits of the unstable runs
grow with learning rate and size.

Expected here, measured over three seeds: LR sensitivity without qk-layernorm is 1.4 to 1.7 times
that with it at the smallest size, and 2.0 to 2.1 times at the largest. With qk-layernorm, attention
logits stay below 1,200; without it, they pass 1e4 at a learning rate of 0.1 for the largest size
and of 0.3 for all sizes.

The window is 1e-3 ... 1 instead of the paper's 3e-4 ... 3e-1: runs this short are undertrained at
3e-4 and have their optimum near 1e-2, so the window moves with it (appendix B).

Time: 2 to 5 minutes on two CPU cores, compilation included.

  python -m launch.sweep --config=configs/quickstart.py --workdir=runs/quickstart
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

SIZES = {
    'cpu': hyper.sweep('model.width', [16, 32, 64]),
    'night': hyper.sweep('model.width', [16, 32, 64]),
    'gpu': hyper.sweep('model.width', [256, 512, 768]),
    'paper': hyper.sweep('model.width', [256, 512, 768]),
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x qk-layernorm x learning rate."""
  return hyper.product([
      config_lib.for_scale(scale, SIZES),
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      grid.learning_rates(scale),
  ])
