"""The page of a sweep shows what is in its files, escaped, and needs nothing else."""

import csv
import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from helpers import made_up
from helpers.html_page import EVIL, Page

import stability
from stability import hyper
from stability.analysis import lr_sensitivity, results_table, timeline
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.report import page, tables
from stability.storage import files, results_csv, run_files, sweeps

FIGURES = {
    'loss_by_learning_rate',
    'lr_sensitivity',
    'attention_logits_by_learning_rate',
    'attention_logits_by_parameters',
    'training_curves',
    'critical_learning_rate',
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep')
  made_up.write_sweep(folder)
  return folder


@pytest.fixture(scope='module')
def report(workdir):
  return page.write_report(workdir)


def test_files(workdir, report):
  assert report == workdir / 'report' / 'index.html'
  names = {f'{name}.{kind}' for name in FIGURES for kind in ('svg', 'png')}
  assert {path.name for path in report.parent.iterdir()} == names | {
      'index.html',
      'lr_sensitivity.csv',
      'claims.csv',
      'answers.csv',
      'predictions.csv',
  }
  table = lr_sensitivity.lr_sensitivity(results_lib.load_workdir(workdir))
  written = pd.read_csv(report.parent / 'lr_sensitivity.csv')
  pd.testing.assert_frame_equal(written, table, check_dtype=False)
  judged = made_up.judged(workdir)
  pd.testing.assert_frame_equal(registry.read(report.parent / 'claims.csv'), judged)


def test_contents(report):
  shown = Page(report)
  assert shown.count('svg') == 6 and shown.count('table') == 5
  rows = [attributes for tag, attributes in shown.elements if tag == 'tr']
  about = (made_up.judged(report.parents[1])['n'] > 0).sum()
  assert len(rows) == 1 + 28 + 1 + about + 1 + 6 + 1 + 2 + 1 + 84
  for words in (
      'Training stability: quickstart',
      '84 runs: 9.2K, 37K and 147K parameters, 7 learning rates from 1e-3 to 1,'
      ' qk_norm layernorm and none, 2 seeds.',
      '82 done, 2 diverged.',
      'in a measured step: clip_norm with qk_norm=layernorm.',
      'width=64,qk_norm=none,learning_rate=1.0,seed=1',
      'configs/quickstart.py',
      '--config.schedule.steps',
      '2.480 nats',
      '0.10.2',
  ):
    assert words in shown.text, words
  assert 'Some runs do not count' not in shown.text
  assert 'entropy rate' not in shown.text


def test_tables_by_keyboard_and_for_screen_readers(report):
  shown = Page(report)
  boxes = [a for _, a in shown.elements if a.get('class') == 'scroll']
  assert len(boxes) == 6 + 5
  assert all(box['tabindex'] == '0' and box['role'] and box['aria-label'] for box in boxes)
  headings = [attributes for tag, attributes in shown.elements if tag == 'th']
  assert {heading['scope'] for heading in headings} == {'col'}
  tables = [a.get('class') for tag, a in shown.elements if tag == 'table']
  assert tables.count('sortable') == 2  # LR sensitivity and all runs


@pytest.mark.skipif(shutil.which('node') is None, reason='needs Node.js')
def test_sorting(report):
  """Numbers by value, whatever follows them; other text after them, and empty cells last."""
  (script,) = re.findall('<script>(.*)</script>', report.read_text(), re.DOTALL)
  cells = ['2.00 (1-3)', '', '147K', '1e-2', 'baseline', '9.2K', '-0.5', '10', 'a']
  page = f"""
    const rows = {cells}.map(text => ({{cells: [{{dataset: {{}}, textContent: text}}]}}));
    const texts = all => all.map(row => row.cells[0].textContent).join();
    let sort;
    const heading = {{firstChild: {{addEventListener: (_, found) => sort = found}}}};
    const body = {{rows, append: (...all) => console.log(texts(all))}};
    const table = {{tHead: {{rows: [{{cells: [heading]}}]}}, tBodies: [body]}};
    globalThis.document = {{querySelectorAll: () => [table]}};
    {script}
    sort(); sort();"""
  found = subprocess.run(['node', '-e', page], capture_output=True, text=True, check=True)
  up = ['-0.5', '1e-2', '2.00 (1-3)', '10', '9.2K', '147K', 'a', 'baseline', '']
  assert found.stdout.splitlines() == [','.join(up), ','.join([*reversed(up[:-1]), ''])]


def test_applicable_claims(report):
  shown = Page(report)
  cells = [attributes.get('class') for tag, attributes in shown.elements if tag == 'td']
  judged = made_up.judged(report.parents[1])
  about = judged[judged['n'] > 0]
  for verdict, name in (('holds', 'holds'), ('does not hold', 'does-not-hold')):
    assert cells.count(f'text {name}') == (about['verdict'] == verdict).sum() > 0
  for row in judged.itertuples():
    assert (row.claim in shown.text) == (row.n > 0), row.claim
  # In the made-up sweep, qk-norm helps at every size; without it, logits pass 1e4 and losses rise.
  verdicts = about.set_index('claim')['verdict']
  assert verdicts.filter(like='Without qk-layernorm, LR sensitivity').item() == 'holds'
  assert verdicts.filter(like='exceeded 1e4 is unstable').item() == 'holds'
  assert 'block_0/attention_entropy was not logged' in shown.text
  assert f'{tables.count_verdicts(about["verdict"])}.' in shown.text


def test_page_is_self_contained(report):
  shown = Page(report)
  assert not {'link', 'iframe', 'img', 'object'} & {tag for tag, _ in shown.elements}
  assert shown.count('script') == 1  # that of sortable tables
  for _, attributes in shown.elements:
    for name, value in attributes.items():
      if name in ('src', 'href', 'xlink:href'):
        assert value.startswith('#'), value
  assert '@import' not in shown.source
  assert all(link.startswith('#') for link in re.findall(r'url\((.)', shown.source))


def test_ids_and_references(report):
  shown = Page(report)
  ids = [attributes['id'] for _, attributes in shown.elements if 'id' in attributes]
  assert len(ids) == len(set(ids))
  references = re.findall(r'(?:href="#|url\(#)([^")]+)', shown.source)
  assert references and set(references) <= set(ids)


@pytest.mark.slow
def test_reproducible(workdir, report):
  before = {path.name: path.read_bytes() for path in report.parent.iterdir()}
  page.write_report(workdir)
  assert before == {path.name: path.read_bytes() for path in report.parent.iterdir()}


def test_sweep_without_results(tmp_path):
  made_up.write_sweep(tmp_path, seeds=(0,), leave_out=tuple(range(42)))
  shown = Page(page.write_report(tmp_path))
  assert 'Some runs do not count: 42 missing.' in shown.text
  assert 'No run has finished yet.' in shown.text
  assert shown.count('svg') == 0
  assert 'nan' not in shown.text.lower().split()


@pytest.mark.usefixtures('without_figures')
def test_partial_sweep(tmp_path):
  error = f'Traceback (most recent call last):\n  File "train.py"\nRuntimeError: {EVIL}\n'
  failed = {'status': 'failed', 'final_loss': None, 'initial_loss': None, 'error': error}
  names = made_up.write_sweep(
      tmp_path, seeds=(0,), leave_out=tuple(range(30, 42)), results={5: failed}
  )
  shown = Page(page.write_report(tmp_path))
  assert 'Some runs do not count: 1 failed, 12 missing.' in shown.text
  # At 37K alone: 9.2K lacks a run.
  assert 'compared with the baseline qk_norm=layernorm: 2.' in shown.text
  assert 'times at 37K parameters.' in shown.text and 'times at 9.2K' not in shown.text
  assert f'RuntimeError: {EVIL}' in shown.text and 'Traceback' not in shown.text
  first_run = shown.text.index(names[5])
  assert all(shown.text.index(name) > first_run for name in names[:5])


@pytest.mark.slow
def test_runs_in_progress(tmp_path):
  names = made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,))
  for name in names:
    (run_files.run_dir(tmp_path, name) / 'result.json').unlink()
  shown = Page(page.write_report(tmp_path))
  assert 'No run has finished yet.' in shown.text
  assert shown.count('svg') == 2  # attention logits against learning rate, training curves


