"""Does muParam make training less sensitive to the learning rate? Figures of section 3.2.4.

The standard parameterization against the paper's three muParams: simple (the learning rate of
linear layers falls with width), intermediate (the head starts smaller as well) and full (attention
scale 1 / head dimension and queries starting from zero as well).

  Figure 8    simple, with qk-layernorm. Paper: keeps the optimal learning rate where it is, but
              lowers neither loss nor LR sensitivity.
  Figure E.4  simple, without. Paper: the optimum stays, yet qk-layernorm is still needed.
  Figure E.5  all, with and without. Paper: full with qk-layernorm trains without diverging at a
              rate of 1; no gain over simple at the best rate of the largest size.

Measured here at cpu scale, one seed: the optimum of simple muParam moves by 0.07 decades from 9.2K
to 83K, 0.1 without qk-layernorm, that of standard by 0.5; LR sensitivity is 1.1 times that of
standard; without qk-layernorm it is 1.35 times that with it; the best loss of the largest size is
0.045 lower, unlike the paper, and full's is 0.04 above simple's. At a rate of 1 full does not
diverge, but nor does any other. All agree at the smallest size, base_width, but for full.
intermediate is trained with qk-layernorm alone.

Time at cpu scale: 147 runs, 8 to 14 minutes on two cores.

  python -m launch.sweep --config=configs/muparam.py --workdir=runs/muparam
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

WITHOUT_QK_LAYERNORM = ('standard', 'muparam_simple', 'muparam_full')


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
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
