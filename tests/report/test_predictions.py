"""The output of launch.predict and its section of the report, compared with their tables."""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import known_truth, made_up

import stability
from launch import predict
from launch.common import app
from stability.analysis.prediction import predict as predict_lib
from stability.analysis.prediction import rates, targets
from stability.analysis.prediction.predictor import InsufficientData
from stability.analysis.prediction.targets import Target
from stability.report import labels, page, predictions
from stability.report.plots import style

WIDTHS = (16, 32, 48, 64, 128)  # the last has four times the parameters of the one before


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep')
  made_up.write_sweep(folder, widths=WIDTHS, seeds=(0,))
  return folder


@pytest.fixture(scope='module')
def made():
  results, curves = known_truth.sweep(np.random.default_rng(0))
  return predictions.Predictions.make(results, curves, [Target(2e6)])


def legend_texts(figure):
  return [text.get_text() for text in figure.legends[0].get_texts()]


def run(capsys, *arguments):
  assert app.execute(predict.main, predict.FLAGS, ['predict', *arguments]) == 0
  return ' '.join(capsys.readouterr().out.split())


@pytest.fixture(autouse=True)
def without_other_figures(monkeypatch):
  """Pages without the figures of other parts, which are slow."""
  for name in ('loss_plots', 'curve_plots', 'probe_plots'):
    monkeypatch.setattr(page.selection, name, lambda *_: [])


@pytest.mark.slow
def test_program(workdir, capsys):
  printed = run(capsys, f'--workdir={workdir}', '--target=151M')
  assert printed.startswith('151M parameters with qk_norm=layernorm: ')
  assert ', by extrapolation beyond the tested range.' in printed
  assert 'This is 256 times the largest trained size, 590K.' in printed
  assert 'qk_norm=layernorm helps: at 590K, its critical learning rate is' in printed
  assert 'More than 64 times the largest trained size' in printed
  assert 'runs were correctly predicted as stable or unstable. Brier score' in printed
  written = pd.read_csv(workdir / 'report' / 'predictions.csv')
  assert set(written['parameters'].dropna()) == {12 * 12 * 1024**2}
  held_out = pd.read_csv(workdir / 'report' / 'predictions_held_out.csv')
  assert set(held_out['parameters'].dropna()) == {12 * 3 * 128**2}
  for name in ('critical_learning_rate', 'predicted_against_measured'):
    for kind in ('svg', 'png'):
      assert (workdir / 'report' / f'{name}.{kind}').stat().st_size > 0
  answers = pd.read_csv(workdir / 'report' / 'answers.csv')
  rates = [f'{name}_learning_rate{end}' for name in ('best', 'safe', 'critical')
           for end in ('', '_low', '_high')]  # fmt: skip
  keys = ['model.qk_norm', 'parameters', 'times', 'risk']
  assert list(answers) == [*keys, *rates, 'usable', 'reason']
  assert set(answers['model.qk_norm']) == {'layernorm', 'none'}
  assert answers['usable'].all() and answers['reason'].isna().all()


@pytest.mark.slow
def test_fit_up_to_a_size(workdir, capsys, monkeypatch):
  """The figure has lines from the small sizes, and points and dotted lines at the larger ones."""
  drawn = []
  critical_rates = predictions.critical_rates
  monkeypatch.setattr(
      predictions, 'critical_rates', lambda found: drawn.append(found) or critical_rates(found)
  )
  run(capsys, f'--workdir={workdir}', '--fit_up_to=83K', '--target=2.4M')
  (found,) = drawn
  sizes = [12 * 3 * width**2 for width in WIDTHS]
  assert 10**found.surface.log_sizes == pytest.approx(sizes[:3])
  assert [target.parameters for target in found.targets] == [*sizes[3:], 12 * 3 * 256**2]
  assert all(list(arm.sizes) == sizes for arm in found.by_arm.values())
  for kind in ('svg', 'png'):
    assert (workdir / 'report' / f'forecast_test.{kind}').stat().st_size > 0
  scores = pd.read_csv(workdir / 'report' / 'forecast_scores.csv')
  assert set(scores['parameters']) == set(sizes[3:])


