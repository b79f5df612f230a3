r"""Sizes, learning rates and run lengths that the experiments share, at each scale.

This file is not an experiment. The scales:

  cpu    400 steps of 16 x 64 bytes with a warm-up of 60, at 9.2K to 147K parameters. Such short
         runs need a warm-up of more than 5 % to tolerate the highest learning rates, and are
         undertrained at 3e-4. Their optimum is near 1e-2, so the three decades are 1e-3 ... 1
         (appendix B).
  night  10,000 steps of the same batches with a warm-up of 500 (5 %), at 9.2K to 147K parameters,
         in the paper's window, 3e-4 ... 3e-1: long enough to show effects that 400 steps hide.
  gpu    5,000 steps of 64 x 256 tokens at 2.4M to 42M parameters, 3e-4 ... 3e-1.
  paper  100,000 steps of 256 x 512 tokens at 2.4M to 1.2B parameters, 3e-4 ... 3e-1, bfloat16.
         The paper trains on C4 with T5's vocabulary of 32,101: give a folder of such token files as
         --config.data.path. Otherwise a BPE of the same size is learned from the text at hand.

The paper leaves some choices open, which we made at paper scale: the sizes of each figure (we use
the whole ladder); the width and depth of each size (12 depth width^2 matches the parameter counts
it names); a head dimension of 64; LayerNorm before RoPE; decay of every parameter; 16 validation
batches; one seed. The same holds for these choices of configs/base.py: z-loss averaged over tokens
like the loss, parameters and optimizer state in float32, a RoPE base of 10,000, the tanh form of
GELU, and the logging and probing intervals.

Each experiment states its time at cpu scale: one seed on two cores, with nothing compiled before
and no run reused, on the faster and on the slower machine of BUILD_NOTES.md, estimated from the
time of runs of each size on the slower one. On one H100 at 40 % of its peak, by arithmetic, each
takes up to 30 hours at gpu scale, which is in float32 (67 TFLOP/s), and 18 to 11,000 hours at paper
scale, in bfloat16 (990 TFLOP/s), where 4.8B needs several GPUs:

  python -m launch.sweep --config=configs/NAME.py:gpu --dry_run --devices=1 --device_memory_gb=80 \
      --device_tflops=67
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.errors import BadInput

SIZES = {
    'cpu': ('9.2K', '37K', '147K'),
    'night': ('9.2K', '37K', '147K'),
    'gpu': ('2.4M', '9.4M', '42M'),
    'paper': ('2.4M', '9.4M', '19M', '42M', '85M', '151M', '302M', '1.2B'),
}
RATES = (  # half a decade apart; whole windows fit in below and above those of all scales
    *(1e-9, 3e-9, 1e-8, 3e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    *(1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3),
)
SCHEDULE_FLOOR = 1e-5  # schedule.min_learning_rate of configs/base.py
LOWEST = {'cpu': 1e-3, 'night': 3e-4, 'gpu': 3e-4, 'paper': 3e-4}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """configs/base.py with the run length of the scale."""
  c = base.get_config(scale)
  if scale == 'cpu':
    c.schedule.steps = 400
    c.schedule.warmup_steps = 60
    c.schedule.decay_steps = 80
    c.checkpoint.every_steps = 200
  return c


def sizes(scale: str, names: Sequence[str] | None = None) -> list[hyper.Point]:
  """Named sizes (default: those of the scale), as the fields in which any differs from base.py."""
  points = [config_lib.size(name) for name in names or config_lib.for_scale(scale, SIZES)]
  default = {field: config_lib.FIELDS[field].default_at(scale) for field in points[0]}
  varied = [field for field in default if any(p[field] != default[field] for p in points)]
  return [{field: point[field] for field in varied} for point in points]


def learning_rates(scale: str, shift: int = 0, count: int = 7) -> list[hyper.Point]:
  """`count` rates, half a decade apart, from `shift` half decades above the scale's lowest rate."""
  return rates_from(config_lib.for_scale(scale, LOWEST), shift, count)


def rates_from(first: float, shift: int, count: int) -> list[hyper.Point]:
  """`count` rates of RATES, half a decade apart, from `shift` half decades above `first`."""
  return hyper.sweep('optimizer.learning_rate', _rates(first, shift, count))


def _rates(first: float, shift: int, count: int) -> Sequence[float]:
  start = RATES.index(first) + shift
  if not 0 <= start <= start + count <= len(RATES):
    raise BadInput(f'{count} rates from {shift} half decades above {first}: not all in grid.RATES')
  return RATES[start : start + count]


def schedule_floor(shift: int) -> dict[str, float]:
  """The end of the schedule for a window that is shifted by this many half decades, as an option.

  It stays as far below the window; with no shift, nothing has to be changed.
  """
  (floor,) = _rates(SCHEDULE_FLOOR, shift, 1)
  return {'schedule.min_learning_rate': floor} if shift else {}