def test_results_without_a_workdir(tmp_path):
  path = tmp_path / 'other.csv'
  path.write_text(
      'parameters,learning_rate,final_loss,method\n'
      + ''.join(
          f'{size},{rate},{3 + rate * (1 + (method == "a"))},{method}\n'
          for size in (1000, 2000)
          for rate in (0.1, 0.3)
          for method in ('a', 'b')
      )
  )
  results = results_table.load_csv(path, group_by=['method'], initial_loss=10.0)
  written = page.write_results_report(results, tmp_path / 'report')
  assert written == tmp_path / 'report' / 'index.html'
  shown = Page(written)
  assert shown.count('svg') == 2
  assert 'line 9' in shown.text and 'attention' not in shown.text
  assert {path.suffix for path in written.parent.iterdir()} == {'.html', '.csv', '.svg', '.png'}


def test_escaping(tmp_path):
  path = tmp_path / 'evil.csv'
  quoted = EVIL.replace('"', '""')
  path.write_text(
      f'run,learning_rate,final_loss,parameters,"{quoted}"\n'
      + ''.join(f'"{quoted}",0.1,3,{size},"{quoted}"\n' for size in (10, 20))
  )
  results = results_table.load_csv(path, group_by=[EVIL], initial_loss=10.0)
  shown = Page(page.write_results_report(results, tmp_path / 'report'))
  assert shown.count('script') == 1
  assert shown.text.count(EVIL) >= 2 * 3  # runs, their column, its header and cells
  assert f'{EVIL} {EVIL}' in shown.text


