"""Which parameterization transfers a learning rate across widths? After arXiv 2407.05872.

standard, ntk, mup and mean_field, each with learning rates per layer by full alignment or by none;
and the standard one with the same rate for all layers, our default. Its paper: all four can
transfer; rates per layer help, and the standard parameterization with them beats muP; exponents of
no alignment reach the lower loss, those of full alignment are more sensitive to the rate. It
has 8 layers, head dimension 128 and 50,000 steps, where this takes the scale's sizes and lengths.

Expected here: not yet measured. At cpu scale widths differ by a factor of 3 alone.

Time at cpu scale: 126 runs, about 7 minutes on two cores, a third of it compiling (estimate).

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
