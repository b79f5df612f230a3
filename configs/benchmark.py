"""The fixed setup of launch.benchmark: seven learning rates at one small size.

Depth 3, head dimension 32, bytes, batches of 16 x 64 tokens, 7 learning rates x 300 steps.

Expected: about 20 s on two CPU cores, 35 s with nothing compiled (BUILD_NOTES.md). To run the sweep
alone, or everything that launch.benchmark compares it with:

  python -m launch.sweep --config=configs/benchmark.py --workdir=runs/benchmark
  python -m launch.benchmark --output=benchmark.json
"""

from ml_collections import ConfigDict

from configs import base
from stability import hyper

LEARNING_RATES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0]


def get_config(scale: str = 'cpu') -> ConfigDict:
  """One run, at width 64."""
  c = base.get_config(scale)
  c.data.tokenizer = 'bytes'
  c.model.dtype = 'float32'
  c.data.batch_size = 16
  c.data.sequence_length = 64
  c.model.width = 64
  c.model.depth = 3
  c.model.head_dim = 32
  c.schedule.steps = 300
  c.schedule.warmup_steps = 15
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Learning rates."""
  del scale
  return hyper.sweep('optimizer.learning_rate', LEARNING_RATES)
