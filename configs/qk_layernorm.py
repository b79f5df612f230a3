"""When do attention logits blow up, and does qk-layernorm prevent it? Most figures of the paper.

The grid behind most figures of the paper (arXiv 2309.14322, sections 3.1.1 and 3.3): sizes x
qk-layernorm on and off x seven learning rates.

  Figure 1     Loss against learning rate, and LR sensitivity against size. Paper: with
               qk-layernorm, training is stable across three decades; without it, the learning rate
               at which runs diverge falls with size.
  Figure 2     Loss and highest attention logit of block 0 over training, at two sizes. Paper:
               without qk-layernorm, both diverge; block 0 has the largest logits.
  Figure 9     Highest attention logit of block 0 early in training against size, extrapolated.
               Paper: runs diverge above 1e4, and 4.8B at 1e-2 was predicted to diverge. Here, the
               largest size is for prediction.
  Figure 11    Gradient RMS of the first MLP layer. Paper: falls with size and learning rate.
  Figure C.1   RMS of the blocks' outputs. Paper: the same at all sizes; grows with the learning
               rate.
  Figure E.1   Norms of queries and keys. Paper: logits grow through the norms, not by alignment.
  Figure E.12  Figure 11 for the key projection. Paper: the same trend.
  Figure E.13  Gradient and update RMS over training. Paper: updates shrink as gradients approach
               eps.

Measured here at cpu scale, three seeds: LR sensitivity is 0.23 to 0.27 with qk-layernorm and 0.41
to 0.55 without, a ratio of 1.5 at the smallest size and 2.0 at the largest. It rises with size only
without qk-layernorm. At a learning rate of 1 no size is stable, and attention collapses with
qk-layernorm too.

Every run whose logits passed 1e4 is unstable. Block 0 has the highest logits in half of the
unstable runs. Quadratics fitted to smaller sizes predict the logits of 590K with a median error of
a quarter (one seed at a learning rate of 0.1: 4,100 predicted, 5,400 measured). Of the growth of
logits, 94 % is due to the norms of queries and keys, and 0.4 % to alignment.

Gradient RMS goes as about size^-0.8 and learning rate^-0.9, that of the key projection as size^-0.4
and learning rate^-0.6. It falls to 1e-6, far above eps = 1e-8, so updates hardly shrink: see
configs/epsilon.py. Block outputs grow with size, unlike in the paper.

Measured here at night scale, one seed, at 9.2K, 37K and 147K: LR sensitivity is 0.11, 0.10 and 0.06
with qk-layernorm, and 0.21, 0.31 and 0.42 without, ratios of 2.0, 3.1 and 6.6. From 1e-2 to 3e-1,
147K ends between 1.38 and 1.44 nats with it, and between 1.38 and 2.71 without.

Before the 14 runs of 590K were trained at night scale, they were predicted from those 42 runs, all
rightly. There, LR sensitivity is 0.05 with qk-layernorm and 0.40 without, a ratio of 8. From 1e-2
to 3e-1, 590K ends between 1.29 and 1.35 nats with it, and between 1.35 and 2.48 without. The files
are predictions_590K.csv, results_590K.csv and forecast_scores_590K.csv of
configs/results/night_qk_layernorm.

To predict from sharpness as well (stability/step/sharpness.py), add
--config.probe.sharpness_every_steps=80, which takes a third longer.

Time: 84 runs at cpu scale, 11 to 18 minutes on two cores; 56 at night scale, about
2.5 hours (estimate; 590K took 96 minutes beside other work).

  python -m launch.sweep --config=configs/qk_layernorm.py --workdir=runs/qk_layernorm
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

SIZES = {
    'cpu': ('9.2K', '37K', '83K', '147K', '332K', '590K'),
    'night': (*grid.SIZES['night'], '590K'),
    'gpu': ('2.4M', '9.4M', '19M', '42M', '85M'),
    'paper': grid.SIZES['paper'],
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x qk-layernorm x learning rate."""
  points = hyper.product([
      grid.sizes(scale, config_lib.for_scale(scale, SIZES)),
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      grid.learning_rates(scale),
  ])
  if scale == 'paper':  # the run that Figure 9 predicts
    predicted = {'model.qk_norm': 'none', 'optimizer.learning_rate': 1e-2}
    points += hyper.product([grid.sizes(scale, ['4.8B']), [predicted]])
  return points
