"""Which parameterization transfers a learning rate across widths? After arXiv 2407.05872.

standard, ntk, mup and mean_field, each with learning rates per layer by full alignment or by none;
and the standard one with the same rate for all layers, our default. Its paper: all four can
transfer; rates per layer help, and the standard parameterization with them beats muP; exponents of
no alignment reach the lower loss, those of full alignment are more sensitive to the rate. It
has 8 layers, head dimension 128 and 50,000 steps, where this takes the scale's sizes and lengths;
its standard one has embeddings of std 1, where ours, as arXiv 2309.14322's, have 1/sqrt(width).

Measured here at cpu scale, one seed, where widths differ by a factor of 3 alone: at the base width
all are one and the same but for rounding, with an optimum at 3e-2. At 83K the standard one without
rates per layer has it at 1e-2 and ends at 1.993; with them all stay within a factor of 2 (0.28
decades at the most) and end lower, at 1.948 (standard), 1.956 (muP), 1.948 (NTK) and 1.978
(mean_field) by full alignment, 1.965, 1.949, 1.954 and 1.991 by none. LR sensitivity there is 0.28
to 0.29 by full alignment, 0.24 to 0.27 by none, and 0.23 without: lower rates per layer cost most
at the low end of the window.

Time at cpu scale: 126 runs, 7 to 12 minutes on two cores.

  python -m launch.sweep --config=configs/parameterizations.py --workdir=runs/parameterizations
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x parameterization and exponents x learning rate."""
  arms = hyper.chain([
      [{'parameterization.name': 'standard', 'parameterization.exponents': 'none'}],
      hyper.product([
          hyper.sweep('parameterization.name', ['standard', 'ntk', 'mup', 'mean_field']),
          hyper.sweep('parameterization.exponents', ['full_alignment', 'no_alignment']),
      ]),
  ])
  return hyper.product([
      grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None),
      arms,
      grid.learning_rates(scale),
  ])
