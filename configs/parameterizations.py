"""Which parameterization transfers a learning rate across widths? After arXiv 2407.05872.

standard, ntk, mup and mean_field, each with per-layer learning rates for full alignment and for no
alignment; and standard with one learning rate for all layers, our default.

Paper: all four can transfer the learning rate. Per-layer learning rates help, and standard with
them beats muP. No-alignment exponents reach the lower loss; full-alignment exponents are more
sensitive to the learning rate. The paper uses 8 layers, a head dimension of 128 and 50,000 steps,
this experiment the sizes and lengths of the scale. The paper's standard parameterization
initialises embeddings with a standard deviation of 1, ours with 1/sqrt(width), as arXiv 2309.14322
does.

Measured here at cpu scale, three seeds, where widths differ by a factor of only 3: at the base
width all parameterizations are equal up to rounding, with an optimum at 3e-2. At 83K, standard with
one learning rate has a best loss of 1.988. With per-layer learning rates, optima move by at most
0.28 decades (0.26 to 0.31; a factor of 2 is allowed, so this is undecided) and best losses are
lower:

                  standard  muP    NTK    mean_field
  full alignment  1.952     1.944  1.947  1.965
  no alignment    1.961     1.959  1.941  1.976

Which of these is the lowest, three seeds do not tell. LR sensitivity at 83K is 0.29 to 0.30 with
full alignment, 0.26 to 0.27 with no alignment, and 0.23 with one learning rate: lower per-layer
learning rates cost most at the low end of the window.

Time at cpu scale: 126 runs, 7 to 12 minutes on two cores.

  python -m launch.sweep --config=configs/parameterizations.py --workdir=runs/parameterizations
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
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