@pytest.mark.slow
def test_targets_are_kept(tmp_path, capsys, without_figures):
  made_up.write_sweep(tmp_path, widths=WIDTHS[:3], rates=(1e-3, 1e-2, 1e-1, 1.0), seeds=(0,))
  assert '147K parameters with' in run(capsys, f'--workdir={tmp_path}')  # the next named sizes
  assert not (tmp_path / 'targets.json').exists()
  run(capsys, f'--workdir={tmp_path}', '--target=1.5M,3M', '--risk=0.1')
  printed = run(capsys, f'--workdir={tmp_path}', '--target=9.4M')
  assert '9.4M parameters with' in printed and '3M parameters with' not in printed
  kept = [(1.5e6, 0.1), (3e6, 0.1), (12 * 3 * 512**2, 0.05)]

  def answered():
    answers = pd.read_csv(tmp_path / 'report' / 'answers.csv')
    targets = answers[['parameters', 'risk']].drop_duplicates()
    return list(targets.itertuples(index=False, name=None))

  assert answered() == kept
  shutil.rmtree(tmp_path / 'report')
  text = page.write_report(tmp_path).read_text()
  assert answered() == kept
  for size in ('1.5M', '3M', '9.4M'):  # once, at the top
    answer = f'{size} parameters with qk_norm=none'
    assert text.count(answer) == 1 and text.index(answer) < text.index('</header>')
  printed = run(capsys, f'--workdir={tmp_path}', '--risk=0.2')
  assert all(f'{size} parameters with' in printed for size in ('1.5M', '3M', '9.4M'))
  assert {risk for _, risk in answered()} == {0.2}


@pytest.mark.slow
def test_a_kept_target_keeps_its_risk(tmp_path, capsys):
  made_up.write_sweep(tmp_path, widths=WIDTHS[:3], rates=(1e-3, 1e-2, 1e-1, 1.0), seeds=(0,))
  run(capsys, f'--workdir={tmp_path}', '--target=1.5M,3M', '--risk=0.2')
  printed = run(capsys, f'--workdir={tmp_path}', '--target=1.5M,4M')
  assert targets.load(tmp_path) == [Target(1.5e6, 0.2), Target(3e6, 0.2), Target(4e6, 0.05)]
  assert 'at most 20 % risk' in printed and 'at most 5 % risk' in printed


@pytest.mark.parametrize('widths', [(16, 32, 64, 128), (16,)])
def test_one_learning_rate_is_too_few(widths, tmp_path, capsys, without_figures):
  """No run can be compared with another: an error of the user, and no section of the report."""
  made_up.write_sweep(tmp_path, widths=widths, rates=(1e-2,), seeds=(0,))
  for arguments in ((), ('--target=40M',), ('--fit_up_to=147K', '--target=40M')):
    program = ['predict', f'--workdir={tmp_path}', *arguments]
    assert app.execute(predict.main, predict.FLAGS, program) == 2
  assert 'no size has runs at two learning rates' in capsys.readouterr().err
  (tmp_path / 'targets.json').write_text('{"targets": [{"parameters": 4e7, "risk": 0.05}]}')
  assert 'usable prediction' not in page.write_report(tmp_path).read_text()


