"""The table of losses on other text."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import made_up

from stability.analysis import results as results_lib
from stability.report import other_text
from stability.storage.other_text_csv import Row


@pytest.fixture
def results(tmp_path):
  """Two seeds at three rates, whose own losses are 2.0, 1.5 and 1.7."""
  made_up.write_sweep(
      tmp_path, widths=(16,), interventions=[{}], rates=(1e-2, 3e-2, 1e-1), seeds=(0, 1)
  )
  found = results_lib.load_workdir(tmp_path)
  losses = np.repeat([2.0, 1.5, 1.7], 2)
  return dataclasses.replace(found, runs=found.runs.assign(final_loss=losses))


def rows(results, left_out=()):
  """Losses on a text: 3.0, 3.1, 3.2, ... in the order of the runs; those of the parents are 2."""
  names = [name for name in results.runs['run'] if name not in left_out]
  return [
      Row(run=name, text='old', windows=4, loss=3 + n / 10, parent_loss=2.0, digest='x')
      for n, name in enumerate(results.runs['run'])
      if name in names
  ]


def test_means_over_seeds(results):
  (row,) = other_text.table(results, rows(results)).to_dict('records')
  assert row['text'] == 'old' and row['best LR'] == '3e-2'
  assert row['loss at best LR'] == '3.250' and row['forgotten at best LR'] == '+1.250'
  assert row['loss at 3x'] == '3.450' and row['loss at 10x'] == ''


def test_best_rate_is_that_of_all_runs(results):
  """Also of a run that diverged, which nothing can be measured on: 5.55 counts."""
  name = results.runs['run'].iloc[3]
  diverged = results.runs['run'] == name
  runs = results.runs.assign(
      final_loss=results.runs['final_loss'].mask(diverged),
      status=results.runs['status'].mask(diverged, 'diverged'),
  )
  found = other_text.table(dataclasses.replace(results, runs=runs), rows(results, [name]))
  (row,) = found.to_dict('records')
  assert row['best LR'] == '1e-1' and row['loss at best LR'] == '3.450'


def test_a_rate_that_was_measured_in_part(results):
  """The mean is over the seeds that were measured, and says so."""
  names = results.runs['run']
  (row,) = other_text.table(results, rows(results, [names.iloc[3]])).to_dict('records')
  assert row['best LR'] == '3e-2' and row['loss at best LR'] == '3.200 (1 of 2 runs)'
  assert row['forgotten at best LR'] == '+1.200' and row['loss at 3x'] == '3.450'
  (row,) = other_text.table(results, rows(results, list(names.iloc[2:4]))).to_dict('records')
  assert row['loss at best LR'] == row['forgotten at best LR'] == ''


def test_a_row_for_each_run(results):
  known = rows(results)
  without = dataclasses.replace(known[1], parent_loss=None, training_documents=1)
  first, second = other_text.of_runs([known[0], without]).to_dict('records')
  assert first == {
      'run': known[0].run, 'text': 'old', 'windows': '4', 'loss': '3.000', 'forgotten': '+1.000'
  }
  assert second['text'] == 'old (holds training text)' and second['forgotten'] == ''
  assert 'forgotten' not in other_text.of_runs([without])


def test_without_parents(results):
  known = [dataclasses.replace(row, parent_loss=None) for row in rows(results)]
  (row,) = other_text.table(results, known).to_dict('records')
  assert row['loss at best LR'] == '3.250' and 'forgotten at best LR' not in row


def test_training_text_is_marked(results):
  known = rows(results)
  marked = [dataclasses.replace(row, text='own', training_documents=2) for row in known]
  found = other_text.table(results, [*known, *marked])
  assert list(found['text']) == ['old', 'own (holds training text)']
  assert list(found['loss at best LR']) == ['3.250'] * 2


def test_nothing_measured(results):
  assert other_text.table(results, []).equals(pd.DataFrame())
