"""Do activations keep their size as the width grows? The coordinate check of arXiv 2203.03466.

Twelve steps at a constant learning rate, without warm-up, at four widths: the standard
parameterization and those that are to keep activations in place from the first update on. What
counts is the slope of the log of an activation's RMS against that of the width, at each step
(stability/analysis/coordinate_check.py).

Expected: with one learning rate for all layers (standard, none) what attention and MLP put out
grows with the width, the more the more updates; with full alignment, and under muParam, slopes stay
near 0. Measured here at cpu scale, one seed, at step 12, for what attention and MLP of the first
block put out: 1.84 and 2.24 for the former; 0.17 and 0.04 for it with full alignment, which is
muparam_simple; 0.22 and 0.10 under muparam_full, 0.05 and 0.03 under ntk, -0.01 and 0.04 under mup;
0.58 and 0.57 under mup with no alignment.

Time at cpu scale: 36 runs, 5 to 9 minutes on two cores, nearly all of it compiling, since every
width and parameterization is a program of its own.

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
  """What every run of the sweep shares."""
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
