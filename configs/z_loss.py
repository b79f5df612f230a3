"""Do output logits drift, and does z-loss or weight decay hold them? Figures of section 3.1.2.

z-loss and weight decay, each alone, both and neither, on a learned vocabulary, with qk-layernorm.

  Figure 3  loss against learning rate. Paper: without weight decay output logits diverge at every
            size; z-loss cures it, and weight decay does for the larger models.
  Figure 4  output logits over training at 2.4M and a rate of 0.1: they become very negative, late.

The drift comes late here too: it wants many steps more than a large model. So cpu scale trains the
smallest one there can be, a single block of width 16, on 128 tokens a step of a BPE of 1,024 tokens
for 100,000 steps, as many as the paper's.

Measured here at cpu scale, one seed: without either, the mean output logit ends at -37, -111 and
-150 at rates of 0.03, 0.1 and 0.3, and log Z with it; with z-loss at -9, -6 and -6; with weight
decay at -17, -31 and -106. How far it drifts is chance: of two other runs of 0.3, one seed each on
other versions of the code, one ended at -59 and one at -550. In float32 the loss does not suffer:
4.37, 4.45 and 4.51 without, 4.37, 4.45 and 4.66 with z-loss. So Figure 3's cure has nothing to cure
here. No drift was seen with bytes, nor with 2,048 tokens at width 32 for 8,000 steps of 256 tokens,
in bfloat16 neither, nor with 8,192 tokens.

Time at cpu scale: 9 runs, 5 to 8 minutes on two cores.

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
    c.data.vocabulary_size = 1_024
    c.data.batch_size = 4
    c.data.sequence_length = 32
    c.data.validation_batches = 128
    c.schedule.steps = 100_000
    c.schedule.warmup_steps = 5_000
    c.log.every_steps = 500
    c.probe.every_steps = 500
    c.checkpoint.every_steps = 10_000
  if scale == 'night':
    c.data.vocabulary_size = 1_024
  if scale == 'gpu':
    c.data.vocabulary_size = 8_192
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x z-loss x weight decay x learning rate; at cpu scale without `both`, the upper rates."""
  if scale == 'cpu':
    size = [{'model.width': 16, 'model.depth': 1}]
    arms, rates = [NEITHER, Z_LOSS, WEIGHT_DECAY], grid.learning_rates(scale, shift=3, count=3)
  else:
    size = grid.sizes(scale)
    arms, rates = [NEITHER, Z_LOSS, WEIGHT_DECAY, BOTH], grid.learning_rates(scale)
  return hyper.product([size, arms, rates])
