"""The report says what is in a sweep's files, all of it escaped, and needs nothing else."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import made_up
from helpers.html_page import EVIL, Page

from stability import hyper
from stability.analysis import lr_sensitivity, timeline
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.report import page
from stability.storage import files, run_files, sweeps

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
      'predictions.csv',
  }
  table = lr_sensitivity.lr_sensitivity(results_lib.load_workdir(workdir))
  written = pd.read_csv(report.parent / 'lr_sensitivity.csv')
  pd.testing.assert_frame_equal(written, table, check_dtype=False)
  judged = registry.judge(workdir)
  pd.testing.assert_frame_equal(registry.read(report.parent / 'claims.csv'), judged)


def test_page_shows_the_sweep(report):
  shown = Page(report)
  assert shown.count('svg') == 6 and shown.count('table') == 4
  rows = [attributes for tag, attributes in shown.elements if tag == 'tr']
  about = (registry.judge(report.parents[1])['n'] > 0).sum()
  assert len(rows) == 1 + 28 + 1 + about + 1 + 6 + 1 + 84
  for words in (
      'Training stability: quickstart',
      '84 runs: 9.2K, 37K and 147K parameters, 7 learning rates from 1e-3 to 1,'
      ' qk_norm layernorm and none, 2 seeds.',
      '82 done, 2 diverged.',
      'width=64,qk_norm=none,learning_rate=1.0,seed=1',
      'configs/quickstart.py',
      '--config.schedule.steps',
      '2.480 nats',
      '0.10.2',
  ):
    assert words in shown.text, words
  assert 'Not all runs count' not in shown.text
  assert 'entropy rate' not in shown.text


def test_page_shows_the_claims_that_are_about_the_sweep(report):
  shown = Page(report)
  cells = [attributes.get('class') for tag, attributes in shown.elements if tag == 'td']
  judged = registry.judge(report.parents[1])
  about = judged[judged['n'] > 0]
  for verdict, name in (('holds', 'holds'), ('does not hold', 'does-not-hold')):
    assert cells.count(f'text {name}') == (about['verdict'] == verdict).sum() > 0
  for row in judged.itertuples():
    assert (row.claim in shown.text) == (row.n > 0), row.claim
  # Made up so: qk-norm helps at every size; logits without it pass 1e4 and those runs are worse.
  verdicts = about.set_index('claim')['verdict']
  assert verdicts.filter(like='Without qk-layernorm, LR sensitivity').item() == 'holds'
  assert verdicts.filter(like='exceeded 1e4 is unstable').item() == 'holds'
  assert 'block_0/attention_entropy was not logged' in shown.text


def test_page_needs_nothing_from_elsewhere(report):
  shown = Page(report)
  assert not {'script', 'link', 'iframe', 'img', 'object'} & {tag for tag, _ in shown.elements}
  for _, attributes in shown.elements:
    for name, value in attributes.items():
      if name in ('src', 'href', 'xlink:href'):
        assert value.startswith('#'), value
  assert '@import' not in shown.source
  assert all(link.startswith('#') for link in re.findall(r'url\((.)', shown.source))


def test_ids_are_unique_and_all_references_are_met(report):
  shown = Page(report)
  ids = [attributes['id'] for _, attributes in shown.elements if 'id' in attributes]
  assert len(ids) == len(set(ids))
  references = re.findall(r'(?:href="#|url\(#)([^")]+)', shown.source)
  assert references and set(references) <= set(ids)


def test_the_same_files_give_the_same_report(workdir, report):
  before = {path.name: path.read_bytes() for path in report.parent.iterdir()}
  page.write_report(workdir)
  assert before == {path.name: path.read_bytes() for path in report.parent.iterdir()}


def test_a_sweep_not_begun_has_a_page_that_says_so(tmp_path):
  made_up.write_sweep(tmp_path, seeds=(0,), leave_out=tuple(range(42)))
  shown = Page(page.write_report(tmp_path))
  assert 'Not all runs count: 42 missing.' in shown.text
  assert 'No run has finished yet.' in shown.text
  assert shown.count('svg') == 0
  assert 'nan' not in shown.text.lower().split()


def test_a_partial_sweep_says_what_is_missing_and_decides_nothing_on_it(tmp_path):
  error = f'Traceback (most recent call last):\n  File "train.py"\nRuntimeError: {EVIL}\n'
  failed = {'status': 'failed', 'final_loss': None, 'initial_loss': None, 'error': error}
  names = made_up.write_sweep(
      tmp_path, seeds=(0,), leave_out=tuple(range(30, 42)), results={5: failed}
  )
  shown = Page(page.write_report(tmp_path))
  assert 'Not all runs count: 1 failed, 12 missing.' in shown.text
  assert 'compared with qk_norm=layernorm: 2.' in shown.text  # at 37K alone: 9.2K lacks a run
  assert 'times at 37K parameters.' in shown.text and 'times at 9.2K' not in shown.text
  assert f'RuntimeError: {EVIL}' in shown.text and 'Traceback' not in shown.text
  first_run = shown.text.index(names[5])
  assert all(shown.text.index(name) > first_run for name in names[:5])


def test_a_run_in_progress_shows_its_curves(tmp_path):
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
  results = results_lib.load_csv(path, group_by=['method'], initial_loss=10.0)
  written = page.write_results_report(results, tmp_path / 'report')
  assert written == tmp_path / 'report' / 'index.html'
  shown = Page(written)
  assert shown.count('svg') == 2
  assert 'line 9' in shown.text and 'attention' not in shown.text
  assert {path.suffix for path in written.parent.iterdir()} == {'.html', '.csv', '.svg', '.png'}


def test_text_of_others_is_escaped(tmp_path):
  path = tmp_path / 'evil.csv'
  quoted = EVIL.replace('"', '""')
  path.write_text(
      f'run,learning_rate,final_loss,parameters,"{quoted}"\n'
      + ''.join(f'"{quoted}",0.1,3,{size},"{quoted}"\n' for size in (10, 20))
  )
  results = results_lib.load_csv(path, group_by=[EVIL], initial_loss=10.0)
  shown = Page(page.write_results_report(results, tmp_path / 'report'))
  assert shown.count('script') == 0
  assert shown.text.count(EVIL) >= 2 * 3  # runs, their column, its header and cells
  assert f'{EVIL} {EVIL}' in shown.text


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
  return results_lib.Results(table, list(groups), []), table


def test_two_interventions_are_compared_at_each_size():
  given = results_of({(10, 'a'): 0.2, (10, 'b'): 0.1, (20, 'a'): 0.3, (20, 'b'): 0.6})
  assert page.finding(*given) == (
      'LR sensitivity with method=b, compared with method=a: 0.5 times at 10 and 2.0 times at 20'
      ' parameters.'
  )
  assert page.best(*given) == (
      'The lowest loss is 2.400 nats: 20 parameters, method=b, learning rate 1e-1.'
  )


def test_more_interventions_are_ranked_at_the_largest_size():
  given = results_of({(10, 'a'): 1.0, (20, 'a'): 0.3, (20, 'b'): 0.6, (20, 'c'): 0.1})
  assert page.finding(*given) == (
      'LR sensitivity at 20 parameters, lowest first: method=c (0.100), method=a (0.300),'
      ' method=b (0.600).'
  )


def test_one_intervention_is_told_by_size():
  given = results_of({(10, 'a'): 0.2, (20, 'a'): 0.3}, groups=())
  assert page.finding(*given) == 'LR sensitivity is 0.200 at 10 and 0.300 at 20.'
  assert page.best(*given).endswith('20 parameters, learning rate 1e-1.')


@pytest.mark.parametrize('change', [{'missing': 1}, {'lr_sensitivity': 0.0}])
def test_what_is_undecided_is_no_finding(change):
  results, table = results_of({(10, 'a'): 0.2, (10, 'b'): 0.1})
  table.loc[1, list(change)] = list(change.values())
  assert page.finding(results, table) is None


def test_nothing_measured_is_no_finding():
  results, table = results_of({(10, 'a'): np.nan})
  assert page.finding(results, table) is None and page.best(results, table) is None


def test_synthetic_text_has_its_entropy_rate_on_the_page(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,), interventions=[{}])
  sweep = sweeps.read_sweep(tmp_path)
  sweep.data['entropy_rate'] = 1.25
  sweeps.write_sweep(tmp_path, sweep)
  assert '1.250 nats: no model can be better' in Page(page.write_report(tmp_path)).text


def test_analysis_and_report_never_import_training():
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


def test_parameterizations_over_widths_have_their_coordinate_check_on_the_page(tmp_path):
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
def test_a_sweep_that_is_no_coordinate_check_has_none(change, tmp_path):
  write_activations(tmp_path, **change)
  assert page._coordinate_check(tmp_path, results_lib.load_workdir(tmp_path)).empty


def test_page_tells_where_somebody_stepped_in(tmp_path):
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
          record(60, 'rewind', to=0, skip=60, changes={'optimizer.learning_rate': 1e-3}),
      ],
  )
  told = timeline.load(tmp_path)
  assert [(row.step, row.what) for row in told.itertuples()] == [
      (40, 'alarm: loss_spike'),
      (45, 'None, refused: not a request'),
      (50, 'alarm: loss_spike'),
      (60, 'rewind 0 skip=60 optimizer.learning_rate=0.001'),
      (20, 'alarm: loss_spike'),
  ]
  assert set(told['run']) == {name}
  shown = Page(page.write_report(tmp_path))
  for words in ('Stepping in', 'spike at 50', 'rewind 0 skip=60', EVIL):
    assert words in shown.text
  assert 'script' not in [tag for tag, _ in shown.elements]
