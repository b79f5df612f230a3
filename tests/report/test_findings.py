"""Sentences that summarise a sweep."""

import numpy as np
import pandas as pd
import pytest

from stability.analysis.results import Results
from stability.report import findings


def results_of(sensitivities, groups=('method',)):
  """Results and table with this LR sensitivity for (parameters, method)."""
  rows = [
      {
          'parameters': size,
          'method': method,
          'lr_sensitivity': value,
          'missing': 0,
          'best_loss': 3.0 - value,
          'best_learning_rate': 0.1,
      }
      for (size, method), value in sensitivities.items()
  ]
  table = pd.DataFrame(rows)
  return Results(table, list(groups), []), table


def test_two_interventions():
  given = results_of({(10, 'a'): 0.2, (10, 'b'): 0.1, (20, 'a'): 0.3, (20, 'b'): 0.6})
  assert findings.on_lr_sensitivity(*given) == (
      'LR sensitivity with method=b, compared with method=a: 0.5 times at 10 and 2.0 times at 20'
      ' parameters.'
  )
  assert findings.on_best_loss(*given) == (
      'The lowest loss is 2.400 nats: 20 parameters, method=b, learning rate 1e-1.'
  )


def test_several_interventions_are_ranked():
  given = results_of({(10, 'a'): 1.0, (20, 'a'): 0.3, (20, 'b'): 0.6, (20, 'c'): 0.1})
  assert findings.on_lr_sensitivity(*given) == (
      'LR sensitivity at 20 parameters, lowest first: method=c (0.100), method=a (0.300),'
      ' method=b (0.600).'
  )


def test_one_intervention():
  given = results_of({(10, 'a'): 0.2, (20, 'a'): 0.3}, groups=())
  assert findings.on_lr_sensitivity(*given) == (
      'LR sensitivity is 0.200 at 10 and 0.300 at 20 parameters.'
  )
  assert findings.on_best_loss(*given).endswith('20 parameters, learning rate 1e-1.')


@pytest.mark.parametrize('change', [{'missing': 1}, {'lr_sensitivity': 0.0}])
def test_no_finding_on_an_incomplete_size(change):
  results, table = results_of({(10, 'a'): 0.2, (10, 'b'): 0.1})
  table.loc[1, list(change)] = list(change.values())
  assert findings.on_lr_sensitivity(results, table) is None


def test_no_finding_without_results():
  given = results_of({(10, 'a'): np.nan})
  assert findings.on_lr_sensitivity(*given) is None
  assert findings.on_best_loss(*given) is None
