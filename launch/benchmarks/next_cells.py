"""How soon launch.next knows the critical rates of finished sweeps, as a CSV file.

  python -m launch.benchmarks.next_cells FILE.csv RESULTS.csv [RESULTS.csv ...]

Each results.csv is replayed in every order of stability/analysis/prediction/next_replay.py, and in
the random one with SEEDS seeds. Shares are of the FLOPs of the full grid. The matrices are small:
OPENBLAS_NUM_THREADS=1 makes it faster. Columns:

  sweep, order, seed
  known_at       the share from which on all critical rates are within half a step of those of the
                 full grid; only someone who has trained it knows when. With bisection, which has
                 no intervals, also the share at which it ends
  within_at_40   share of the critical rates within half a step at 40 % of the FLOPs
  error_at_40    largest error then, in decades
  stops_at       the share at which all intervals are narrower than half a step
  stops_at_step  and narrower than a step
"""

import csv
import io
import sys
from pathlib import Path

import numpy as np

from configs import base
from stability import config as config_lib
from stability.analysis import results_table
from stability.analysis.prediction import next_replay
from stability.analysis.prediction.next_sweep import SweepState
from stability.analysis.results import Results
from stability.devices import cost
from stability.storage import files

SEEDS = 3


def main() -> None:
  """Replays the sweeps, and writes the file after each replay."""
  output, *sweeps = map(Path, sys.argv[1:])
  rows = []
  for path in sweeps:
    results = results_table.load_csv(path)
    finished = next_replay.of_results(results, flops(results))
    for order in next_replay.ORDERS:
      for seed in range(SEEDS if order == 'random' else 1):
        rows.append({'sweep': path.parent.name, 'order': order, 'seed': seed})
        rows[-1] |= measure(finished, order, seed)
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        files.write_atomic(output, text.getvalue())


def flops(results: Results) -> np.ndarray:
  """FLOPs of a run on each curve; the sizes are columns of the results."""
  found = []
  for row in SweepState(results).first_of_curves[results.sizes].to_dict('records'):
    flat = config_lib.flatten(base.get_config().to_dict()) | row
    found.append(cost.estimated_flops(config_lib.unflatten(config_lib.resolve(flat))))
  return np.array(found)


def measure(finished: next_replay.Finished, order: str, seed: int) -> dict[str, str]:
  """The cells of a replay."""
  step = finished.curves.step
  replayed = next_replay.replay(finished, order, step / 2, seed)
  at_40 = next_replay.at(replayed, 0.4)
  numbers = {
      'known_at': next_replay.known_at(replayed),
      'within_at_40': at_40['within'],
      'error_at_40': at_40['error'],
      'stops_at': next_replay.stops_at(replayed, step / 2),
      'stops_at_step': next_replay.stops_at(replayed, step),
  }
  return {name: f'{number:.3f}'.replace('nan', '') for name, number in numbers.items()}


if __name__ == '__main__':
  main()
