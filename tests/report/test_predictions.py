"""The output of launch.predict and its section of the report, compared with their tables."""

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth, made_up

from launch import predict
from launch.common import app
from stability.analysis.prediction import predict as predict_lib
from stability.report import page, predictions

WIDTHS = (16, 32, 48, 64, 128)  # the last has four times the parameters of the one before


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep')
  made_up.write_sweep(folder, widths=WIDTHS, seeds=(0,))
  return folder


@pytest.fixture(scope='module')
def made():
  return predictions.Predictions.make(*known_truth.sweep(np.random.default_rng(0)), target=2e6)


def run(capsys, *arguments):
  assert app.execute(predict.main, predict.FLAGS, ['predict', *arguments]) == 0
  return ' '.join(capsys.readouterr().out.split())


def test_program(workdir, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  printed = run(capsys, f'--workdir={workdir}', '--target=4.8B')
  assert '4.8B parameters with qk_norm=none: unstable above a learning rate of' in printed
  assert 'at 8,192 times the largest trained size.' in printed
  assert 'more than 30 times the largest trained size' in printed
  assert 'runs were correctly predicted as stable or unstable. Brier score' in printed
  written = pd.read_csv(workdir / 'report' / 'predictions.csv')
  assert set(written['parameters'].dropna()) == {12 * 24 * 4096**2}
  held_out = pd.read_csv(workdir / 'report' / 'predictions_held_out.csv')
  assert set(held_out['parameters'].dropna()) == {12 * 3 * 128**2}
  for name in ('critical_learning_rate', 'predicted_against_measured'):
    for kind in ('svg', 'png'):
      assert (workdir / 'report' / f'{name}.{kind}').stat().st_size > 0


def test_several_sweeps_with_too_few_sizes(tmp_path, capsys):
  folders = [tmp_path / name for name in 'ab']
  for folder in folders:
    made_up.write_sweep(folder, widths=(16, 64), seeds=(0,))
  printed = run(capsys, f'--workdir={folders[0]},{folders[1]}')
  assert printed.count('cannot be predicted: 3 sizes are needed, there are 2.') == 4
  assert 'No size could be held out' in printed


def test_unusable_sweep_writes_nothing(workdir, tmp_path, capsys):
  made_up.write_sweep(tmp_path / 'begun', seeds=(0,), leave_out=tuple(range(42)))
  made_up.write_sweep(tmp_path / 'done', widths=(16,), seeds=(0,))
  arguments = ['predict', f'--workdir={tmp_path}/done,{tmp_path}/begun']
  assert app.execute(predict.main, predict.FLAGS, arguments) == 2
  assert 'begun: no run has finished yet' in capsys.readouterr().err
  assert not (tmp_path / 'done' / 'report').exists()


def test_predictions_import_no_jax():
  code = 'import sys, stability.report.predictions, launch.predict; print("jax" in sys.modules)'
  process = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  assert process.stdout == 'False\n'


@pytest.mark.parametrize(
    ('target', 'parameters'),
    [('9.2K', 9216), ('4.8B', 12 * 24 * 4096**2), ('1e9', 1e9), ('250000', 250_000), (3e6, 3e6)],
)
def test_target_parameters(target, parameters):
  assert predictions.target_parameters(target) == parameters


def test_next_sizes():
  assert predictions.next_sizes(147_456) == [331_776, 589_824]
  assert predictions.next_sizes(1.3e9) == [12 * 24 * 4096**2]
  assert predictions.next_sizes(5e9) == [2e10]


def test_table_shows_the_forecasts(made):
  text = predictions.table(made)
  chosen = made.forecasts[made.forecasts['chosen']]
  assert list(text['unstable']) == [f'{100 * p:.0f}%' for p in chosen['probability']]
  logits = made.forecasts[made.forecasts['predictor'] == 'attention logit'].iloc[-1]
  shown = text['attention logit (90 % interval)'].iloc[-1]
  numbers = [float(number) for number in re.findall(r'[-.e\d]*\d', shown)]
  np.testing.assert_allclose(numbers, logits[['value', 'low', 'high']].astype(float), rtol=0.06)


def test_critical_rates_are_drawn(made):
  axis = predictions.critical_rates(made).axes[0]
  (observations,) = made.observations.values()
  measured = observations.runs.drop_duplicates('log_size')
  dots = axis.lines[0]
  np.testing.assert_allclose(dots.get_xdata(), measured['parameters'])
  np.testing.assert_allclose(dots.get_ydata(), 10 ** measured['log_critical'])
  law = axis.lines[3]
  assert law.get_xdata()[-1] == pytest.approx(2e6)
  forecasts = made.forecasts[made.forecasts['predictor'] == 'critical learning rate']
  assert law.get_ydata()[-1] == pytest.approx(forecasts['value'].iloc[0])


def test_axes_have_ticks_over_any_range(made):
  results, curves = known_truth.sweep(np.random.default_rng(0))
  far = predictions.Predictions.make(results, curves, target=1e18)
  for drawn in (made, far):
    axis = predictions.critical_rates(drawn).axes[0]
    low, high = axis.get_ylim()
    assert sum(low <= tick <= high for tick in axis.yaxis.get_majorticklocs()) > 1


def test_predicted_and_measured_are_drawn(made):
  logits, events = predictions.predicted_against_measured(made).axes
  held_out = made.held_out
  rows = held_out[held_out['predictor'] == 'attention logit']
  line, dots = logits.lines
  np.testing.assert_allclose(line.get_ydata(), rows['value'])
  np.testing.assert_allclose(dots.get_ydata(), rows['measured'])
  chosen = held_out[held_out['chosen']]
  line, dots = events.lines
  np.testing.assert_allclose(line.get_ydata(), chosen['probability'])
  np.testing.assert_array_equal(dots.get_ydata(), chosen['happened'].astype(float))


def test_accuracy_sentence(made):
  scores = predict_lib.score([made.held_out])
  row = scores.iloc[0]
  text = predictions.accuracy_sentence(scores)
  assert f'{row["accuracy"]:.0%} of {row["runs"]} runs' in text
  assert f'Brier score {row["brier"]:.3f}; {row["base_brier"]:.3f} for the base rate' in text
  assert 'attention logit 100% of 7, critical learning rate 100% of 1.' in text
  assert predictions.accuracy_sentence(predict_lib.score([made.held_out.iloc[:0]])) is None


def test_section_of_the_report(workdir):
  path = page.write_report(workdir)
  text = path.read_text()
  for words in ('Larger sizes', 'Predicted against measured', 'Critical learning rate against'):
    assert text.count(words) >= 1, words
  results, curves = known_truth.sweep(np.random.default_rng(0), sizes=known_truth.SIZES[:2])
  assert predictions.section(results, curves) is None
  results, curves = known_truth.sweep(np.random.default_rng(0))
  nothing = dataclasses.replace(results, runs=results.runs.assign(status='missing'))
  assert predictions.section(nothing, curves) is None
  assert predictions.section(results, curves) is not None
