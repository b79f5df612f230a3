"""Are other optimizers than AdamW more sensitive to the learning rate? Each in its own window.

AdamW, Adam-atan2 (no eps; arXiv 2407.05872), StableAdamW (update clipping; arXiv 2304.13013),
Lion, Muon, Adafactor, SOAP and Hyperball. Each has its own three decades of learning rates, since
the RMS of updates differs: about a fifth of the learning rate with Adam (and Muon, which is scaled
to match), nearly all of it with Adafactor, and all of it with Lion. The window of Adafactor is
therefore half a decade lower and that of Lion a decade lower. LR sensitivities are comparable only
if each optimum has the same position in its window; the report shows whether it has.

Measured here at cpu scale, 9.2K and 83K, three seeds: Adam-atan2 (0.29, 0.26), StableAdamW (0.28,
0.22) and Muon (0.29, 0.25) have about the LR sensitivity of AdamW (0.27, 0.24); Adafactor (0.46,
0.34) and Lion (0.65, 0.34) are more sensitive. Optima are in the middle of each window or half a
decade from it. Muon has by far the lowest loss at 83K: 1.78, against 1.99 with AdamW, 2.01 with
Adafactor and 2.10 with Lion. SOAP and Hyperball were not measured. (Adafactor on another machine
than the others, since it is factored at all sizes.) Schedules end at 1e-5 in all windows.

Time at cpu scale: 112 runs; the 84 that were measured took 5 to 8 minutes on two cores.

  python -m launch.sweep --config=configs/optimizers.py --workdir=runs/optimizers
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

SHIFTS = {  # shift of each window, in half decades
    'adamw': 0,
    'adam_atan2': 0,
    'stable_adamw': 0,
    'lion': -2,
    'muon': 0,
    'adafactor': -1,
    'soap': 0,
    'hyperball': 0,
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x optimizer x learning rate, in the window of the optimizer."""
  arms = hyper.chain([
      hyper.product([hyper.fixed('optimizer.name', name), grid.learning_rates(scale, shift)])
      for name, shift in SHIFTS.items()
  ])
  return hyper.product([grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None), arms])