@pytest.mark.usefixtures('without_figures')
def test_entropy_rate(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,), interventions=[{}])
  sweep = sweeps.read_sweep(tmp_path)
  sweep.data['entropy_rate'] = 1.25
  sweeps.write_sweep(tmp_path, sweep)
  assert '1.250 nats, the lowest loss possible' in Page(page.write_report(tmp_path)).text


def test_probes_of_extensions(tmp_path, monkeypatch):
  for name in ('loss_plots', 'curve_plots', 'probe_plots'):
    monkeypatch.setattr(page.selection, name, lambda *_, **__: [])
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,), interventions=[{}])
  sweep = sweeps.read_sweep(tmp_path)
  sweep.extensions.update(folder='x', file='x', files=[], sha256='x', options=[], values={})
  sweeps.write_sweep(tmp_path, sweep)  # of older code
  before = Page(page.write_report(tmp_path))
  sweep.extensions['probes'] = ['gradient_norm', 'never_logged']
  sweeps.write_sweep(tmp_path, sweep)
  shown = Page(page.write_report(tmp_path))
  title = 'gradient_norm against learning rate'
  assert title in shown.text and title not in before.text and 'never_logged' not in shown.text
  assert shown.count('svg') == before.count('svg') + 1
  assert (tmp_path / 'report/probe_1_gradient_norm.svg').exists()
  assert stability.load(tmp_path).plot('probe_1_gradient_norm').axes


