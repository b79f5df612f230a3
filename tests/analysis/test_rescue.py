"""How many unstable runs a policy rescues, on results worked out by hand."""

import dataclasses

import pandas as pd
import pytest

from stability.analysis import rescue
from stability.analysis.results import Results
from stability.report import tables

INITIAL = 6.0


def results_of(*runs):
  """Results with two runs for each (width, rate, seed, loss without, loss with, ...status)."""
  rows = [
      {
          'run': f'run {number} {arm}',
          'status': (status or ['done'])[0] if arm == 'policy' else 'done',
          'parameters': 12 * width**2,
          'model.width': width,
          'control.on_alarm': arm,
          'learning_rate': rate,
          'seed': seed,
          'initial_loss': INITIAL,
          'final_loss': loss,
      }
      for number, (width, rate, seed, *losses_and_status) in enumerate(runs)
      for status in [losses_and_status[2:]]
      for arm, loss in zip(('none', 'policy'), losses_and_status[:2], strict=True)
  ]
  return Results(pd.DataFrame(rows), ['control.on_alarm'], ['model.width'])


# The best loss of width 16 is 2.0 (at 0.1, the mean of 1.9 and 2.1): up to 2.04 is rescued.
RUNS = (
    (16, 0.1, 0, 1.9, 1.9),
    (16, 0.1, 1, 2.1, 2.2),  # harmed: 4.8 % above the run without the policy
    (16, 0.3, 0, 3.0, 2.03),  # rescued
    (16, 0.3, 1, 3.0, 2.05),  # not rescued: just above 2.04
    (16, 1.0, 0, 5.0, 1.5),
    (16, 1.0, 1, 2.06, 9.0),  # within the margin, not doomed; diverges with the policy
    (32, 0.1, 0, 1.0, 1.01),
    (32, 0.3, 0, 3.0, 1.03),  # within 2 % of the best of the other size, not of its own
)


def test_rescued_and_harmed():
  pairs = rescue.pairs(results_of(*RUNS))
  assert list(pairs['doomed']) == [False, False, True, True, True, False, False, True]
  assert list(pairs['rescued']) == [False, False, True, False, True, False, False, False]
  assert list(pairs['harmed']) == [False, True, False, False, False, True, False, False]
  assert list(pairs['best_loss']) == pytest.approx([2.0] * 6 + [1.0] * 2)


def test_counts_by_size():
  results = results_of(*RUNS)
  found = rescue.by_size(rescue.pairs(results), results)
  assert found.to_dict('list') == {
      'model.width': [16, 32],
      'parameters': [3072, 12288],
      'doomed': [3, 1],
      'rescued': [2, 0],
      'others': [3, 1],
      'harmed': [2, 0],
  }


def test_pair_needs_two_runs_that_count():
  assert len(rescue.pairs(results_of(*RUNS[:6], (*RUNS[6], 'failed'), RUNS[7]))) == 7


def test_best_loss_is_per_intervention():
  results = results_of((16, 0.1, 0, 2.0, 2.0), (16, 0.3, 0, 4.0, 2.01))
  other = results.runs.assign(final_loss=results.runs['final_loss'] - 0.5)
  both = pd.concat([results.runs.assign(qk='none'), other.assign(qk='layernorm')])
  found = rescue.pairs(
      dataclasses.replace(
          results, runs=both.reset_index(drop=True), groups=['qk', 'control.on_alarm']
      )
  )
  assert list(found['best_loss']) == [2.0, 2.0, 1.5, 1.5]
  assert list(found['rescued']) == [False, True, False, True]


@pytest.mark.parametrize('arm', ['none', 'policy'])
def test_no_pairs_without_both_arms(arm):
  results = results_of(*RUNS)
  one = results.runs[results.runs['control.on_alarm'] == arm]
  assert rescue.pairs(dataclasses.replace(results, runs=one)).empty
  assert rescue.pairs(dataclasses.replace(results, groups=[])).empty
  assert tables.rescues(dataclasses.replace(results, groups=[])).empty
  assert tables.rescue_sentence(dataclasses.replace(results, groups=[])) is None


def test_table_and_sentence():
  results = results_of(*RUNS)
  assert tables.rescues(results).to_numpy().tolist() == [
      ['3.1K', '3', '2', '3', '2'], ['12K', '1', '0', '1', '0'],
  ]  # fmt: skip
  sentence = '2 of 4 runs (50%) that are unstable without it end within 2% of the best loss'
  assert sentence in tables.rescue_sentence(results)
