"""How large may attention logits become before the loss suffers? Figure 10 of arXiv 2309.14322.

Queries and keys are brought to a mean square of kappa, so that logits are of the order of kappa
whatever is learned; one size, one learning rate. A model without blocks, embedding and head alone,
is the bigram model to compare with. The learning rate (the default) and the values of kappa between
the paper's 1e3 and 1e4 and around them are our choice.

  Figure 10  loss against kappa, 10M parameters. Paper: suffers from about 1e3; at 1e4 worse than
             the model without blocks.

Measured here at cpu scale, three seeds: the best scale is 3; 5 % of what was learned is lost at
about 20, not 1e3, for at 64 positions and 400 steps there is little to gain from sharp attention,
and at head dimension 16 a scale of 1e3 means logits of up to 4e3. From 300 on it is worse than the
model without blocks.

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
  """What every run of the sweep shares."""
  c = grid.get_config(scale)
  c.model.qk_norm = 'fixed'
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """kappa, and a model without blocks."""
  size = grid.sizes(scale, [config_lib.for_scale(scale, SIZE)])
  return hyper.chain([
      hyper.product([size, hyper.sweep('model.logit_scale', KAPPAS)]),
      hyper.product([size, hyper.fixed('model.depth', 0)]),
  ])
