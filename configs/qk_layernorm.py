"""When do attention logits blow up, and does qk-layernorm prevent it? Most figures of the paper.

The grid that most of the paper's figures are read from (arXiv 2309.14322, sections 3.1.1 and 3.3):
sizes x qk-layernorm on and off x seven learning rates.

  Figure 1     loss against learning rate, LR sensitivity against size. Paper: trains stably across
               three decades with it; without it, the rate that diverges falls with size.
  Figure 2     loss and highest attention logit of block 0 over training, two sizes. Paper: without
               it, both diverge; block 0 has the largest logits.
  Figure 9     that logit early in training against size, extrapolated: past 1e4 runs diverge, and
               4.8B at 1e-2 was foretold so. The largest size here is there to be foretold.
  Figure 11    gradient RMS of the first MLP layer: falls with size and learning rate
  Figure C.1   RMS of the blocks' outputs: the same at all sizes, grows with learning rate
  Figure E.1   query and key norms. Paper: logits grow by them, not by alignment.
  Figure E.12  Figure 11 for the key projection: the same trend
  Figure E.13  gradient and update RMS over training: updates shrink as gradients near eps

Measured here at cpu scale, three seeds: LR sensitivity 0.23 to 0.27 with qk-layernorm and 0.41 to
0.55 without, 1.5 times at the smallest size and 2.0 times at the largest; it rises with size
without it alone. At a rate of 1 no size is stable, and attention collapses with qk-layernorm too.
Every run whose logits passed 1e4 is unstable; block 0 has the highest ones in half of the unstable
runs. The quadratics foretell the logits of 590K within a quarter in the median (5,400 at a rate of
0.1 as 4,100, one seed); they grow by the norms of queries and keys, 94 %, not by alignment, 0.4 %.
Gradient RMS falls with powers of about -0.8 and -0.9 of size and rate, the key projection's with
-0.4 and -0.6, to 1e-6, far above eps = 1e-8, so that updates hardly shrink: see configs/epsilon.py.
Block outputs grow with size, unlike the paper.

For predictions by sharpness as well (stability/step/sharpness.py), which takes a third longer, add
--config.probe.sharpness_every_steps=80.

Time at cpu scale: 84 runs, 11 to 18 minutes on two cores.

  python -m launch.sweep --config=configs/qk_layernorm.py --workdir=runs/qk_layernorm
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

SIZES = {
    'cpu': ('9.2K', '37K', '83K', '147K', '332K', '590K'),
    'night': (*grid.SIZES['night'], '590K'),
    'gpu': ('2.4M', '9.4M', '19M', '42M', '85M'),
    'paper': grid.SIZES['paper'],
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x qk-layernorm x learning rate."""
  points = hyper.product([
      grid.sizes(scale, config_lib.for_scale(scale, SIZES)),
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      grid.learning_rates(scale),
  ])
  if scale == 'paper':  # the run that Figure 9 foretells
    foretold = {'model.qk_norm': 'none', 'optimizer.learning_rate': 1e-2}
    points += hyper.product([grid.sizes(scale, ['4.8B']), [foretold]])
  return points
