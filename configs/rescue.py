"""How many doomed runs does the policy rescue? Alarms that rewind a run at a lower learning rate.

Size x control.on_alarm none and policy x learning rate, without qk-layernorm, so that high learning
rates make runs unstable. A run is doomed if it is unstable without the policy. It is rescued if,
with the policy, it ends within 2 % of the best loss of its size. The best loss is the lowest, over
learning rates, of the mean over seeds without the policy. launch.report counts these runs
(stability/analysis/rescue.py). Not in the paper.

Measured here at cpu scale, two seeds: 22 runs are doomed and end 18 to 55 % above the best loss.
The policy rescued 21 of them (the last one ends 2.9 % above) and harmed none of the 26 others. The
rules of the policy were chosen on configs/qk_layernorm.py and other experiments; here data.seed is
1, so that the batches differ from theirs.

Time at cpu scale: 48 runs, about 4 minutes a seed on two cores (estimate from CPU seconds).

  python -m launch.sweep --config=configs/rescue.py --workdir=runs/rescue
"""

from ml_collections import ConfigDict

from configs import grid
from stability import config as config_lib
from stability import hyper

SIZES = {
    'cpu': ('9.2K', '37K', '83K', '147K'),
    'night': ('9.2K', '37K', '147K'),
    'gpu': ('2.4M', '9.4M', '42M'),
    'paper': ('2.4M', '9.4M', '42M'),
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  c = grid.get_config(scale)
  if scale in ('cpu', 'night'):  # checkpoints to rewind to
    c.checkpoint.every_steps = 100 if scale == 'cpu' else 500
  c.data.seed = 1
  c.model.qk_norm = 'none'
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x policy x learning rate."""
  return hyper.product([
      grid.sizes(scale, config_lib.for_scale(scale, SIZES)),
      hyper.sweep('control.on_alarm', ['none', 'policy']),
      grid.learning_rates(scale, shift=1, count=6),
  ])
