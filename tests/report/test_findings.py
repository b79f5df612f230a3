"""Sentences that summarise a sweep."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import simulated_sweeps as sim
from helpers.simulated_sweeps import QK, RATES, WIDTHS, grid, simulate, sweep

from stability.analysis import several_sweeps
from stability.analysis.lr_sensitivity import lr_sensitivity
from stability.analysis.results import Results
from stability.report import findings

QK_NORM = 'model.qk_norm'
THREE = grid(WIDTHS[:2], sweep(QK_NORM, 'layernorm', 'none', 'l2'), RATES)


def with_qk_norm(of_none, of_l2=1.0):
  """Losses whose LR sensitivity is this many times that of layernorm."""
  times = {'layernorm': lambda c: 1.0, 'none': of_none, 'l2': lambda c: of_l2}
  return sim.steep(lambda c: 0.1 * times[c[QK_NORM]](c))


def said(points, outcomes, **change):
  results = dataclasses.replace(simulate(points, outcomes)[0], **change)
  return findings.on_lr_sensitivity(results, lr_sensitivity(results))


def test_two_interventions():
  half_to_twice = with_qk_norm(lambda c: {1: 0.5, 4: 1.5, 16: 2.0}[sim.size(c)])
  assert said(QK, half_to_twice) == (
      'LR sensitivity with qk_norm=none, compared with the baseline qk_norm=layernorm: 0.50 times'
      ' at 9.2K, 1.50 times at 37K and 2.00 times at 147K parameters.'
  )


def test_intervals():
  """Over seeds, at the chosen level; one that includes 1 shows no difference."""
  points = grid(QK[:8], sweep('seed', 0, 1))
  seeds = {0: 2.0, 1: 2.1}
  assert said(points, with_qk_norm(lambda c: seeds[c['seed']])) == (
      'LR sensitivity with qk_norm=none, compared with the baseline qk_norm=layernorm'
      ' (90 % intervals): 2.05 times (1.79 to 2.34) at 9.2K parameters.'
  )
  seeds = {0: 0.5, 1: 3.0}
  sentence = said(points, with_qk_norm(lambda c: seeds[c['seed']]), interval=0.2)
  assert '(20 % intervals): 1.75 times (1.75 to 1.75) at 9.2K' in sentence
  sentence = said(points, with_qk_norm(lambda c: seeds[c['seed']]))
  assert '1.75 times (0.00 to 32.64, no difference shown) at 9.2K' in sentence


def test_several_interventions_at_the_largest_size():
  assert said(THREE, with_qk_norm(sim.size, of_l2=0.5)) == (
      'LR sensitivity at 37K parameters, compared with the baseline qk_norm=layernorm: qk_norm=l2'
      ' 0.50 times; qk_norm=none 4.00 times.'
  )


def test_one_intervention():
  results = simulate(grid(WIDTHS[:2], RATES), sim.steep(lambda c: 0.3))[0]
  table = lr_sensitivity(results)
  first, second = table['lr_sensitivity']
  assert findings.on_lr_sensitivity(results, table) == (
      f'LR sensitivity is {first:.3f} at 9.2K and {second:.3f} at 37K parameters.'
  )
  assert findings.on_best_loss(results, table) == (
      'The lowest loss is 2.000 nats: 9.2K parameters, learning rate 1e-2.'
  )


def test_several_seeds_have_a_mean_loss():
  results = simulate(grid(RATES, sweep('seed', 0, 1)), sim.best(lambda c: 2 + 0.1 * c['seed']))[0]
  sentence = findings.on_best_loss(results, lr_sensitivity(results))
  assert sentence.startswith('The lowest mean loss over 2 seeds is 2.050 nats: ')


@pytest.mark.parametrize(
    'at_best, said', [(1, 'lowest loss'), (2, 'lowest mean loss over 2 seeds')]
)
def test_seeds_are_those_of_the_best_rate(at_best, said):
  """Other learning rates and other sizes have more seeds."""
  points = grid(WIDTHS[:2], RATES, sweep('seed', 0, 1, 2))
  loss = sim.best(lambda c: 2 + 0.1 * sim.size(c))
  results = simulate(points, loss)[0]
  best = results.runs['learning_rate'].eq(1e-2) & results.runs['parameters'].eq(9216)
  results = dataclasses.replace(
      results, runs=results.runs[~best | results.runs['seed'].lt(at_best)]
  )
  sentence = findings.on_best_loss(results, lr_sensitivity(results))
  assert sentence.startswith(f'The {said} is 2.100 nats: 9.2K parameters')


def unstable(points, loss):
  return findings.on_instability(simulate(points, sim.Outcomes(loss))[0])


def test_instability():
  assert unstable(QK, sim.flat) == 'None of 24 runs is unstable.'
  assert unstable(QK, sim.cliff_without_qk_norm) == (
      '3 of 24 runs are unstable; the lowest unstable learning rate at 147K parameters is 1 with'
      ' qk_norm=none; qk_norm=layernorm has none.'
  )
  assert unstable(grid(WIDTHS[:1], RATES), sim.cliff) == (
      '1 of 4 runs is unstable; the lowest unstable learning rate at 9.2K parameters is 1.'
  )
  small = unstable(QK, lambda c: sim.cliff(c) if sim.size(c) == 1 else sim.flat(c))
  assert small == '2 of 24 runs are unstable, none of them at 147K parameters.'
  arms = sweep('optimizer.eps', *10.0 ** -np.arange(5, 10))
  many = unstable(grid(WIDTHS[:1], arms, RATES), sim.cliff)
  assert many.endswith(' at 9.2K parameters is 1 in all 5 arms.')
  assert unstable(grid(WIDTHS, RATES), lambda c: np.nan) is None


@pytest.mark.parametrize(
    'change, said',
    [
        ({}, 'All 8 runs diverged'),
        ({0: 'missing'}, 'All 7 runs that count diverged'),
        ({0: 'done'}, 'All 8 runs diverged or learned nothing'),
    ],
)
def test_nothing_trains(change, said):
  results = simulate(QK[:8], sim.Outcomes(lambda c: np.nan))[0]
  status = results.runs['status'].where(~results.runs.index.isin(change), change.get(0))
  results = dataclasses.replace(results, runs=results.runs.assign(status=status))
  if 'done' in change.values():
    results.runs.loc[0, 'final_loss'] = 6.0
  sentence = findings.on_best_loss(results, lr_sensitivity(results))
  assert sentence == f'{said}; no learning rate trains.'


@pytest.mark.parametrize('status', ['missing', 'failed'])
def test_no_finding_on_an_incomplete_size(status):
  results = simulate(QK[:8], with_qk_norm(lambda c: 2.0))[0]
  runs = results.runs.copy()
  runs.loc[0, ['status', 'final_loss']] = status, np.nan
  results = dataclasses.replace(results, runs=runs)
  assert findings.on_lr_sensitivity(results, lr_sensitivity(results)) is None


def test_no_finding_without_results():
  results = simulate(QK, sim.Outcomes(sim.flat))[0]
  results = dataclasses.replace(results, runs=results.runs.assign(status='missing'))
  table = lr_sensitivity(results)
  assert findings.on_lr_sensitivity(results, table) is None
  assert findings.on_best_loss(results, table) is None


def test_sizes_that_are_unknown():
  """Differences and the best loss are stated without the size."""
  part = simulate(grid(WIDTHS[:1], RATES), sim.steep(lambda c: 0.1))[0].runs
  runs = pd.concat([part.assign(sweep=name) for name in 'ab'], ignore_index=True)
  runs = runs.assign(parameters=pd.Series(pd.NA, runs.index, 'Int64'))
  results = Results(runs, ['sweep'], [], sweeps=('a', 'b'))
  (sentence,) = findings.on_differences(results, several_sweeps.differences(results))
  assert sentence.startswith('sweep=b, minus a, over 4 pairs of runs: best loss +0.000,')
  assert 'nats: sweep=a, learning rate' in findings.on_best_loss(results, lr_sensitivity(results))


@pytest.mark.parametrize('by, said', [('none', ' A person has acted on 2 runs.'), ('policy', '')])
def test_steered_runs_are_named(by, said):
  results = simulate(QK, sim.Outcomes(sim.flat))[0]
  actions = [1, 0, 3, *[np.nan] * (len(QK) - 3)]
  runs = results.runs.assign(**{'actions': actions, 'control.on_alarm': by})
  assert findings.description(dataclasses.replace(results, runs=runs)).endswith(f'1 seed.{said}')
