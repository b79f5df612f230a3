"""launch.alarms: the rules over the rows of runs trained here and of imported ones."""

import csv
import json
import shutil

import pytest
from helpers import made_up

from launch import alarms
from launch.common import app
from stability.analysis import alarm_scores
from stability.control.alarms import read_alarms
from stability.storage import files

CALM = [{'step': step, 'loss': 3.0} for step in range(0, 100, 10)]
LOGITS = [
    {'step': step, 'loss': 3.0, 'block_0/attention_logit_max': 14.0 * step} for step in range(60)
]


def run(workdir, capsys, *more):
  code = app.execute(alarms.main, alarms.FLAGS, ['alarms', f'--workdir={workdir}', *more])
  return code, *capsys.readouterr()


@pytest.fixture
def workdir(tmp_path):
  """Three runs: calm, with high attention logits, and without rows."""
  rates = (1e-3, 1e-2, 1e-1)
  names = made_up.write_sweep(
      tmp_path, widths=(16,), rates=rates, seeds=(0,), interventions=[{}]
  )
  for name, rows in zip(names, (CALM, LOGITS, None), strict=True):
    folder = tmp_path / 'runs' / name
    (folder / 'metrics.jsonl').unlink()
    if rows is not None:
      files.write_lines(folder / 'metrics.jsonl', rows)
  return tmp_path


def runs(workdir):
  return sorted((workdir / 'runs').iterdir())


def mark_as_imported(workdir):
  """Leaves the configs only what an imported run has."""
  found = files.read_json(workdir / 'sweep.json')
  known = {
      name: {'seed': c['seed'], 'optimizer': {'learning_rate': c['optimizer']['learning_rate']}}
      for name, c in found['runs'].items()
  }
  changed = {'origin': 'imported', 'runs': known, 'fields': ['optimizer.learning_rate']}
  files.write_json(workdir / 'sweep.json', found | changed)


def contents(workdir):
  return {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}


def row_of(output, first):
  """The words of the line of a table that starts with a word."""
  (line,) = (line for line in output.splitlines() if line.split()[:1] == [first])
  return line.split()


def test_report_of_runs_trained_here(workdir, capsys):
  before = contents(workdir)
  code, output, error = run(workdir, capsys)
  assert (code, error) == (0, '')
  # rule, what it needs, runs, fired, first step, median step, lacking in
  assert row_of(output, 'attention_logit') == [
      *('attention_logit', 'block_*/attention_logit_max', '1', '1', '36', '36', '1')
  ]
  assert row_of(output, 'loss_spike') == ['loss_spike', 'loss', 'in', '9', 'rows', '2', '0', '0']
  assert row_of(output, 'log_z_drift') == [
      *('log_z_drift', 'log_z', 'in', '2', 'rows', '0', '0', '2')
  ]
  assert 'the highest attention logit is 504; limit 500' in output
  assert '2 of 3 runs have logged rows' in output
  assert 'The rules are not scored' in output  # the third run, of an unstable rate, has no rows
  assert contents(workdir) == before


def test_alarms_of_imported_runs_are_written(workdir, capsys):
  mark_as_imported(workdir)
  code, output, _ = run(workdir, capsys)
  assert code == 0 and 'Written: ' in output
  calm, high, without = runs(workdir)
  assert read_alarms(calm) == [] and not (without / 'alarms.jsonl').exists()
  (alarm,) = read_alarms(high)
  assert (alarm.step, alarm.rule, alarm.actions) == (36, 'attention_logit', 0)
  files.write_lines(high / 'metrics.jsonl', CALM)  # the run is imported again
  assert run(workdir, capsys)[0] == 0
  assert read_alarms(high) == []


@pytest.fixture
def graded(tmp_path):
  """A sweep in which the attention logits of unstable runs are above 80."""
  folder = tmp_path / 'graded'
  rates = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
  names = made_up.write_sweep(folder, widths=(16,), rates=rates, seeds=(0, 1, 2))
  outcomes = alarm_scores.outcomes(folder)['unstable']
  assert 5 <= outcomes.sum() <= 22
  for number, name in enumerate(names):
    peak = 30 + number / 5 + 60 * outcomes[name]
    rows = [
        {'step': step, 'loss': 3.0, 'block_0/attention_logit_max': peak * step / 100}
        for step in range(10, 110, 10)
    ]
    files.write_lines(folder / 'runs' / name / 'metrics.jsonl', rows)
  return folder


def test_scores_are_written(graded, capsys):
  code, output, error = run(graded, capsys)
  assert (code, error) == (0, '')
  report = graded / 'report'
  header, *_, last = (report / 'alarm_scores.csv').read_text().splitlines()
  assert header == 'rule,runs,unstable,fired,recall,false_alarm_rate,lead'
  assert last.startswith('any,42,') and last.split(',')[3] == '0'
  assert row_of(output, 'any')[:2] == ['any', '42']
  assert (report / 'alarm_reliability.csv').read_text().startswith('low,high,alarms,')
  assert (report / 'alarm_reliability.png').exists()
  rises = list(csv.DictReader((report / 'alarm_rises.csv').open()))
  assert sum(int(row['runs']) for row in rises) == 42
  unstable = sum(int(row['unstable']) for row in rises)
  assert f'A false or missing alarm: {unstable} runs, ' in output


