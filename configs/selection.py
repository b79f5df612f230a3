r"""Does it matter which half of the text a model is trained on? Rules of selection against random.

Two sizes x seven learning rates x three seeds, once on all of the training text and once on half of
it, chosen by each rule: whole documents at random, those with the highest loss, those on which
three seeds disagree most, and those whose loss a larger model lowers most. The models that choose
are 9.2K at the best learning rate; the larger one is 37K. The validation text stays the same, and
so does the number of steps. Rankings of data may flip with the learning rate (arXiv 2512.24503),
so the page compares at each rate. Not in the paper.

Measured at cpu scale, three seeds (configs/README.md, "Which half of the text to train on"): at the
best rate, 3e-2 everywhere, the half by gain has 0.041 nats less than a random one at 37K; all other
differences are undecided: 0.003 less at 9.2K, and those of disagreement and high loss. Rankings do
flip: text of high loss is the worst half of four from 3e-3 to 3e-1 at 37K and the best one at 1.

Time at cpu scale: 28 minutes on two cores that had other work: 5 sweeps of 42 runs, each 2 to 3
minutes, and 4 selections of 3 to 5, with --seeds=3 for every sweep. Begin with all of the text:

  python -m launch.sweep --config=configs/selection.py --workdir=runs/all --seeds=3

Then, for each RULE of random, loss, disagreement and gain:

  python -m launch.label select --workdir=runs/all --runs='width=16,learning_rate=0.03,*' \
      --data=train --length=0 --share=0.5 --by=RULE --output=runs/tasks_RULE
  python -m launch.label keep --tasks=runs/tasks_RULE --output=runs/text_RULE
  python -m launch.sweep --config=configs/selection.py --workdir=runs/RULE \
      --config.data.path=runs/text_RULE --seeds=3

with --reference='runs/all/runs/width=32,learning_rate=0.03,seed=0' for gain. The page, in which the
others are held against random:

  python -m launch.report --workdir=runs/random,runs/all,runs/loss,runs/disagreement,runs/gain \
      --output=runs/selection
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x learning rate."""
  return hyper.product([
      grid.sizes(scale, config_lib.for_scale(scale, grid.SIZES)[:2]),
      grid.learning_rates(scale),
  ])
