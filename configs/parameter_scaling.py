"""Do learning rates relative to the parameters keep the optimum in place? Figure E.14.

The learning rate of each tensor is multiplied by max(RMS of the tensor, 1e-3), as in Adafactor, or
not scaled. A relative learning rate has another meaning, so LR sensitivity is not compared (arXiv
2309.14322, appendix B). Its window is our choice: a decade higher, since parameters have an RMS of
about 0.1.

  Figure E.14  Loss against learning rate. Paper: the optimal learning rate does not change with
               size, as with muParam.

Measured here at cpu scale, three seeds: the best relative learning rate is 0.1 and the best
absolute one 3e-2 at all three sizes. The interpolated optima of the smallest and the largest differ
by 0.09 (0.04 to 0.16) decades with relative rates. Best losses, from the smallest size to the
largest, are 2.187, 2.047 and 1.966 with relative rates, and 2.191, 2.042 and 1.988 with absolute
ones. Relative rates of 1 and above break training at every size.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

  python -m launch.sweep --config=configs/parameter_scaling.py --workdir=runs/parameter_scaling
"""

from typing import Any

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

FIELD = 'optimizer.learning_rate_scale'


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x scale of the learning rate x learning rate, each scale in its own window."""
  arms = hyper.chain([
      hyper.product([hyper.fixed(FIELD, 'none'), grid.learning_rates(scale)]),
      hyper.product([hyper.fixed(FIELD, 'parameter_rms'), grid.learning_rates(scale, shift=2)]),
  ])
  sizes = grid.sizes(scale, ['9.2K', '37K', '83K'] if scale == 'cpu' else None)
  return hyper.product([sizes, arms])


def get_report(scale: str = 'cpu') -> dict[str, Any]:
  """Excludes LR sensitivity from the report, since it is not comparable."""
  del scale
  return {'not_comparable': FIELD}
