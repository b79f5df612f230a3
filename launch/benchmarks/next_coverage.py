"""How often intervals of launch.next hold the critical rates of simulated sweeps, as a CSV file.

  python -m launch.benchmarks.next_coverage FILE.csv [SWEEPS]

A sweep has two arms of three sizes at seven learning rates, one seed. The truth is the critical
rate that the grid would show without noise, where it is within the grid. The matrices are small:
OPENBLAS_NUM_THREADS=1 makes it faster. Columns:

  shape          bowl, ramp (the loss rises steadily from some rate on) or cliff (at first steeply)
  noise, growth  of the simulated runs: at the best rate, and per rise above it (NOISE_GROWTH in
                 stability/analysis/prediction/loss_surface.py)
  trained        the share of the cells that are trained, drawn at random
  curves         number of curves with a critical rate within the grid
  coverage       share of them whose interval holds it
  width          median width of the intervals, decades
  known          share of the intervals that are narrower than half a step
  error          median error of the medians, decades
"""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stability.analysis.prediction import loss_surface, next_cells
from stability.analysis.prediction.next_cells import Curves
from stability.storage import files

SHAPES = ('bowl', 'ramp', 'cliff')
NOISES = ((0.01, 0.0), (0.01, 0.1), (0.004, 0.1), (0.01, 0.2))  # noise and its growth
TRAINED = (1.0, 0.6)
SWEEPS = 20

LOG_SIZES = np.log10([9_216, 36_864, 147_456])
INITIAL = np.log(256) + 0.5
CURVES = Curves(
    np.repeat([0, 1], 3),
    np.tile(LOG_SIZES, 2),
    np.full(6, INITIAL),
    np.linspace(-3, 0, 7),
    np.ones((6, 7), bool),
)


def main() -> None:
  """Simulates sweeps, and writes the file after each kind of them."""
  output, sweeps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else SWEEPS
  rows = []
  for shape in SHAPES:
    for noise, growth in NOISES:
      for trained in TRAINED:
        kind = {'shape': shape, 'noise': noise, 'growth': growth, 'trained': trained}
        rows.append(kind | measure(shape, noise, growth, trained, range(sweeps)))
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        files.write_atomic(output, text.getvalue())


def measure(
    shape: str, noise: float, growth: float, trained: float, seeds: Sequence[int]
) -> dict[str, float]:
  """The other columns, from one sweep per seed."""
  inside, held, widths, errors = [], [], [], []
  for seed in seeds:
    rng = np.random.default_rng([seed, SHAPES.index(shape)])
    log_loss_KxL = true_log_losses(shape, rng)
    (log_critical_K,), (censored_K,) = next_cells.critical_rates(np.exp(log_loss_KxL)[None], CURVES)
    rise_C = loss_surface.rises(CURVES.cells, log_loss_KxL.ravel())
    deviation_KxL = np.hypot(noise, growth * rise_C).reshape(6, 7)
    seen_KxL = log_loss_KxL + deviation_KxL * rng.standard_normal((6, 7))
    seen_C = np.minimum(np.exp(seen_KxL), INITIAL).ravel()
    which = np.sort(rng.permutation(42)[: round(42 * trained)])
    surface = loss_surface.fit(CURVES.cells[which], seen_C[which])
    found = next_cells.posterior(surface, CURVES)
    low_K, middle_K, high_K = found.critical_3xQ
    inside.append(censored_K == 0)
    held.append((low_K <= log_critical_K) & (log_critical_K <= high_K))
    widths.append(found.widths_Q)
    errors.append(np.abs(middle_K - log_critical_K))
  is_inside = np.concatenate(inside)
  width, error = np.concatenate(widths)[is_inside], np.concatenate(errors)[is_inside]
  return {
      'curves': int(is_inside.sum()),
      'coverage': round(np.concatenate(held)[is_inside].mean(), 3),
      'width': round(np.median(width), 3),
      'known': round((width <= CURVES.step / 2).mean(), 3),
      'error': round(np.median(error), 3),
  }


def true_log_losses(shape: str, rng: np.random.Generator) -> np.ndarray:
  """Log losses without noise [6, 7]: bowls around a best rate that falls with size, and what rises.

  The ranges are those of the sweeps in configs/results.
  """
  lowest, slope = rng.uniform(np.log(1.8), np.log(2.4)), rng.uniform(-0.12, -0.04)
  rows = []
  for _ in range(2):
    best, shift = rng.uniform(-2.1, -1.4), rng.uniform(0, 0.4)
    gap, steep = rng.uniform(0.4, 1.2), rng.uniform(0.15, 0.6)
    curvature, better = rng.uniform(0.02, 0.08), rng.uniform(-0.03, 0.03)
    for log_size in LOG_SIZES - LOG_SIZES[0]:
      x_L = CURVES.log_rate_L + shift * log_size - best
      bowl_L = curvature * x_L**2 * np.where(x_L < 0, 1, 0.4)
      above_L = np.maximum(x_L - gap, 0)
      rise_L = {
          'bowl': bowl_L,
          'ramp': 0.4 * bowl_L + np.minimum(steep * above_L, 0.9),
          'cliff': 0.4 * bowl_L + np.minimum(steep * above_L**0.7, 0.9),
      }[shape]
      rows.append(np.minimum(lowest + better + slope * log_size + rise_L, np.log(INITIAL)))
  return np.array(rows)


if __name__ == '__main__':
  main()
