"""Do learning rates relative to the parameters keep the optimum in place? Figure E.14.

Each tensor's learning rate times max(RMS of the tensor, 1e-3), as AdaFactor has it, against none.
A learning rate means something else there, so LR sensitivity is not compared (arXiv 2309.14322,
appendix B), and its window is our choice: a decade up, as parameters are about 0.1 in size.

  Figure E.14  loss against learning rate. Paper: keeps the optimal learning rate in place, as
               muParam does.

Measured here at cpu scale, one seed: relative rates are best at 0.1 at all three sizes (0.16
decades between the interpolated optima of the smallest and the largest), absolute ones at 3e-2,
3e-2 and 1e-2. Best losses from the smallest size on: 2.216, 2.029, 1.959 against 2.210, 2.048,
1.993. Relative rates of 1 and above break training at every size.

Time at cpu scale: 42 runs, 2 to 4 minutes on two cores.

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
