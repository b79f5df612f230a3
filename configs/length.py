"""How long must a run be to show what long training shows? One grid at several lengths.

Sizes x qk-layernorm on and off x learning rates of the window 3e-4 ... 3e-1, with a warm-up of
5 % at every length (arXiv 2309.14322 trains for 100,000 steps). At night scale, the runs of 10,000
steps are those of configs/qk_layernorm.py:night, and --reuse copies them from its folder.

Measured at night scale (one seed, configs/README.md): at 37K, LR sensitivity without qk-layernorm
is 1.4, 1.7, 2.2, 3.1 and 5.3 times that with it at 400, 1,000, 2,500, 10,000 and 25,000 steps. With
qk-layernorm it falls with the length, to 0.064; without, it stays above 0.3. The page has the
verdicts on the claims by length.

Time at night scale: 140 runs, 2 to 3 hours on two cores; at cpu scale 84 runs, 6 to 10 minutes.

  python -m launch.sweep --config=configs/length.py --workdir=runs/length
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

STEPS = {
    'cpu': (400, 1_000, 2_500),
    'night': (400, 1_000, 2_500, 10_000, 25_000),
    'gpu': (1_000, 2_500, 5_000, 10_000),
    'paper': (10_000, 25_000, 100_000),
}
SIZES = {
    'cpu': ('9.2K', '37K'),
    'night': ('9.2K', '37K'),
    'gpu': ('2.4M', '9.4M'),
    'paper': ('2.4M', '9.4M'),
}
SHIFT = {'cpu': -1, 'night': 0, 'gpu': 0, 'paper': 0}  # half decades to the paper's window


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Length x size x qk-layernorm x learning rate."""
  lengths = [
      {'schedule.steps': steps, 'schedule.warmup_steps': steps // 20}
      for steps in config_lib.for_scale(scale, STEPS)
  ]
  return hyper.product([
      lengths,
      grid.sizes(scale, SIZES[scale]),
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      grid.learning_rates(scale, SHIFT[scale]),
  ])
