"""How large may attention logits become before the loss suffers? Figure 10 of arXiv 2309.14322.

Queries and keys are scaled to a mean square of kappa, so logits are of the order of kappa whatever
the model learns. There is one size and one learning rate. A model without blocks, only embedding
and head, is the bigram model for comparison. The learning rate (the default) and the values of
kappa other than the paper's 1e3 and 1e4 are our choice.

  Figure 10  Loss against kappa, 10M parameters. Paper: the loss suffers from about 1e3; at 1e4 it
             is worse than that of the model without blocks.

Measured here at cpu scale, three seeds: the best kappa is 3. At about 20, not 1e3, 5 % of what was
learned is lost: with 64 positions and 400 steps there is little to gain from sharp attention, and
with a head dimension of 16 a kappa of 1e3 means logits of up to 4e3. From 300 on, the loss is worse
than that of the model without blocks.

Time at cpu scale: 12 runs, 1 to 2 minutes on two cores.

  python -m launch.sweep --config=configs/logit_scale.py --workdir=runs/logit_scale
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

SIZE = {'cpu': '147K', 'night': '147K', 'gpu': '9.4M', 'paper': '9.4M'}
KAPPAS = [1.0, 3.0, 10.0, 30.0, 1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5]


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  c = grid.get_config(scale)
  c.model.qk_norm = 'fixed'
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """kappa; and a model without blocks."""
  size = grid.sizes(scale, [config_lib.for_scale(scale, SIZE)])
  return hyper.chain([
      hyper.product([size, hyper.sweep('model.logit_scale', KAPPAS)]),
      hyper.product([size, hyper.fixed('model.depth', 0)]),
  ])
