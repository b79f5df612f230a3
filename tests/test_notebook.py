"""The package as a notebook uses it: import stability, load, look at tables, draw figures."""

import io
import math
import pathlib
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import made_up

import stability
from stability import hyper
from stability.analysis.results import LOGIT
from stability.errors import BadInput
from stability.storage import results_csv

WIDTHS = (16, 32, 64)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep')
  made_up.write_sweep(folder, widths=WIDTHS)
  return folder


@pytest.fixture(scope='module')
def experiment(workdir):
  return stability.load(str(workdir))


@pytest.fixture(scope='module')
def from_csv(workdir):
  return stability.load(str(results_csv.write_results(workdir)))


@pytest.fixture
def ax():
  figure, ax = plt.subplots()
  yield ax
  plt.close(figure)


def test_import_is_lazy(workdir):
  code = f"""
import sys
import stability
def imported(): return sorted({{'jax', 'pandas', 'matplotlib'}} & set(sys.modules))
print(stability.__version__, imported())
print(stability.Monitor.__name__, imported())
print(stability.load({str(workdir)!r}), 'jax' in sys.modules)
"""
  process = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  version, monitor, loaded = process.stdout.splitlines()
  assert version == f'{stability.__version__} []'
  assert monitor == 'Monitor []'
  assert loaded == f"<Experiment '{workdir}': 84 runs (82 done, 2 diverged)> False"


def test_names_of_the_package():
  assert {'load', 'Monitor', '__version__'} <= set(dir(stability))
  with pytest.raises(AttributeError, match="'stability' has no attribute 'laod'"):
    _ = stability.laod


def test_urls_are_refused():
  for url in ('gs://bucket/run', pathlib.Path('gs://bucket/run')):
    with pytest.raises(BadInput, match=r'gs:/.*bucket/run: must be a path'):
      stability.load(url)


def test_runs(experiment, workdir):
  runs = experiment.runs
  assert len(runs) == 84 and set(runs['model.qk_norm']) == {'layernorm', 'none'}
  assert runs['final_loss'].dtype == float and runs['parameters'].dtype == 'Int64'
  runs['final_loss'] = 0.0  # a copy
  assert (experiment.runs['final_loss'] != 0).all()
  pd.testing.assert_frame_equal(stability.load(workdir).runs, experiment.runs)


def test_curves(experiment):
  assert list(experiment.curves()) == ['run', 'step', 'loss']
  probe = 'block_0/attention_logit_max'
  curves = experiment.curves(probe)
  assert list(curves) == ['run', 'step', 'loss', probe]
  pd.testing.assert_frame_equal(experiment.curves([probe]), curves)
  first = curves[curves['run'] == experiment.runs['run'][0]]
  assert list(first['step']) == list(range(10, made_up.STEPS + 1, 10))


@pytest.mark.parametrize('probes', ['attention_logit', [LOGIT, 'logit_max']])
def test_probes_that_no_run_has_logged(experiment, probes):
  name = probes if isinstance(probes, str) else probes[-1]
  message = f'no run has logged {name!r}; the nearest names are {LOGIT}'
  with pytest.raises(BadInput, match=message):
    experiment.curves(probes)


def test_lr_sensitivity(experiment):
  table = experiment.lr_sensitivity()
  assert list(table['model.width']) == [16, 16, 32, 32, 64, 64]
  assert (table['low'] <= table['high']).all() and set(table['window']) == {'all'}
  row = table.iloc[-1]
  runs = experiment.runs[lambda runs: runs['model.width'] == row['model.width']]
  runs = runs[runs['model.qk_norm'] == row['model.qk_norm']]
  loss = np.fmin(runs['final_loss'], runs['initial_loss']).groupby(runs['learning_rate']).mean()
  assert row['lr_sensitivity'] == pytest.approx(loss.mean() - loss.min())


def test_lr_sensitivity_within_windows(experiment):
  narrow = experiment.lr_sensitivity(windows=[(1e-2, 1e-1)])
  assert set(narrow['window']) == {'0.01 to 0.1'} and set(narrow['learning_rates']) == {3}
  assert set(experiment.lr_sensitivity()['window']) == {'all'}
  with pytest.raises(BadInput, match='lower one first'):
    experiment.lr_sensitivity(windows=[(1e-1, 1e-2)])


