"""From which run length and size on claims hold."""

import numpy as np
import pandas as pd
import pytest
from helpers.simulated_sweeps import Outcomes, bowl, grid, simulate, sweep, together

from stability.analysis.claims import regime_verdicts, registry
from stability.analysis.claims.claim import DOES_NOT_HOLD, HOLDS, UNDECIDED

STEPS = 'schedule.steps'
LENGTHS = together(STEPS, 'schedule.warmup_steps', (100, 5), (200, 10), (400, 20))
SWEEP = grid(
    LENGTHS,
    sweep('model.width', 16, 32),
    sweep('model.qk_norm', 'layernorm', 'none'),
    sweep('optimizer.learning_rate', 1e-3, 1e-2, 1e-1, 1.0),
)
CLAIM = 'Without qk-layernorm, LR sensitivity is higher than with it at every size.'


def loss(c):
  """qk-layernorm helps in runs of at least 200 steps, at width 32 of at least 400."""
  helps = c[STEPS] >= (200 if c['model.width'] == 16 else 400)
  return bowl(c, steep=0.1 if helps and c['model.qk_norm'] == 'layernorm' else 0.2)


def test_verdicts_of_each_regime():
  results, curves = simulate(SWEEP, Outcomes(loss))
  assert regime_verdicts.applies(results)
  judged = regime_verdicts.judge(results, curves)
  of_claim = judged[judged['claim'] == CLAIM]
  small, large = sorted(results.runs['parameters'].unique())
  found = of_claim.set_index(['steps', 'parameters'])['verdict'].to_dict()
  assert found == {
      (100, small): DOES_NOT_HOLD,
      (100, large): DOES_NOT_HOLD,
      (200, small): HOLDS,
      (200, large): DOES_NOT_HOLD,
      (400, small): HOLDS,
      (400, large): HOLDS,
  }
  row = regime_verdicts.first(of_claim).iloc[0]
  assert (row['steps'], row['parameters'], row['holds'], row['decided']) == (400, small, 3, 6)
  assert not row['last']


def test_sweeps_of_one_length_have_none():
  one = [point for point in SWEEP if point[STEPS] == 100]
  results, _ = simulate(one, Outcomes(loss))
  assert not regime_verdicts.applies(results) and regime_verdicts.probes(results) == []


def test_probes_are_those_of_a_regime():
  """Claims that do not apply to a sweep of several lengths apply in a regime."""
  results, _ = simulate(SWEEP, Outcomes(loss))
  probe = 'gradient_rms/block_0/attention/key'  # Figure E.12
  assert probe in regime_verdicts.probes(results) and probe not in registry.probes(results)


@pytest.mark.parametrize(
    ('verdicts', 'expected'),
    [
        # steps 100, 400 x parameters 10, 1000
        ([HOLDS, HOLDS, HOLDS, HOLDS], (100, 10, False)),
        ([HOLDS, UNDECIDED, HOLDS, HOLDS], (100, 10, False)),
        ([UNDECIDED, HOLDS, HOLDS, HOLDS], (400, 10, False)),  # 4,000 of work, not 100,000
        ([HOLDS, HOLDS, HOLDS, DOES_NOT_HOLD], (np.nan, np.nan, False)),
        ([HOLDS, HOLDS, DOES_NOT_HOLD, HOLDS], (100, 1000, False)),
        ([DOES_NOT_HOLD, DOES_NOT_HOLD, UNDECIDED, HOLDS], (400, 1000, True)),
        ([UNDECIDED] * 4, (np.nan, np.nan, False)),
    ],
)
def test_first_regime(verdicts, expected):
  cells = [(100, 10), (100, 1000), (400, 10), (400, 1000)]
  judged = pd.DataFrame([
      {'figure': '1', 'claim': 'x', 'steps': steps, 'parameters': size, 'verdict': verdict}
      for (steps, size), verdict in zip(cells, verdicts, strict=True)
  ])
  (row,) = regime_verdicts.first(judged).itertuples()
  np.testing.assert_equal((row.steps, row.parameters, row.last), expected)
