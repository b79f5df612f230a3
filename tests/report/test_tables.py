"""Results as tables of text."""

import dataclasses

import pandas as pd
import pytest
from helpers import made_up
from helpers import simulated_sweeps as sim
from helpers.simulated_sweeps import QK, RATES, WIDTHS, grid, simulate, sweep

from stability import hyper
from stability.analysis import instability
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.analysis.claims.claim import Verdict
from stability.analysis.lr_sensitivity import lr_sensitivity
from stability.report import tables

QK_NORM = 'model.qk_norm'


@pytest.fixture
def results(tmp_path):
  made_up.write_sweep(tmp_path, leave_out=(83,))
  return results_lib.load_workdir(tmp_path)


def test_sensitivities(results):
  table = lr_sensitivity(results)
  text = tables.sensitivities(results, table)
  row = table.iloc[4]
  assert text.iloc[4].to_dict() == {
      'parameters': '147K',
      'qk_norm': 'layernorm',
      'LR sensitivity': f'{row["lr_sensitivity"]:.3f}',
      '90 % interval': f'{row["low"]:.3f}-{row["high"]:.3f}',
      'ratio to baseline': 'baseline',
      'best mean loss': f'{row["best_loss"]:.3f}',
      'best LR': '1e-2',
      'LRs': '7',
      'seeds': '2',
      'missing': '0',
  }
  assert text.loc[5, ['ratio to baseline', 'missing']].to_list() == ['', '1']


def test_columns_without_content():
  results = simulate(grid(WIDTHS, RATES), sim.Outcomes(sim.flat))[0]
  assert list(tables.sensitivities(results, lr_sensitivity(results))) == [
      'parameters', 'LR sensitivity', 'best loss', 'best LR', 'LRs', 'seeds'
  ]  # fmt: skip


def test_blank_without_results(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), leave_out=tuple(range(28)))
  results = results_lib.load_workdir(tmp_path)
  text = tables.sensitivities(results, lr_sensitivity(results))
  assert text.iloc[0].to_list() == ['9.2K', 'layernorm', '', '', '', '14', '0', '0']


def test_short_names_of_interventions(tmp_path):
  made_up.write_sweep(
      tmp_path, widths=(16,), seeds=(0,), interventions=hyper.sweep('optimizer.eps', [1e-15, 1e-8])
  )
  results = results_lib.load_workdir(tmp_path)
  text = tables.sensitivities(results, lr_sensitivity(results))
  assert list(text['eps']) == ['1e-15', '1e-8']


def test_ratios():
  """With one seed, with seeds that agree, and with seeds of which one has no difference."""

  def ratios(*of_seeds):
    seeds = sweep('seed', *range(len(of_seeds)))

    def steep(c):
      return 0.1 * (of_seeds[c['seed']] if c[QK_NORM] == 'none' else 1)

    results = simulate(grid(QK[:8], seeds), sim.steep(steep))[0]
    return list(tables.sensitivities(results, lr_sensitivity(results))['ratio to baseline'])

  assert ratios(2.0) == ['baseline', '2.00']
  assert ratios(2.0, 2.1) == ['baseline', '2.05 (1.79-2.34)']
  assert ratios(0.5, 3.0) == ['baseline', '1.75 (0.00-32.64), no difference shown']


def test_nothing_trains(results):
  """Equal losses have an LR sensitivity of 0, which would look like stability."""
  runs = results.runs.copy()
  failed = runs[QK_NORM] == 'none'
  runs.loc[failed, 'final_loss'] = runs.loc[failed, 'initial_loss'] + 1
  runs.loc[failed, 'status'] = 'diverged'
  results = dataclasses.replace(results, runs=runs)
  text = tables.sensitivities(results, lr_sensitivity(results))
  nothing = text['LR sensitivity'] == tables.NOTHING_TRAINS
  assert list(nothing) == [name == 'none' for name in text['qk_norm']]


def test_runs_with_actions_are_marked(results):
  text = tables.runs(results)
  assert 'actions' not in text and 'acted on' not in tables.sensitivities(
      results, lr_sensitivity(results)
  )
  runs = results.runs.assign(actions=0)
  runs.loc[[0, 1, 30], 'actions'] = 1, 2, 1
  results = dataclasses.replace(results, runs=runs)
  assert list(tables.runs(results)['actions'][[0, 1, 2]]) == ['1', '2', '']
  marked = tables.sensitivities(results, lr_sensitivity(results))
  assert list(marked['acted on']) == ['2', '0', '1', '0', '0', '0']


def test_runs_say_whether_they_are_unstable(results):
  found = instability.unstable(results).map({True: 'yes', False: 'no', pd.NA: ''})
  text = tables.runs(results)
  assert text['unstable'].sort_index().to_list() == found.to_list()
  assert set(found) == {'yes', 'no', ''}


def test_claims():
  verdicts = [
      (registry.CLAIMS[0], Verdict('holds', 1.86, 1.82, 1.914, 42, variant='model.qk_norm=l2')),
      (registry.CLAIMS[1], Verdict('undecided', n=42, reason='3 of 42 runs missing')),
      (registry.CLAIMS[2], Verdict('undecided', reason='the sweep is about other things')),
  ]
  first, second = tables.claims(registry.table(verdicts)).to_dict('records')
  assert first == {
      'figure': '1',
      'claim': registry.CLAIMS[0].statement,
      'verdict': 'holds',
      'effect': '1.86',
      'needed': '>= 1.1',
      '90 % interval': '1.82 to 1.91',
      'runs': '42',
      'what the effect is': registry.CLAIMS[0].measure,
      'reason': '',
      'variant': 'model.qk_norm=l2',
  }
  assert (second['effect'], second['reason']) == ('', '3 of 42 runs missing')


def test_count_verdicts():
  verdicts = pd.Series(['holds', 'undecided', 'does not hold', 'holds', 'does not hold'])
  assert tables.count_verdicts(verdicts) == '2 hold, 2 do not hold, 1 undecided'
  assert tables.count_verdicts(['does not hold', 'holds']) == '1 holds, 1 does not hold'