def test_unstable_selects_runs(experiment):
  runs = experiment.runs[experiment.unstable()]
  assert set(runs['run'][runs['status'] == 'diverged']) <= set(runs['run'])
  assert len(runs) > 2 and runs['learning_rate'].min() > 1e-2


def test_claims(experiment, workdir):
  claims = experiment.claims()
  pd.testing.assert_frame_equal(claims, made_up.judged(workdir))
  assert {'holds', 'undecided'} <= set(claims['verdict'])


@pytest.mark.slow
def test_predict(experiment):
  answers = experiment.predict('4.8B', risk=0.1)
  assert set(answers['parameters']) == {12 * 24 * 4096**2} and set(answers['risk']) == {0.1}
  assert list(answers['model.qk_norm']) == ['layernorm', 'none']
  critical = answers[[f'critical_learning_rate{end}' for end in ('_low', '', '_high')]].dropna()
  assert len(critical) and critical.apply(list, axis=1).map(lambda row: row == sorted(row)).all()
  assert not answers['usable'].any() and answers['reason'].str.contains('train next').all()
  next_sizes = experiment.forecasts()['parameters'].dropna()
  assert set(experiment.predict()['parameters']) == set(next_sizes)
  with pytest.raises(BadInput, match=r'target=4\.8X: must be one of 9\.2K.* or a number'):
    experiment.predict('4.8X')
  with pytest.raises(BadInput, match='must not be below the smallest size'):
    experiment.predict(7)  # a forgotten B
  with pytest.raises(BadInput, match=r'risk=0: must be from 0\.01 to 0\.5'):
    experiment.predict('7B', risk=0)
  with pytest.raises(BadInput, match=r"risk='0\.1': must be from"):
    experiment.predict('7B', risk='0.1')
  with pytest.raises(BadInput, match=r'target=\[7\]: must be one of'):
    experiment.predict([7])


def test_forecasts(experiment):
  forecasts = experiment.forecasts('4.8B')
  assert set(forecasts['parameters'].dropna()) == {12 * 24 * 4096**2}
  critical = forecasts[forecasts['predictor'] == 'critical learning rate'].dropna(subset='value')
  assert (critical['low'] < critical['value']).all()
  assert (critical['value'] < critical['high']).all()


# Figures.

ONE_PANEL = ('lr_sensitivity', 'critical_learning_rate')
SEVERAL = {
    'loss_by_learning_rate': 2,
    'attention_logits_by_learning_rate': 2,
    'attention_logits_by_parameters': 2,
    'training_curves': 4,
}


@pytest.mark.slow
@pytest.mark.parametrize('name', ONE_PANEL)
def test_plot_in_given_axes(experiment, ax, name):
  figure = experiment.plot(name, ax=ax)
  assert figure is ax.figure and figure.axes == [ax]
  assert ax.get_xlabel() == 'parameters' and ax.get_ylabel()
  (drawn,) = experiment.plot(name).axes
  lines = [line.get_xydata().tolist() for line in ax.lines]
  assert lines and lines == [line.get_xydata().tolist() for line in drawn.lines]
  names = [text.get_text() for text in ax.get_legend().get_texts()]
  assert names[:2] == ['qk_norm=layernorm', 'qk_norm=none']
  figure.savefig(io.BytesIO())


@pytest.mark.parametrize('name', SEVERAL)
def test_plot_with_several_panels(experiment, ax, name):
  assert len(experiment.plot(name).axes) == SEVERAL[name]
  with pytest.raises(BadInput, match=f'the figure has {SEVERAL[name]} panels'):
    experiment.plot(name, ax=ax)


def test_plot_of_one_intervention_in_given_axes(tmp_path, ax):
  made_up.write_sweep(
      tmp_path, widths=(16, 32), interventions=hyper.sweep('model.qk_norm', ['none'])
  )
  experiment = stability.load(tmp_path)
  experiment.plot('loss_by_learning_rate', ax=ax)
  assert ax.get_xscale() == 'log' and ax.get_ylabel() == 'validation loss (nats)'
  assert ax.get_legend().get_title().get_text() == 'parameters'
  by_hand = experiment.runs.groupby(['model.width', 'learning_rate'])['final_loss'].mean()
  drawn = [line.get_ydata() for line in ax.lines if len(line.get_ydata()) == 7]
  np.testing.assert_allclose(drawn, [by_hand[16], by_hand[32]])


