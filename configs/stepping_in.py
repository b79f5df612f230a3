"""A run about to break, three times: left alone, waiting for a person, steered by the policy.

This is the tutorial of configs/README.md. Not in the paper.

Measured here: attention logits raise two alarms at step 40. Left alone, the run reaches attention
logits of 8e5 and ends at 2.99 nats. Rewound at the alarms to a learning rate of 1e-2, it ends at
1.96; with the policy, which rewinds it three times, at 1.96. The best run of this size without
qk-layernorm ends at 1.95 (configs/extrapolation.py).

Time at cpu scale: 3 runs, about 1 minute on two cores, plus the time that the person takes.

  python -m launch.sweep --config=configs/stepping_in.py --workdir=runs/stepping_in
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """A learning rate that is too high without qk-layernorm."""
  c = grid.get_config(scale)
  if scale in ('cpu', 'night'):  # checkpoints to rewind to
    c.checkpoint.every_steps = 100 if scale == 'cpu' else 500
  c.model.qk_norm = 'none'
  c.optimizer.learning_rate = 0.3
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """The reaction to an alarm."""
  del scale
  return hyper.sweep('control.on_alarm', ['none', 'ask', 'policy'])