def test_limits_for_a_regime(graded, tmp_path, capsys):
  """They find the unstable runs of another sweep, and are refused for their own."""
  path = tmp_path / 'limits.json'
  code, output, error = run(graded, capsys, f'--calibrate={path}')
  assert (code, error) == (0, '') and 'recall 1.00, false alarms 0.00' in output
  found = files.read_json(path)
  assert found['limits']['attention_logit']['limit'] < 100
  made_from = found['made_from']
  assert (made_from['runs'], len(made_from['digests'])) == (42, 42)
  assert not (graded / 'report').exists()
  code, output, error = run(graded, capsys, f'--limits={path}')
  assert code == 2 and error.count('\n') == 1
  assert f'--limits={path}: was made from 42 runs of {graded}' in error
  other = tmp_path / 'other'
  shutil.copytree(graded, other)
  sweep = files.read_json(other / 'sweep.json')
  sweep['data']['sha256'] = {'train': 'of another text'}
  files.write_json(other / 'sweep.json', sweep)
  code, output, error = run(other, capsys, f'--limits={path}')
  assert (code, error) == (0, '')
  cells = row_of(output, 'any')
  assert cells[2] == cells[3] and cells[4:6] == ['1.00', '0.00']
  code, _, error = run(graded, capsys, f'--calibrate={path}')
  assert code == 2 and 'exists already' in error


@pytest.mark.parametrize('is_empty', [True, False])
def test_limits_are_made_from_runs_with_rows(graded, tmp_path, capsys, is_empty):
  """Other runs would count as runs without alarms."""
  unstable = alarm_scores.outcomes(graded)['unstable']

  def without_rows(names):
    for name in names:
      rows = graded / 'runs' / name / 'metrics.jsonl'
      rows.write_text('') if is_empty else rows.unlink()

  without_rows(unstable.index[unstable][:-5])
  code, output, error = run(graded, capsys, f'--calibrate={tmp_path}/limits.json')
  assert (code, error) == (0, '') and 'recall 1.00, false alarms 0.00' in output
  stable = int((~unstable).sum())
  assert f'from {stable + 5} runs, 5 of them unstable' in output
  made_from = files.read_json(tmp_path / 'limits.json')['made_from']
  assert (made_from['runs'], len(made_from['digests'])) == (stable + 5, stable + 5)
  without_rows(unstable.index[unstable][-5:-4])
  code, _, error = run(graded, capsys, f'--calibrate={tmp_path}/more.json')
  assert code == 2 and error.count('\n') == 1
  assert f'has {stable} stable and 4 unstable runs with logged rows' in error
  code, output, _ = run(graded, capsys)
  assert code == 0 and f'{stable + 4} of 42 runs have logged rows' in output


def test_a_sweep_in_another_folder_is_not_scored_either(graded, tmp_path, capsys):
  path, copy = tmp_path / 'limits.json', tmp_path / 'copy'
  shutil.copytree(graded, copy)
  assert run(graded, capsys, f'--calibrate={path}')[0] == 0
  code, _, error = run(copy, capsys, f'--limits={path}')
  assert code == 2 and 'was made from 42 runs' in error


def test_bad_flags(workdir, tmp_path, capsys):
  for more, words in (
      (['--limits=a', '--calibrate=b'], '--calibrate, --limits: only one'),
      ([f'--limits={tmp_path}/none.json'], f'--limits={tmp_path}/none.json: cannot be read'),
      ([f'--calibrate={tmp_path}/a.json'], '--calibrate: '),
  ):
    code, _, error = run(workdir, capsys, *more)
    assert code == 2 and error.count('\n') == 1 and words in error


@pytest.mark.parametrize(
    'is_imported, has_page, is_said', [(1, 1, True), (1, 0, False), (0, 1, False)]
)
def test_a_page_that_lacks_the_alarms(workdir, capsys, is_imported, has_page, is_said):
  if is_imported:
    mark_as_imported(workdir)
  if has_page:
    files.write_atomic(workdir / 'report' / 'index.html', '')
  code, output, _ = run(workdir, capsys)
  last = output.splitlines()[-1]
  assert code == 0 and (last == f'  python -m launch.report --workdir={workdir}') == is_said
  assert ('launch.report' in output) == is_said


@pytest.mark.parametrize(
    ('line', 'words'),
    [('{"loss": 3}', 'step is missing'), ('[', 'damaged'), ('{"step": 0, "x": "y"}', "x='y'")],
)
def test_a_damaged_run_does_not_take_others_along(workdir, capsys, line, words):
  mark_as_imported(workdir)
  path = runs(workdir)[0] / 'metrics.jsonl'
  path.write_text(json.dumps(CALM[0]) + f'\n{line}\n')
  code, output, error = run(workdir, capsys)
  assert code == 1 and error.count('\n') == 1
  assert error.startswith(f'error: {path}, line 2: damaged') and words in error
  assert '1 of 3 runs' in output and len(read_alarms(runs(workdir)[1])) == 1


def test_nothing_is_written_through_a_link(workdir, tmp_path_factory, capsys):
  mark_as_imported(workdir)
  other = tmp_path_factory.mktemp('other')
  folder = runs(workdir)[0]
  shutil.rmtree(folder)
  folder.symlink_to(other)
  code, _, error = run(workdir, capsys)
  assert code == 2 and 'must not be a link' in error and not list(other.iterdir())


def test_bad_workdir(tmp_path, capsys):
  code, _, error = run(tmp_path, capsys)
  assert code == 2 and 'holds no sweep' in error
