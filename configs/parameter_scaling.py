"""Do learning rates relative to the parameters keep the optimum in place? Figure E.14.

Each tensor's learning rate times max(RMS of the tensor, 1e-3), as AdaFactor has it, against none.
A learning rate means something else there, so LR sensitivity is not compared (arXiv 2309.14322,
appendix B), and its window is our choice: a decade up, as parameters are about 0.1 in size.

  Figure E.14  loss against learning rate. Paper: keeps the optimal learning rate in place, as
               muParam does.

Expected here: not yet measured.

Time at cpu scale: 42 runs, about 2 minutes on two cores (estimate).

  python -m launch.sweep --config=configs/parameter_scaling.py --workdir=runs/parameter_scaling
"""

from typing import Any

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

FIELD = 'optimizer.learning_rate_scale'


def get_config(scale: str = 'cpu') -> ConfigDict:
  """What every run of the sweep shares."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x scale of the learning rate, with its own window."""
  arms = hyper.chain([
      hyper.product([hyper.fixed(FIELD, 'none'), grid.learning_rates(scale)]),
      hyper.product([hyper.fixed(FIELD, 'parameter_rms'), grid.learning_rates(scale, shift=2)]),
  ])
  sizes = grid.sizes(scale, ['9.2K', '37K', '83K'] if scale == 'cpu' else None)
  return hyper.product([sizes, arms])


def get_report(scale: str = 'cpu') -> dict[str, Any]:
  """No LR sensitivity."""
  del scale
  return {'not_comparable': FIELD}
