"""What launch.predict prints and writes, and the report's section: the numbers they are given."""

import dataclasses
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
def found():
  return predictions.Predicted.of(*known_truth.sweep(np.random.default_rng(0)), target=2e6)


def run(capsys, *arguments):
  assert app.execute(predict.main, predict.FLAGS, ['predict', *arguments]) == 0
  return ' '.join(capsys.readouterr().out.split())


def test_program(workdir, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  said = run(capsys, f'--workdir={workdir}', '--target=4.8B')
  assert '4.8B parameters with qk_norm=none: unstable from a learning rate of' in said
  assert '8,192 times the largest trained size.' in said
  assert 'more than 30 times the largest trained size' in said
  assert 'runs rightly called stable or unstable; Brier score' in said
  written = pd.read_csv(workdir / 'report' / 'predictions.csv')
  assert set(written['parameters'].dropna()) == {12 * 24 * 4096**2}
  held_out = pd.read_csv(workdir / 'report' / 'predictions_held_out.csv')
  assert set(held_out['parameters'].dropna()) == {12 * 3 * 128**2}
  for name in ('critical_learning_rate', 'predicted_against_measured'):
    for kind in ('svg', 'png'):
      assert (workdir / 'report' / f'{name}.{kind}').stat().st_size > 0


def test_program_on_several_sweeps_too_small_to_hold_one_out(tmp_path, capsys):
  folders = [tmp_path / name for name in 'ab']
  for folder in folders:
    made_up.write_sweep(folder, widths=(16, 64), seeds=(0,))
  said = run(capsys, f'--workdir={folders[0]},{folders[1]}')
  assert said.count('cannot be predicted: 3 sizes are needed, there are 2.') == 4
  assert 'No size could be held out' in said


def test_nothing_is_written_if_any_sweep_cannot_be_used(workdir, tmp_path, capsys):
  made_up.write_sweep(tmp_path / 'begun', seeds=(0,), leave_out=tuple(range(42)))
  made_up.write_sweep(tmp_path / 'done', widths=(16,), seeds=(0,))
  arguments = ['predict', f'--workdir={tmp_path}/done,{tmp_path}/begun']
  assert app.execute(predict.main, predict.FLAGS, arguments) == 2
  assert 'begun: no run has finished yet' in capsys.readouterr().err
  assert not (tmp_path / 'done' / 'report').exists()


def test_analysis_of_predictions_imports_no_jax():
  code = 'import sys, stability.report.predictions, launch.predict; print("jax" in sys.modules)'
  said = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  assert said.stdout == 'False\n'


@pytest.mark.parametrize(
    ('target', 'parameters'),
    [('9.2K', 9216), ('4.8B', 12 * 24 * 4096**2), ('1e9', 1e9), ('250000', 250_000)],
)
def test_targets(target, parameters):
  assert predict.parameters(target) == parameters


def test_the_next_sizes():
  assert predictions.next_sizes(147_456) == [331_776, 589_824]
  assert predictions.next_sizes(1.3e9) == [12 * 24 * 4096**2]
  assert predictions.next_sizes(5e9) == [2e10]


def test_the_table_says_what_was_predicted(found):
  text = predictions.table(found)
  chosen = found.said[found.said['chosen']]
  assert list(text['unstable']) == [f'{100 * p:.0f}%' for p in chosen['probability']]
  logits = found.said[found.said['predictor'] == 'attention logit'].iloc[-1]
  shown = text['attention logit (90 %)'].iloc[-1].replace('(', '').replace(')', '').split(' ')
  numbers = [float(shown[0]), float(shown[1]), float(shown[3])]
  np.testing.assert_allclose(numbers, logits[['value', 'low', 'high']].astype(float), rtol=0.06)


def test_the_critical_rates_and_their_law_are_drawn(found):
  axis = predictions.critical_rates(found).axes[0]
  (seen,) = found.seen.values()
  measured = seen.runs.drop_duplicates('size')
  dots = axis.lines[0]
  np.testing.assert_allclose(dots.get_xdata(), measured['parameters'])
  np.testing.assert_allclose(dots.get_ydata(), 10 ** measured['critical'])
  law = axis.lines[3]
  assert law.get_xdata()[-1] == pytest.approx(2e6)
  said = found.said[found.said['predictor'] == 'critical learning rate'].iloc[0]
  assert law.get_ydata()[-1] == pytest.approx(said['value'])


def test_axes_have_ticks_however_far_it_goes(found):
  results, curves = known_truth.sweep(np.random.default_rng(0))
  far = predictions.Predicted.of(results, curves, target=1e18)
  for drawn in (found, far):
    axis = predictions.critical_rates(drawn).axes[0]
    low, high = axis.get_ylim()
    assert sum(low <= tick <= high for tick in axis.yaxis.get_majorticklocs()) > 1


def test_measured_and_predicted_are_drawn_over_each_other(found):
  logits, events = predictions.predicted_against_measured(found).axes
  held_out = found.held_out
  rows = held_out[held_out['predictor'] == 'attention logit']
  line, dots = logits.lines
  np.testing.assert_allclose(line.get_ydata(), rows['value'])
  np.testing.assert_allclose(dots.get_ydata(), rows['measured'])
  chosen = held_out[held_out['chosen']]
  line, dots = events.lines
  np.testing.assert_allclose(line.get_ydata(), chosen['probability'])
  np.testing.assert_array_equal(dots.get_ydata(), chosen['happened'].astype(float))


def test_the_verdict_says_the_scores(found):
  scores = predict_lib.score([found.held_out])
  row = scores.iloc[0]
  said = predictions.verdict(scores)
  assert f'{row["accuracy"]:.0%} of {row["runs"]} runs' in said
  assert f'Brier score {row["brier"]:.3f}, of the base rate {row["base_brier"]:.3f}' in said
  assert 'attention logit in 100% of 7' in said
  assert 'critical learning rate in 100% of 1' in said
  assert predictions.verdict(predict_lib.score([found.held_out.iloc[:0]])) is None


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