@pytest.mark.parametrize('columns', [80, 110])
def test_lines_fit_the_terminal(columns, made, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(predict, 'PIPED_WIDTH', columns)
  monkeypatch.setattr(predict, '_predictions', lambda *_: made)
  monkeypatch.setattr(page, 'write_report', lambda *_, **__: tmp_path / 'index.html')
  assert app.execute(predict.main, predict.FLAGS, ['predict', f'--workdir={tmp_path}']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert max(len(line) for line in lines if not line.startswith('Report: ')) <= columns
  is_wide = columns > 100
  assert max(line.count('(90 % interval)') for line in lines) == 1 + is_wide  # logits, gradients
  assert any('validation' in line for line in lines) == is_wide  # the table of scores
  row = next(line.split() for line in lines if line.split()[1:3] == ['2M', '1e-3'])
  assert row[3] == '0%' and '100' in row  # the last step, at which the logit is read


@pytest.mark.slow
def test_several_sweeps_with_too_few_sizes(tmp_path, capsys, without_figures):
  folders = [tmp_path / name for name in 'ab']
  for folder in folders:
    made_up.write_sweep(folder, widths=(16, 64), seeds=(0,))
  printed = run(capsys, f'--workdir={folders[0]},{folders[1]}')
  assert printed.startswith(f'{folders[0]}: 332K parameters with')
  assert printed.count('no usable prediction. 3 sizes are needed, there are 2. Train next: ') == 8
  assert 'No size could be held out' in printed


@pytest.mark.slow
def test_next_sizes_are_those_after_the_largest_finished_one(tmp_path, capsys, without_figures):
  """The program, the page and the notebook answer for the same sizes."""
  # The largest size has not been trained yet.
  names = made_up.write_sweep(tmp_path / 'all', seeds=(0,))
  third = len(names) // 3
  made_up.write_sweep(tmp_path / 'some', seeds=(0,), leave_out=tuple(range(2 * third, 3 * third)))
  printed = run(capsys, f'--workdir={tmp_path / "some"}', '--risk=0.1')
  assert printed.startswith('83K parameters with') and '147K parameters with' in printed
  found = stability.load(tmp_path / 'some').predict(risk=0.1)
  assert set(found['parameters']) == {82_944, 147_456} and set(found['risk']) == {0.1}
  # As nobody asked for a target, the answers are beneath the figures, as on launch.report's page.
  text = (tmp_path / 'some' / 'report' / 'index.html').read_text()
  assert '</header>' in text.split('83K parameters with')[0]
  assert pd.read_csv(tmp_path / 'some' / 'report' / 'answers.csv')['risk'].eq(0.1).all()


def test_runs_that_did_not_finish_need_no_parameters():
  results, curves = known_truth.sweep(np.random.default_rng(0))
  runs = results.runs.copy()
  runs.loc[0, ['parameters', 'status']] = [pd.NA, 'failed']
  assert predictions.wanted(dataclasses.replace(results, runs=runs), curves, []) is not None
  runs.loc[0, 'status'] = 'done'
  results = dataclasses.replace(results, runs=runs)
  assert predictions.wanted(results, curves, [Target(7e9)]) is None
  with pytest.raises(InsufficientData, match='need the parameters of every finished run'):
    predictions.Predictions.make(results, curves)


def test_links_are_refused(workdir, tmp_path, capsys):
  shutil.copytree(workdir, tmp_path / 'sweep', ignore=shutil.ignore_patterns('report'))
  (tmp_path / 'sweep' / 'report').symlink_to(tmp_path)
  arguments = ['predict', f'--workdir={tmp_path}/sweep']
  assert app.execute(predict.main, predict.FLAGS, arguments) == 2
  assert 'report: must not be a link' in capsys.readouterr().err


def test_unusable_sweep_writes_nothing(workdir, tmp_path, capsys):
  made_up.write_sweep(tmp_path / 'begun', seeds=(0,), leave_out=tuple(range(42)))
  made_up.write_sweep(tmp_path / 'done', widths=(16,), seeds=(0,))
  arguments = ['predict', f'--workdir={tmp_path}/done,{tmp_path}/begun']
  assert app.execute(predict.main, predict.FLAGS, arguments) == 2
  assert 'begun: no run has finished yet' in capsys.readouterr().err
  assert not (tmp_path / 'done' / 'report').exists()


def test_targets_below_the_trained_sizes(tmp_path, capsys):
  """A forgotten B; it is not kept."""
  made_up.write_sweep(tmp_path, widths=(16, 32), seeds=(0,))
  arguments = ['predict', f'--workdir={tmp_path}', '--target=7']
  assert app.execute(predict.main, predict.FLAGS, arguments) == 2
  said = capsys.readouterr().err
  assert '--target=7: must not be below the smallest size of the sweep, 9216 parameters' in said
  assert not (tmp_path / 'targets.json').exists()


def test_predictions_import_no_jax():
  code = 'import sys, stability.report.predictions, launch.predict; print("jax" in sys.modules)'
  process = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  assert process.stdout == 'False\n'


def test_critical_rates_are_drawn(made):
  axis = predictions.critical_rates(made).axes[0]
  (observations,) = made.by_arm.values()
  measured = observations.runs.drop_duplicates('log_size')
  dots = axis.lines[0]
  np.testing.assert_allclose(dots.get_xdata(), measured['parameters'])
  np.testing.assert_allclose(dots.get_ydata(), 10 ** measured['log_critical'])
  law = axis.lines[3]
  assert law.get_xdata()[-1] == pytest.approx(2e6)
  forecasts = made.forecasts[made.forecasts['predictor'] == rates.CRITICAL_OF_ALL]
  assert law.get_ydata()[-1] == pytest.approx(forecasts['value'].iloc[0])


def test_axes_have_ticks_over_any_range(made):
  results, curves = known_truth.sweep(np.random.default_rng(0))
  far = predictions.Predictions.make(results, curves, [Target(1e18)])
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
  critical = held_out[held_out['predictor'] == rates.CRITICAL_OF_ALL]
  line, dots = events.lines
  np.testing.assert_allclose(line.get_ydata(), critical['probability'])
  np.testing.assert_array_equal(dots.get_ydata(), critical['happened'].astype(float))


def test_held_out_size_without_logits():
  results, curves = known_truth.bowls(np.random.default_rng(0), known_truth.critical_rate)
  made = predictions.Predictions.make(results, curves)
  (events,) = predictions.predicted_against_measured(made).axes
  assert style.save(events.figure, 'svg')
  assert len(events.lines[0].get_ydata()) == len(events.lines[1].get_ydata()) == 7
  assert legend_texts(events.figure) == ['predicted', 'measured']


def test_legend_and_size_of_the_held_out_size(made):
  figure = predictions.predicted_against_measured(made)
  assert legend_texts(figure) == ['predicted,\n90 % interval', 'measured']
  (size,) = set(made.held_out['parameters'].dropna())
  size = labels.parameters(size)
  assert figure.get_supxlabel() == f'learning rate ({size} parameters, held out)'


def test_arms_with_different_held_out_sizes():
  """Each panel has the size of its arm."""
  sizes = (*_, second, largest) = (4_000, 9_216, 20_000, 147_456, 589_824)
  results, curves = known_truth.sweep(
      np.random.default_rng(0), sizes=sizes, interventions=('none', 'l2')
  )
  runs = results.runs
  runs = runs[(runs['model.qk_norm'] == 'none') | (runs['parameters'] != largest)]
  made = predictions.Predictions.make(dataclasses.replace(results, runs=runs), curves)
  figure = predictions.predicted_against_measured(made)
  titles = [title.replace('\n', ' ') for axis in figure.axes if (title := axis.get_title())]
  assert titles == [
      f'qk_norm={name}, {labels.parameters(size)} parameters'
      for name, size in (('none', largest), ('l2', second))
  ]
  assert figure.get_supxlabel() == 'learning rate (held-out sizes)'


def test_accuracy_sentence(made):
  scores = predict_lib.score([made.held_out])
  row = scores.set_index('predictor').loc[rates.CRITICAL_OF_ALL]
  text = predictions.accuracy_sentence(scores)
  assert f'{row["accuracy"]:.0%} of {row["runs"]} runs' in text
  assert f'Brier score {row["brier"]:.3f}; {row["base_brier"]:.3f} for the base rate' in text
  assert 'attention logit 100% of 7, critical learning rate 100% of 1, critical' in text
  nothing = predictions.accuracy_sentence(predict_lib.score([made.held_out.iloc[:0]]))
  assert nothing.startswith('No size could be held out as a test')


def test_held_out_size_of_a_sweep_without_unstable_runs():
  made = predictions.Predictions.make(
      *known_truth.bowls(np.random.default_rng(0), lambda parameters: 100.0, headroom=3.0)
  )
  scores = predict_lib.score([made.held_out])
  text = predictions.accuracy_sentence(scores)
  assert 'Brier score' in text and 'critical learning rate (all arms) 100% of 1' in text


@pytest.mark.slow
def test_section_of_the_report(workdir):
  (workdir / 'targets.json').unlink(missing_ok=True)
  path = page.write_report(workdir)
  text = path.read_text()
  for words in ('Larger sizes', 'Predicted against measured', 'Critical learning rate against'):
    assert text.count(words) >= 1, words
  assert '</header>' in text.split('parameters with qk_norm=none: ')[0]  # nobody asked for it


def test_what_a_report_wants():
  results, curves = known_truth.sweep(np.random.default_rng(0), sizes=known_truth.SIZES[:2])
  assert predictions.wanted(results, curves, []) is None
  # Whoever asked for a target is told what is missing.
  asked = predictions.section(predictions.wanted(results, curves, [Target(7e9)]))
  assert len(asked.sentences) == 2 and asked.table.empty
  assert '7B parameters with qk_norm=none: no usable prediction. 3 sizes' in asked.sentences[0]
  assert asked.sentences[1].startswith('No size could be held out as a test')
  results, curves = known_truth.sweep(np.random.default_rng(0))
  nothing = dataclasses.replace(results, runs=results.runs.assign(status='missing'))
  assert predictions.wanted(nothing, curves, [Target(7e9)]) is None
  assert predictions.wanted(results, curves, []) is not None