def test_no_training_imports():
  code = (
      'import sys, stability.analysis.claims.registry, stability.report.page,'
      ' stability.report.terminal;'
      'training = {"jax", "flax", "stability.step.train_step", "stability.model.transformer"};'
      'print(training & set(sys.modules))'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == 'set()'


def write_activations(workdir, **change):
  """A sweep of parameterizations in which logits grow with the width under one of them."""
  names = hyper.sweep('parameterization.name', ['standard', 'mup'])
  options = {'widths': (16, 64), 'rates': (1e-2,), 'seeds': (0,), 'interventions': names}
  for name in made_up.write_sweep(workdir, **(options | change)):
    path = run_files.run_dir(workdir, name) / 'metrics.jsonl'
    rms = 4.0 if 'width=64,name=standard' in name else 1.0
    lines = [{'step': step, 'loss': 2.0, 'activation_rms/logits': rms * step} for step in (1, 2)]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.mark.usefixtures('without_figures')
def test_coordinate_check(tmp_path):
  write_activations(tmp_path)
  text = re.sub(r'\s+', ' ', Page(page.write_report(tmp_path)).text)
  assert 'Coordinate check' in text and 'parameterizationlogits standard+1.00 mup+0.00' in text


@pytest.mark.parametrize(
    'change',
    [
        {'rates': (1e-2, 1e-1)},
        {'interventions': hyper.sweep('model.qk_norm', ['layernorm', 'none'])},
        {'widths': (16,)},
    ],
)
def test_no_coordinate_check(change, tmp_path):
  write_activations(tmp_path, **change)
  assert page._coordinate_check(tmp_path, results_lib.load_workdir(tmp_path)).empty


@pytest.mark.slow
@pytest.mark.usefixtures('without_figures')
def test_actions(tmp_path):
  made_up.write_sweep(tmp_path)
  name = next(iter(sweeps.read_sweep(tmp_path).runs))
  run = run_files.run_dir(tmp_path, name)

  def alarm(step, taken):
    return {'step': step, 'rule': 'loss_spike', 'actions': taken, 'seen': f'spike at {step}'}

  def record(step, action, **more):
    return {'step': step, 'by': 'ann', 'why': EVIL, 'action': action, **more}

  files.write_lines(run / 'alarms.jsonl', [alarm(40, 0), alarm(50, 0), alarm(20, 1)])
  files.write_lines(
      run / 'actions.jsonl',
      [
          record(45, None, refused='not a request', changes='rm'),
          record(
              60,
              'rewind',
              to=0,
              skip=60,
              changes={'optimizer.learning_rate': 1e-3},
              cut='metrics.cut-60.jsonl',
          ),
      ],
  )
  found = timeline.load(tmp_path)
  assert [(row.step, row.what) for row in found.itertuples()] == [
      (40, 'alarm: loss_spike'),
      (45, 'None, refused: not a request'),
      (50, 'alarm: loss_spike'),
      (60, 'rewind 0 skip=60 optimizer.learning_rate=0.001'),
      (20, 'alarm: loss_spike'),
  ]
  assert set(found['run']) == {name}
  shown = Page(page.write_report(tmp_path))
  for words in ('Actions', 'spike at 50', 'rewind 0 skip=60', EVIL):
    assert words in shown.text
  assert 'Alarms in runs that nobody acted on' not in shown.text
  assert shown.count('script') == 1


@pytest.mark.usefixtures('without_figures')
def test_forks(tmp_path):
  """They have a table of their own and are not counted."""
  name, *_ = made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,))
  config = run_files.read_config(run_files.run_dir(tmp_path, name))
  files.write_json(tmp_path / 'runs' / 'x+fork1' / 'config.json', config)
  before = Page(page.write_report(tmp_path)).text
  sweeps.write_fork(tmp_path, 'x+fork1', sweeps.Fork(name, 30, {'optimizer.learning_rate': 0.01}))
  shown = Page(page.write_report(tmp_path)).text
  same, forks = shown.split('Forks')
  assert before.startswith(same.rstrip())
  assert f'x+fork1{name}30learning_rate=1e-2missing' in forks


@pytest.mark.usefixtures('without_figures')
def test_alarms_without_actions(tmp_path):
  first, second, *_ = made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,))
  for name in (first, second):
    alarm = {'step': 40, 'rule': 'loss_spike', 'actions': 0, 'seen': f'{EVIL} in {name}'}
    files.write_lines(run_files.run_dir(tmp_path, name) / 'alarms.jsonl', [alarm])
  record = {'step': 50, 'by': 'ann', 'why': '', 'action': 'skip', 'steps': 5}
  files.write_lines(run_files.run_dir(tmp_path, second) / 'actions.jsonl', [record])
  results_csv.write_results(tmp_path)
  shown = Page(page.write_report(tmp_path))
  _, alarms = shown.text.split('Alarms in runs that nobody acted on.')
  alarms, actions = alarms.split('Alarms and actions in runs that a person')
  assert f'{EVIL} in {first}' in alarms and f'in {second}' not in alarms
  assert f'{EVIL} in {second}' in actions and f'in {first}' not in actions
  assert 'Runs acted on are those whose course an action changed.' in shown.text
  assert shown.count('script') == 1
  with (tmp_path / 'results.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert list(rows[0])[-2:] == ['actions', 'forked_from']
  assert [row['actions'] for row in rows[:3]] == ['0', '1', '0']

