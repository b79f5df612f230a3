"""Which costs more stability, width or depth? Figures of section 3.2.3.

From one shape, models grow in width alone, in depth alone, or in both, to about the same parameters
(12 depth width^2), with and without qk-layernorm. Shapes that belong to two ways are trained once.

  Figure 7    LR sensitivity against size. Paper: rises faster with depth than with width, but depth
              alone has the lower loss at the largest size.
  Figure C.1  RMS of the blocks' outputs: grows with depth at very high learning rates
  Figure E.2  without qk-layernorm: attention logits grow at scale either way
  Figure E.3  best loss over learning rates: growing both is best at the largest size, and
              extrapolates more reliably from small models

Measured here at cpu scale, one seed: LR sensitivity rises faster with depth than with width (slopes
of its logarithm on that of the parameters differ by 0.16). At 147K width alone has the lowest loss,
1.93, both 1.97, depth alone 2.05: 12 layers of width 32 have not caught up after 400 steps. The
shapes of gpu and paper scale are our choice but for the paper's two fixed ones: 6 layers where the
width grows, width 512 where the depth grows.

Time at cpu scale: 98 runs, 6 to 10 minutes on two cores, half of it for the 12 layers.

  python -m launch.sweep --config=configs/width_and_depth.py --workdir=runs/width_and_depth
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

# (width, depth), smallest first; the second of each row is the same.
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
  """What every run of the sweep shares."""
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