def test_plot_in_axes_without_a_grid(experiment):
  figure = plt.figure()
  experiment.plot('lr_sensitivity', ax=figure.add_axes((0.2, 0.2, 0.7, 0.7)))
  plt.close(figure)


def test_plot_in_a_part_of_a_figure(experiment):
  figure = plt.figure()
  experiment.plot('lr_sensitivity', ax=figure.subfigures(1, 2)[0].subplots())
  plt.close(figure)


def test_plot_with_ones_own_labels(experiment, ax):
  experiment.plot(
      'lr_sensitivity', ax=ax, labels={'qk_norm': 'QK norm', 'qk_norm=none': 'without', 'x': 'y'}
  )
  names = [text.get_text() for text in ax.get_legend().get_texts()]
  assert names == ['QK norm=layernorm', 'without']
  with pytest.raises(BadInput, match="labels: 'same' stands for several arms"):
    both = {'qk_norm=none': 'same', 'qk_norm=layernorm': 'same'}
    experiment.plot('loss_by_learning_rate', labels=both)


def test_level_of_intervals(experiment):
  usual, narrow = experiment.lr_sensitivity(), experiment.lr_sensitivity(interval=0.5)
  assert (usual['low'] <= narrow['low']).all() and (narrow['high'] < usual['high']).any()
  with pytest.raises(BadInput, match='interval: 95: must be a number between 0 and 1'):
    experiment.lr_sensitivity(interval=95)
  with pytest.raises(BadInput, match=r"interval: '0\.9': must be a number"):
    experiment.lr_sensitivity(interval='0.9')


def test_plot_against_a_swept_number(tmp_path, ax):
  eps = hyper.sweep('optimizer.eps', [1e-8, 1e-7, 1e-6])
  made_up.write_sweep(tmp_path, widths=(16,), interventions=eps)
  experiment = stability.load(tmp_path)
  experiment.plot('loss_by_eps', ax=ax)
  assert ax.get_xlabel() == 'eps'


def test_plot_names_are_documented(experiment):
  with pytest.raises(BadInput, match="plot 'loss': must be one of ") as error:
    experiment.plot('loss')
  names = str(error.value).split('one of ')[1].replace('; with enough sizes also', ',').split(', ')
  assert set(names) == {*ONE_PANEL, *SEVERAL, 'predicted_against_measured'}
  assert all(name in type(experiment).plot.__doc__ for name in names)


def test_plot_names_before_the_first_result(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), leave_out=tuple(range(28)))
  with pytest.raises(BadInput, match="plot 'loss': there is nothing to draw yet; with enough"):
    stability.load(tmp_path).plot('loss')


def test_plot_without_data(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,))
  with pytest.raises(BadInput, match=r"plot 'lr_sensitivity': .*two or more sizes"):
    stability.load(tmp_path).plot('lr_sensitivity')
  with pytest.raises(BadInput, match="plot 'predicted_against_measured': there are too few sizes"):
    stability.load(tmp_path).plot('predicted_against_measured')


# Other trainers' runs.


def test_csv_file(from_csv, experiment):
  pd.testing.assert_frame_equal(
      from_csv.lr_sensitivity(), experiment.lr_sensitivity(), check_dtype=False
  )
  assert list(from_csv.unstable()) == list(experiment.unstable())
  pd.testing.assert_frame_equal(from_csv.predict(2e6), experiment.predict(2e6))
  assert 'holds' in set(from_csv.claims()['verdict'])
  assert len(from_csv.plot('loss_by_learning_rate').axes) == 2


def test_merged_numbers_of_a_csv_file_are_a_warning(tmp_path):
  path = tmp_path / 'results.csv'
  path.write_text('learning_rate,final_loss,seed\n0.1,3,0\n0.10000000149011612,3,1\n')
  with pytest.warns(UserWarning, match='learning_rate: .* 0.1 = 0.10000000149011612') as caught:
    experiment = stability.load(path, initial_loss=10.0)
  assert caught[0].filename == __file__ and set(experiment.runs['learning_rate']) == {0.1}


