"""Do output logits drift, and does z-loss or weight decay hold them? Figures of section 3.1.2.

z-loss and weight decay, each alone, both and neither, on a learned vocabulary, with qk-layernorm.

  Figure 3  loss against learning rate. Paper: without weight decay output logits diverge at every
            size; z-loss cures it, and weight decay does for the larger models.
  Figure 4  output logits over training at 2.4M and a rate of 0.1: they become very negative, late.

Expected here: not yet measured. The drift needs many steps, a high rate and rare tokens, so cpu
scale trains the smallest model for 4,000 steps on a BPE of 2,048 tokens at the upper end of the
window. Two earlier attempts (bytes; a BPE of 4,096 at width 32) showed less than 0.04 nats.

Time at cpu scale: 12 runs, about 7 minutes on two cores (estimate).

  python -m launch.sweep --config=configs/z_loss.py --workdir=runs/z_loss
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

NEITHER = {'objective.z_loss': 0.0, 'optimizer.weight_decay': 0.0}
Z_LOSS = {'objective.z_loss': 1e-4, 'optimizer.weight_decay': 0.0}
WEIGHT_DECAY = {'objective.z_loss': 0.0, 'optimizer.weight_decay': 1e-4}
BOTH = {'objective.z_loss': 1e-4, 'optimizer.weight_decay': 1e-4}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
  c = grid.get_config(scale)
  c.data.tokenizer = 'bpe'
  if scale == 'cpu':
    c.data.vocabulary_size = 2_048
    c.schedule.steps = 4_000
    c.schedule.warmup_steps = 200
    c.checkpoint.every_steps = 500
  if scale == 'gpu':
    c.data.vocabulary_size = 8_192
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x z-loss x weight decay x learning rate; at cpu scale without `both`, the upper rates."""
  if scale == 'cpu':
    arms, rates = [NEITHER, Z_LOSS, WEIGHT_DECAY], grid.learning_rates(scale, shift=3, count=4)
  else:
    arms, rates = [NEITHER, Z_LOSS, WEIGHT_DECAY, BOTH], grid.learning_rates(scale)
  return hyper.product([
      grid.sizes(scale, ['9.2K'] if scale == 'cpu' else None),
      arms,
      rates,
  ])
