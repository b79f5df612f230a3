"""The report over several sweeps."""

import pandas as pd
import pytest
from helpers import made_up
from helpers.html_page import EVIL, Page

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.report import findings, overview
from stability.storage import files

pytestmark = pytest.mark.slow

SVGS = [f'{name}.svg' for name in (overview.LOSS, overview.LOGITS)]


def experiment(name: str, problem: str | None = None) -> overview.Experiment:
  return overview.Experiment(name, f'What of {name}?', ['1', 'E.2'], problem)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two sweeps with the files of a report, one without a run; a third has not begun."""
  folder = tmp_path_factory.mktemp('all')
  made_up.write_sweep(folder / 'one', seeds=(0,))
  made_up.write_sweep(folder / 'two', seeds=(0,), leave_out=tuple(range(42)))
  for name, written in (('one', ('index.html', *SVGS)), ('two', ('index.html',))):
    for file in written:
      files.write_atomic(folder / name / 'report' / file, 'made elsewhere')
  return folder


@pytest.fixture(scope='module')
def written(folder):
  names = ('one', 'two', 'three')
  path = overview.write_overview(folder, [experiment(name) for name in names])
  assert path == folder / 'report' / 'index.html'
  return Page(path)


def test_questions_and_figures(written):
  for name in ('one', 'two', 'three'):
    assert f'What of {name}?' in written.text
  assert written.text.count('Figures 1, E.2 of the paper') == 2
  assert '42 missing' in written.text and 'three: not started' in written.text


def test_findings(folder, written):
  results = results_lib.load_workdir(folder / 'one')
  table = lr_sensitivity.lr_sensitivity(results)
  for sentence in (
      findings.on_lr_sensitivity(results, table),
      findings.on_best_loss(results, table),
  ):
    assert written.text.count(sentence) == 1


def test_links_lead_to_files(folder, written):
  links = [attributes['href'] for tag, attributes in written.elements if tag == 'a']
  images = [attributes['src'] for tag, attributes in written.elements if tag == 'img']
  assert {'../one/report/index.html', '../two/report/index.html'} <= set(links)
  assert len(images) == 2  # of the sweep that has results
  within = {link for link in links if link.startswith('#')}
  ids = [attributes.get('id') for tag, attributes in written.elements if tag == 'section']
  assert within == {'#one', '#two', '#three'} == {f'#{name}' for name in ids}
  assert all((folder / 'report' / link).is_file() for link in {*links, *images} - within)


def test_facts_of_each_experiment(tmp_path):
  made_up.write_sweep(tmp_path / 'one', seeds=(0,))
  made_up.write_sweep(tmp_path / 'two', seeds=(0, 1, 2))
  shown = Page(overview.write_overview(tmp_path, [experiment('one'), experiment('two')]))
  assert '41 done, 1 diverged, 1 seed, cpu scale, schedule.steps=300.' in shown.text
  assert '123 done, 3 diverged, 3 seeds, cpu scale, schedule.steps=300.' in shown.text


@pytest.mark.parametrize(
    'there, shown',
    [
        (['gradients', 'loss_by_eps', overview.LOGITS], ['loss_by_eps']),  # one learning rate
        ([overview.LOGITS, 'loss_by_eps', overview.LOSS], [overview.LOSS, 'loss_by_eps']),
        (['gradients', overview.LOGITS], []),
    ],
)
def test_most_important_figures(tmp_path, there, shown):
  made_up.write_sweep(tmp_path / 'one', seeds=(0,))
  for name in there:
    files.write_atomic(tmp_path / 'one' / 'report' / f'{name}.svg', 'made elsewhere')
  written = Page(overview.write_overview(tmp_path, [experiment('one')]))
  images = [attributes['src'] for tag, attributes in written.elements if tag == 'img']
  assert images == [f'../one/report/{name}.svg' for name in shown]


def test_no_table_without_claims(folder, written):
  assert not (folder / 'report' / 'claims.csv').exists()
  assert written.count('table') == 0


def test_claims_of_all_sweeps(tmp_path):
  """The file has all that apply to a sweep; the page has those whose figure it reproduces."""
  for name, n in (('one', 14), ('two', 0)):
    table = pd.DataFrame({
        'figure': ['1', '10', 'E.2'],
        'claim': [f'{name} says so', 'is of another figure', 'applies to another sweep'],
        'verdict': ['does not hold', 'holds', 'undecided'],
        'effect': [1.23456, 2.0, None],
        'low': [1.1, None, None],
        'high': [1.3, None, None],
        'threshold': 3 * ['>= 1.1'],
        'measure': 3 * ['ratio'],
        'n': [n, n, 0],
        'reason': 3 * [''],
        'variant': ['model.qk_norm=l2', '', ''],
    })
    files.write_atomic(tmp_path / name / 'report' / 'claims.csv', table.to_csv(index=False))
  path = overview.write_overview(tmp_path, [experiment(name) for name in ('one', 'two', 'three')])
  written = Page(path)
  assert written.count('table') == 1
  for words in ('one says so', '1.23', '1.1 to 1.3', '1 does not hold', 'with model.qk_norm=l2'):
    assert words in written.text
  for words in ('two says so', 'is of another figure', 'applies to another sweep'):
    assert words not in written.text
  found = pd.read_csv(path.parent / 'claims.csv', dtype={'figure': str})
  assert found[['experiment', 'figure', 'reproduces', 'n']].to_numpy().tolist() == [
      ['one', '1', True, 14],
      ['one', '10', False, 14],
  ]


@pytest.mark.parametrize('file', ['sweep.json', 'report/claims.csv', 'other columns'])
def test_damaged_sweep_hides_no_other(folder, tmp_path, file):
  for name in ('one', 'two'):
    (tmp_path / name).symlink_to(folder / name)
  text = 'figure,claim\n' if file == 'other columns' else '{"'
  path = 'report/claims.csv' if file == 'other columns' else file
  files.write_atomic(tmp_path / 'broken' / path, text)
  names = ('broken', 'one', 'two')
  found = Page(overview.write_overview(tmp_path, [experiment(name) for name in names]))
  assert f'broken: {tmp_path}/broken/{path}' in found.text.replace('\xa0', ' ')
  assert 'What of broken?' in found.text and '42 missing' in found.text


def test_problems_come_first_and_are_escaped(tmp_path):
  found = Page(overview.write_overview(tmp_path, [experiment(EVIL, problem=f'refused {EVIL}')]))
  assert f'refused {EVIL}' in found.text
  assert found.text.index('refused') < found.text.index('What of')
  assert found.count('script') == 0
