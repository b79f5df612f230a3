"""A run about to break, three times: left alone, waiting for a person, steered by the policy.

The README's tutorial. Not in the paper.

Expected here: the RMS of block outputs raises an alarm at step 20. Left alone, attention logits
pass 6e5 and the run ends at 2.86 nats; taken back at that alarm to a learning rate of 1e-2 it ends
at 1.96, and with the policy at 1.93; the best run of this size without qk-layernorm ends at 1.96.

Time at cpu scale: 3 runs, about 1 minute on two cores, and as long as the person takes.

  python -m launch.sweep --config=configs/stepping_in.py --workdir=runs/stepping_in
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper


def get_config(scale: str = 'cpu') -> ConfigDict:
  """A learning rate that is too high without qk-layernorm."""
  c = grid.get_config(scale)
  if scale in ('cpu', 'night'):  # steps to go back to
    c.checkpoint.every_steps = 100 if scale == 'cpu' else 500
  c.model.qk_norm = 'none'
  c.optimizer.learning_rate = 0.3
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """What is done at an alarm."""
  del scale
  return hyper.sweep('control.on_alarm', ['none', 'ask', 'policy'])