def test_csv_file_of_another_trainer(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine.csv').write_text(
      'method,learning_rate,final_loss\na,0.01,3\na,0.1,4\nb,0.01,3\nb,0.1,\n'
  )
  experiment = stability.load('~/mine.csv', group_by=('method',), initial_loss=5)
  assert list(experiment.lr_sensitivity()['lr_sensitivity']) == [0.5, 1.0]
  assert list(experiment.unstable()) == [False, True, False, True]
  with pytest.raises(BadInput, match='a CSV file has no training curves'):
    experiment.curves()
  with pytest.raises(BadInput, match='predictions need the parameters of every finished run'):
    experiment.predict()


def frames():
  """Two runs, and a curve of each and of an unknown one."""
  runs = pd.DataFrame({'run': list('abc'), 'lr': [1e-3, 1e-2, math.nan], 'wd': [0.0, 0.1, 0.1]})
  curves = pd.DataFrame({'run': list('aabbzz'), 'step': [0, 9] * 3, 'loss': [5.0, 3.0] * 3})
  return runs, curves


def test_what_frames_lose_is_a_warning():
  with pytest.warns(UserWarning) as caught:
    experiment = stability.from_frames(*frames())
  texts = [str(warning.message) for warning in caught]
  assert any('without a learning rate' in text and 'row 2' in text for text in texts)
  assert any(text == 'curves of no run, left out: z' for text in texts)
  assert {warning.filename for warning in caught} == {__file__}
  assert set(texts) < set(experiment.notes)
  assert any(note.startswith('arms: ') for note in experiment.notes)


def test_names_of_columns_do_not_make_a_warning():
  runs, curves = frames()
  runs, curves = runs.dropna(), curves[:4].assign(left_out=1.0)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    experiment = stability.from_frames(
        runs.rename(columns={'wd': 'left out'}), curves.rename(columns={'left_out': 'left out'})
    )
  assert sum('left out' in note for note in experiment.notes) >= 2


def test_frames_with_an_index():
  runs, curves = frames()
  experiment = stability.from_frames(
      runs.dropna().set_index('run'), curves[:4].set_index(['run', 'step'])
  )
  assert list(experiment.runs['run']) == ['a', 'b']
  assert list(experiment.runs['final_loss']) == [3, 3]


def test_group_by_one_name(tmp_path):
  table = pd.DataFrame({'lr': [1e-3, 1e-2] * 2, 'final_loss': [3, 4] * 2, 'wd': [1, 1, 2, 2]})
  experiment = stability.from_frames(table, group_by='wd', initial_loss=5.0)
  assert list(experiment.lr_sensitivity()['wd']) == [1, 2]
  table.rename(columns={'lr': 'learning_rate'}).to_csv(tmp_path / 'runs.csv', index=False)
  experiment = stability.load(tmp_path / 'runs.csv', group_by='wd', initial_loss=5.0)
  assert [int(value) for value in experiment.lr_sensitivity()['wd']] == [1, 2]


def test_load_refuses(workdir, tmp_path):
  with pytest.raises(BadInput, match='group_by and initial_loss are for CSV files'):
    stability.load(workdir, initial_loss=5.0)
  with pytest.raises(BadInput, match='No such file'):
    stability.load(tmp_path / 'none')
  with pytest.raises(BadInput, match=f'^{tmp_path}: holds no sweep'):
    stability.load(tmp_path)
  with pytest.raises(BadInput, match='from_frames takes data frames'):
    stability.load(pd.DataFrame())


def test_sweep_that_has_not_started(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), leave_out=tuple(range(28)))
  experiment = stability.load(tmp_path)
  assert experiment.unstable().isna().all() and experiment.curves().empty
  assert experiment.lr_sensitivity()['lr_sensitivity'].isna().all()
  with pytest.raises(BadInput, match='no run has finished yet'):
    experiment.predict()


def test_monitor():
  monitor = stability.Monitor()
  assert monitor.observe({'step': 1, 'loss': 3.0}) == []
  (alarm,) = monitor.observe({'step': 2, 'loss': math.nan})
  assert (alarm.step, alarm.rule) == (2, 'non_finite') and alarm.message
