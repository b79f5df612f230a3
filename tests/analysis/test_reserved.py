"""Settings whose names are those of columns that the analysis adds."""

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth, made_up

import stability
from stability.analysis import comparison, lr_sensitivity, reserved, results_table, several_sweeps
from stability.analysis.prediction.targets import Target
from stability.report import answers, predictions
from stability.report.plots import style


def test_every_added_column_is_reserved(tmp_path):
  results, curves = known_truth.sweep(np.random.default_rng(0))
  made = predictions.Predictions.make(results, curves, [Target(7e9)])
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,), rates=(1e-2, 1e-1))
  both = several_sweeps.load({'a': tmp_path, 'b': tmp_path})
  (of_arm,) = made.by_arm.values()
  table = lr_sensitivity.lr_sensitivity(results)
  tables = {
      'LR sensitivity': table,
      'comparison': comparison.compare(results, table),
      'differences': several_sweeps.differences(both).table,
      'observations': of_arm.runs,
      'forecasts': made.forecasts,
      'held out': made.held_out,
      'answers': answers.answers_csv(results, made.answers),
      'figures': style.labelled(results, curves),
  }
  for name, found in tables.items():
    added = {column for column in found if '.' not in column}
    assert added - {*results.runs, 'sweep'} <= reserved.RESERVED, name


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        *('eps', 'window'),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ('low', 'loss', 'event', 'usable')),
    ],
)
def test_arms_of_a_reserved_name(tmp_path, name):
  """They are analysed as those of any other name."""
  results, _ = known_truth.sweep(np.random.default_rng(0), interventions=('none', 'l2'))
  runs = results.runs[['parameters', 'learning_rate', 'seed', 'initial_loss', 'final_loss']]
  found = []
  for column in (name, 'method'):
    runs.assign(**{column: results.runs['model.qk_norm']}).to_csv(tmp_path / 'runs.csv')
    experiment = stability.load(tmp_path / 'runs.csv', group_by=[column])
    tables = (experiment.lr_sensitivity(), experiment.predict(7e9), experiment.forecasts(7e9))
    found.append([t.rename(columns={f'config.{name}': 'method'}) for t in tables])
  for of_name, of_method in zip(*found, strict=True):
    pd.testing.assert_frame_equal(of_name, of_method)


def test_windows_of_a_reserved_name(tmp_path):
  path = tmp_path / 'runs.csv'
  path.write_text('window,learning_rate,final_loss\n64,0.01,3\n64,0.1,4\n8,0.01,3\n8,0.1,4\n')
  options = {'group_by': ['window'], 'initial_loss': 5.0}
  results = results_table.load_csv(
      path, windows=[(1e-3, 1.0)], window_where={'window': '64'}, **options
  )
  assert results.groups == ['config.window']
  windows = lr_sensitivity.lr_sensitivity(results)['window']
  assert list(windows) == ['0.001 to 1', 'all']
  results = results_table.load_csv(path, not_comparable='window', **options)
  assert set(lr_sensitivity.lr_sensitivity(results)['window']) == {'not comparable'}


def test_imported_runs(tmp_path):
  runs = pd.DataFrame({
      'config.eps': [1e-8, 1e-8, 1e-6, 1e-6],
      'learning_rate': [1e-2, 1e-1, 1e-2, 1e-1],
      'final_loss': [3.0, 4.0, 3.0, 5.0],
  })
  experiment = stability.from_frames(runs, initial_loss=6.0, workdir=tmp_path / 'runs')
  table = experiment.lr_sensitivity()
  assert dict(zip(table['config.eps'], table['lr_sensitivity'], strict=True)) == {
      1e-8: 0.5, 1e-6: 1.0
  }  # fmt: skip
  assert 'eps' not in experiment.runs


def test_free_names_are_free():
  taken = ['eps', 'config.eps', 'method']
  assert reserved.free_names(['eps', 'method'], taken) == {'eps': 'config.config.eps'}
