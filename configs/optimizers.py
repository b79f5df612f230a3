"""Are other optimizers than AdamW more sensitive to the learning rate? Each in its own window.

AdamW, Adam-atan2 (no eps; arXiv 2407.05872), StableAdamW (update clipping; arXiv 2304.13013),
Lion, Muon, Adafactor, SOAP and Hyperball. Each has three decades of its own: of the learning rate,
a weight moves by about a fifth with Adam (and Muon, which is scaled so), by nearly all with
Adafactor and by all with Lion, so their windows are half a decade and a decade down. LR
sensitivities compare only if the windows lie alike around each optimum; the report shows whether
they do.

Measured here at cpu scale, 9.2K and 83K, three seeds: in LR sensitivity Adam-atan2 (0.29, 0.26),
StableAdamW (0.28, 0.22) and Muon (0.29, 0.25) are about as AdamW is (0.27, 0.24); Adafactor (0.47,
0.33) and Lion (0.65, 0.34) are more sensitive. Optima lie in the middle of each window or half a
decade beside it. Muon ends lowest by far: 1.78 at 83K, AdamW 1.99, Adafactor 2.00, Lion 2.10.

SOAP and Hyperball are in the sweep but not in these numbers.

Time at cpu scale: 112 runs, of which the 84 measured took 5 to 8 minutes on two cores.

  python -m launch.sweep --config=configs/optimizers.py --workdir=runs/optimizers
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

SHIFTS = {  # of the window, in half decades
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
  """What every run of the sweep shares."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x optimizer, with its own window."""
  arms = hyper.chain([
      hyper.product([hyper.fixed('optimizer.name', name), grid.learning_rates(scale, shift)])
      for name, shift in SHIFTS.items()
  ])
  return hyper.product([grid.sizes(scale, ['9.2K', '83K'] if scale == 'cpu' else None), arms])
