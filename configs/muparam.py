"""Does muParam make training less sensitive to the learning rate? Figures of section 3.2.4.

The standard parameterization is compared with the paper's three muParams: simple (the learning rate
of linear layers falls with width), intermediate (in addition, the head starts smaller) and full (in
addition, attention is scaled by 1 / head dimension and queries start at zero). The intermediate one
is trained with qk-layernorm only.

  Figure 8    Simple, with qk-layernorm. Paper: the optimal learning rate does not change with size,
              but neither loss nor LR sensitivity is lower.
  Figure E.4  Simple, without qk-layernorm. Paper: the optimum does not change, but qk-layernorm is
              still needed.
  Figure E.5  All, with and without qk-layernorm. Paper: full with qk-layernorm trains without
              diverging at a learning rate of 1; at the best learning rate of the largest size, it
              is no better than simple.

Measured here at cpu scale, three seeds: from 9.2K to 83K, the optimum of simple muParam moves by
0.05 decades (0.08 without qk-layernorm), that of standard by 0.4 (0.5). The LR sensitivity of
simple muParam is 1.1 times that of standard; without qk-layernorm it is at least 1.33 times that
with it (90 % interval: 1.09 to 1.65). Its best loss at the largest size is 0.036 lower than that of
standard (0.007 to 0.050; the paper saw no difference), that of full 0.010 above it (-0.02 to 0.04).
At a learning rate of 1, full does not diverge, but neither do the others. At the smallest size,
which is base_width, all parameterizations except full agree.

Time at cpu scale: 147 runs, 8 to 14 minutes on two cores.

  python -m launch.sweep --config=configs/muparam.py --workdir=runs/muparam
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

WITHOUT_QK_LAYERNORM = ('standard', 'muparam_simple', 'muparam_full')


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x parameterization and qk-layernorm x learning rate, up to 1 at every scale."""
  names = ('standard', 'muparam_simple', 'muparam_intermediate', 'muparam_full')
  arms = hyper.chain([
      hyper.product([
          hyper.sweep('parameterization.name', names),
          hyper.fixed('model.qk_norm', 'layernorm'),
      ]),
      hyper.product([
          hyper.sweep('parameterization.name', WITHOUT_QK_LAYERNORM),
          hyper.fixed('model.qk_norm', 'none'),
      ]),
  ])
  return hyper.product([
      grid.sizes(scale, ['9.2K', '37K', '83K'] if scale == 'cpu' else None),
      arms,
      grid.learning_rates(scale, count=7 if scale == 'cpu' else 8),
  ])
