"""Which costs more stability, width or depth? Figures of section 3.2.3.

Models are scaled in width, in depth, or in both, with and without qk-layernorm. The three ways of
scaling share one shape, which is trained once, and end at about the same number of parameters
(12 depth width^2). At gpu and paper scale the shapes are our choice, except for two fixed
values of the paper: 6 layers when scaling width, and width 512 when scaling depth.

  Figure 7    LR sensitivity against size. Paper: it rises faster with depth than with width, but at
              the largest size scaling depth alone gives the lower loss.
  Figure C.1  RMS of the blocks' outputs. Paper: grows with depth at very high learning rates.
  Figure E.2  Attention logits without qk-layernorm. Paper: they grow with scale either way.
  Figure E.3  Best loss over learning rates. Paper: scaling both is best at the largest size, and
              extrapolates more reliably from small models.

Measured here at cpu scale, three seeds: whether LR sensitivity rises faster with depth than with
width is undecided (the slopes of its log against the log of the parameters differ by 0.23; 90 %
interval: 0.03 to 0.35). At 147K, scaling width has the lowest loss, 1.93; scaling both has 1.96 and
scaling depth 2.06, since 12 layers of width 32 are still behind after 400 steps.

Time at cpu scale: 98 runs, 6 to 10 minutes on two cores, half of it for the 12 layers.

  python -m launch.sweep --config=configs/width_and_depth.py --workdir=runs/width_and_depth
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

# (width, depth), smallest first. All three ways of scaling share the second shape.
WIDTH = {
    'cpu': [(16, 3), (32, 3), (64, 3)],
    'night': [(16, 3), (32, 3), (64, 3)],
    'gpu': [(128, 3), (256, 3), (512, 3)],
    'paper': [(256, 6), (512, 6), (1024, 6), (2048, 6)],
}
DEPTH = {
    'cpu': [(32, 1), (32, 3), (32, 12)],
    'night': [(32, 1), (32, 3), (32, 12)],
    'gpu': [(256, 1), (256, 3), (256, 12)],
    'paper': [(512, 2), (512, 6), (512, 24), (512, 96)],
}
BOTH = {
    'cpu': [(16, 1), (32, 3), (48, 5)],
    'night': [(16, 1), (32, 3), (48, 5)],
    'gpu': [(128, 1), (256, 3), (384, 5)],
    'paper': [(256, 3), (512, 6), (768, 12), (1024, 24)],
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Shape x qk-layernorm x learning rate."""
  ways = [config_lib.for_scale(scale, way) for way in (WIDTH, DEPTH, BOTH)]
  shapes = sorted({shape for way in ways for shape in way})
  return hyper.product([
      [{'model.width': width, 'model.depth': depth} for width, depth in shapes],
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      grid.learning_rates(scale),
  ])
