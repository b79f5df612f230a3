"""Which normalisation of queries and keys is best? Figure E.8 of arXiv 2309.14322, and two more.

layernorm (the default) normalises each head separately, with one scale for all heads;
layernorm_model normalises all heads together; rmsnorm and l2 normalise each head separately, l2
with one learned temperature.

  Figure E.8  layernorm against layernorm_model. Paper: layernorm is slightly better.

Measured here at cpu scale, three seeds: at 83K best losses agree within 0.02. Over all learning
rates, layernorm is better than layernorm_model by 0.003 +- 0.009, which is undecided. (At 9.2K
there is one head, and the two are the same.) l2 has the lowest LR sensitivity, 0.22 and 0.17 at
9.2K and 83K, against 0.27 and 0.24 for layernorm and 0.29 and 0.23 for rmsnorm.

Time at cpu scale: 56 runs, 3 to 5 minutes on two cores.

  python -m launch.sweep --config=configs/qk_norm_variants.py --workdir=runs/qk_norm_variants
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x qk-norm x learning rate."""
  return hyper.product([
      grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None),
      hyper.sweep('model.qk_norm', ['layernorm', 'layernorm_model', 'rmsnorm', 'l2']),
      grid.learning_rates(scale),
  ])
