"""Do output logits drift, and does z-loss or weight decay prevent it? Figures of section 3.1.2.

z-loss alone, weight decay alone, both and neither, with a learned vocabulary and qk-layernorm.

  Figure 3  Loss against learning rate. Paper: without weight decay, output logits diverge at every
            size; z-loss prevents it, and for the larger models so does weight decay.
  Figure 4  Output logits over training, 2.4M at a learning rate of 0.1. Paper: they become very
            negative, late in training.

The drift comes late here too: it needs many steps rather than a large model. So the cpu scale
trains the smallest possible model, one block of width 16, on 128 tokens per step of a BPE of 1,024
tokens, for 100,000 steps, the paper's number.

Measured here at cpu scale, three seeds, at learning rates of 0.03, 0.1 and 0.3; the mean output
logit at the end of each run, and mean losses:

                0.03           0.1              0.3               losses
  neither       -57, -40, -58  -70, -121, -102  -324, -17, -711   4.38, 4.43, 4.55
  z-loss        -10, -8, -6    -7, -8, -8       -7, -9, -9        4.38, 4.46, 4.56
  weight decay  -20, -13, -18  -46, -42, -28    -64, -71, -100    4.34, 4.38, 4.52

log Z drifts with the logits. The extent of the drift of the logits is random at 0.3, so that
claims about them there are undecided. In float32 the loss does not suffer, so z-loss has nothing to
cure here. There was no drift with bytes, with a vocabulary of
8,192, or with a vocabulary of 2,048 at width 32 for 8,000 steps of 256 tokens, in float32 or
bfloat16.

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
  """The config that all runs of the sweep share."""
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
  """Size x z-loss x weight decay x learning rate; at cpu scale without BOTH, at the upper rates."""
  if scale == 'cpu':
    size = [{'model.width': 16, 'model.depth': 1}]
    arms, rates = [NEITHER, Z_LOSS, WEIGHT_DECAY], grid.learning_rates(scale, shift=3, count=3)
  else:
    size = grid.sizes(scale)
    arms, rates = [NEITHER, Z_LOSS, WEIGHT_DECAY, BOTH], grid.learning_rates(scale)
  return hyper.product([size, arms, rates])
