"""Replays of finished sweeps: what each order knows, and at which cost."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.benchmarks import next_cells as benchmark
from stability.analysis import results_table
from stability.analysis.prediction import next_replay
from stability.analysis.prediction.next_cells import Curves
from stability.analysis.prediction.next_replay import Finished
from stability.errors import BadInput

ROOT = Path(__file__).parents[3]
RATES = np.linspace(-3, 0, 7)
SIZES = np.array([4.0, 4.6, 5.2])


def finished() -> Finished:
  """One arm: bowls that move with size, and a cliff near the critical rate."""
  offset = RATES + 1.5 + 0.4 * (SIZES[:, None] - 4)
  loss = 2.2 - 0.1 * SIZES[:, None] + 0.25 * offset**2 + 1.5 / (1 + np.exp(-12 * (offset - 0.6)))
  curves = Curves(np.zeros(3, int), SIZES, np.full(3, 5.5), RATES, np.ones((3, 7), bool))
  return Finished(curves, loss, 10**SIZES)


def test_bisection_finds_what_the_full_grid_says():
  replayed = next_replay.replay(finished(), 'bisection', 0.25)
  assert len(replayed) < 21 and replayed['within'].iloc[-1] == 1
  assert replayed['error'].iloc[-1] == pytest.approx(0, abs=1e-9)
  assert replayed['flops'].is_monotonic_increasing and replayed['flops'].iloc[-1] < 1
  assert next_replay.known_at(replayed) == replayed['flops'].iloc[-1]  # the largest is last


@pytest.mark.parametrize('order', ['next', 'random'])
def test_model_ends_at_the_full_grid(order):
  replayed = next_replay.replay(finished(), order, 0.25)
  assert replayed['flops'].iloc[-1] <= 1 + 1e-9
  assert replayed['error'].iloc[-1] < 0.1
  assert replayed['widest'].iloc[-1] < replayed['widest'].iloc[3]
  if order == 'next':
    assert next_replay.known_at(replayed) < 0.5


def test_shares_of_flops():
  replayed = pd.DataFrame({
      'flops': [0.1, 0.2, 0.3, 0.4],
      'within': [1.0, 0.5, 1.0, 1.0],
      'error': [0.1, 0.4, 0.2, 0.1],
      'widest': [2.0, 0.5, 0.2, 0.3],
  })
  assert next_replay.known_at(replayed) == 0.3
  assert np.isnan(next_replay.known_at(replayed.iloc[:2]))
  assert next_replay.stops_at(replayed, 0.5) == 0.2
  assert np.isnan(next_replay.stops_at(replayed, 0.1))
  assert next_replay.at(replayed, 0.35)['error'] == 0.2


def test_unfinished_sweep(tmp_path):
  path = tmp_path / 'results.csv'
  path.write_text(
      'parameters,learning_rate,initial_loss,final_loss,status\n'
      '9216,0.01,5.5,2.0,done\n9216,0.1,5.5,,failed\n'
  )
  with pytest.raises(BadInput, match='not finished'):
    next_replay.of_results(results_table.load_csv(path), np.ones(1))


@pytest.mark.slow
def test_half_of_the_flops_are_saved():
  """On a finished sweep of two arms: all critical rates within half a step at 40 % of the FLOPs."""
  results = results_table.load_csv(ROOT / 'configs/results/night_qk_layernorm/results.csv')
  sweep = next_replay.of_results(results, benchmark.flops(results))
  found = {order: benchmark.measure(sweep, order, 0) for order in next_replay.ORDERS}
  assert float(found['next']['known_at']) <= 0.4
  assert float(found['next']['within_at_40']) == 1
  assert float(found['next']['known_at']) < float(found['bisection']['known_at'])
