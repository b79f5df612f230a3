"""How far do small models predict large ones? Sizes over three orders of magnitude, four arms.

The arms are the default model (with qk-layernorm), the default without qk-layernorm, peri-LN
without qk-layernorm, and simple muParam with qk-layernorm. Sizes up to 147K are for fitting; 590K,
2.4M and 9.4M, 4 to 64 times as large, are to be predicted. Only the width differs: the head
dimension is 16 at cpu and night scale, so attention logits sum the same number of products at all
sizes.

The cpu scale uses the schedule and window of configs/quickstart.py: 400 steps, 1e-3 ... 1.

Measured at cpu scale, one seed: LR sensitivity rises with size from 147K over 2.4M to 9.4M, from
0.23 over 0.26 to 0.33 with qk-layernorm and from 0.46 over 0.62 to 0.76 without. With it, it falls
from 0.31 to 0.23 up to 147K. Of 28 runs of 9.4M, sizes up to 147K predict for all whether they are
stable.

Time at cpu scale: 196 runs, about 3 hours on two cores (estimate); 9.4M took 107 minutes beside
other work.

  python -m launch.sweep --config=configs/extrapolation.py --workdir=runs/extrapolation

configs/results/extrapolation/predictions_9.4M.csv holds what sizes up to 147K (one seed) predict of
9.4M, written before its runs, and forecast_scores.csv the scores at 590K and 2.4M, both by

  python -m launch.predict --workdir=runs/extrapolation --fit_up_to=147K --target=9.4M

results_9.4M.csv and forecast_scores_9.4M.csv are the runs of 9.4M, which were trained a day later
on another machine, and the scores of the predictions on record.
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

WIDTHS = {
    'cpu': (16, 32, 48, 64, 128, 256, 512),
    'night': (16, 32, 48, 64, 128),
}
SIZES = {
    'gpu': ('2.4M', '9.4M', '19M', '42M', '85M', '302M'),
    'paper': (*grid.SIZES['paper'], '4.8B'),
}
ARMS = [
    {'model.qk_norm': 'layernorm'},
    {'model.qk_norm': 'none'},
    {'model.qk_norm': 'none', 'model.norm_position': 'peri'},
    {'model.qk_norm': 'layernorm', 'parameterization.name': 'muparam_simple'},
]


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Arm x size x learning rate, smallest size first."""
  if scale in WIDTHS:
    sizes = hyper.sweep('model.width', WIDTHS[scale])
  else:
    sizes = grid.sizes(scale, config_lib.for_scale(scale, SIZES))
  return hyper.product([sizes, ARMS, grid.learning_rates(scale)])
