"""Do activations keep their size as the width grows? The coordinate check of arXiv 2203.03466.

Twelve steps at a constant learning rate, without warm-up, at four widths. The standard
parameterization is compared with those that should keep the size of activations independent of the
width. The measure is the slope of log RMS of an activation against log width, at each step
(stability/analysis/coordinate_check.py).

Expected: with one learning rate for all layers (standard, none), the outputs of attention and MLP
grow with the width, and faster after every update. With full alignment, and under muParam, slopes
stay near 0.

Measured here at cpu scale, three seeds: slopes at step 12 of the attention and MLP outputs of the
first block, fitted to all seeds. Those of single seeds differ from these by up to 0.2 for attention
and 0.3 for the MLP:

  standard, none              1.78  2.01
  standard, full alignment    0.18 -0.01  (the same as muparam_simple)
  muparam_full                0.23  0.03
  ntk, full alignment         0.05 -0.04
  mup, full alignment        -0.01 -0.03
  mup, no alignment           0.54  0.54

Time at cpu scale: 36 runs, 5 to 9 minutes on two cores. Nearly all of it is compilation, since
every width and parameterization is a separate program.

  python -m launch.sweep --config=configs/coordinate_check.py --workdir=runs/coordinate_check
"""

from ml_collections import ConfigDict

from configs import base
from stability import config as config_lib
from stability import hyper

WIDTHS = {
    'cpu': [32, 64, 128, 256],
    'night': [32, 64, 128, 256],
    'gpu': [256, 512, 1024, 2048],
    'paper': [256, 512, 1024, 2048, 4096],
}
ARMS = [
    ('standard', 'none'),
    ('standard', 'full_alignment'),
    ('muparam_simple', 'none'),
    ('muparam_intermediate', 'none'),
    ('muparam_full', 'none'),
    ('ntk', 'full_alignment'),
    ('mup', 'full_alignment'),
    ('mup', 'no_alignment'),
    ('mean_field', 'full_alignment'),
]


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  c = base.get_config(scale)
  c.model.depth = 2
  c.parameterization.base_width = min(config_lib.for_scale(scale, WIDTHS))
  c.schedule.steps = 12
  c.schedule.warmup_steps = 0
  c.schedule.shape = 'wsd'
  c.schedule.decay_steps = 0  # constant
  c.log.every_steps = 1
  c.probe.every_steps = 1
  c.checkpoint.every_steps = 0
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Width x parameterization."""
  names, exponents = zip(*ARMS)
  return hyper.product([
      hyper.sweep('model.width', config_lib.for_scale(scale, WIDTHS)),
      hyper.zipit([
          hyper.sweep('parameterization.name', names),
          hyper.sweep('parameterization.exponents', exponents),
      ]),
  ])
