"""The leaderboard of a page: its table, sentences, figures and leaderboard.csv."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers import made_up
from helpers.html_page import EVIL, Page

from stability.analysis import inert
from stability.analysis import results as results_lib
from stability.analysis.leaderboard import table as table_lib
from stability.report import leaderboard, page
from stability.report.options import Options
from stability.report.plots import leaderboard as plots
from stability.storage import files, sweeps

ARMS = [
    {'arm': 'AdamW'},
    {'arm': 'no qk-norm', 'model.qk_norm': 'none'},
    {'arm': EVIL, 'optimizer.eps': 1e-9},
]
REPORT = {
    'places': {'no qk-norm': 'attention'},
    'controls': {EVIL: 'tie', 'no qk-norm': 'better'},
}
OPTIONS = Options(figures=('leaderboard_front', 'leaderboard_curves_attention'))


def write(folder, seeds, widths=(16, 64)):
  made_up.write_sweep(folder, widths=widths, interventions=ARMS, seeds=seeds)
  path = folder / 'sweep.json'
  files.write_json(path, files.read_json(path) | {'report': REPORT})
  return folder


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return write(tmp_path_factory.mktemp('sweep'), (0, 1, 2))


@pytest.fixture(scope='module')
def report(workdir):
  return page.write_report(workdir, options=OPTIONS)


@pytest.mark.slow
def test_files(report):
  names = {path.name for path in report.parent.iterdir()}
  assert names >= {'leaderboard.csv', *(f'{name}.svg' for name in OPTIONS.figures)}
  table = pd.read_csv(report.parent / 'leaderboard.csv')
  assert list(table['arm']) == ['AdamW', 'no qk-norm', EVIL] * 2
  for name in (
      *('place', 'parameters', 'best_loss', 'best_learning_rate', 'lr_sensitivity', 'width_02'),
      *('width_05', 'width_10', 'critical_learning_rate', 'headroom', 'loss_at_3x', 'regret'),
      *('loss_at_10x', 'seconds_ratio', 'bytes_ratio', 'inert', 'front', 'loss_verdict'),
      *('headroom_verdict', 'best_loss_low', 'best_loss_high', 'headroom_low'),
  ):
    assert name in table, name
  assert table['loss_verdict'].isna().tolist() == [True, False, False] * 2


@pytest.mark.slow
def test_contents(report):
  shown = Page(report)
  for words in (
      'On the front at 9.2K (best loss, headroom): ',
      'AdamW (baseline)',
      f'Control: {EVIL} is ',
      'Verdicts compare the mean curve',
      'Arms against the baseline: attention',
      'LR sensitivity',
  ):
    assert words in shown.text, words
  sortable = [a for tag, a in shown.elements if tag == 'table' and a.get('class') == 'sortable']
  assert len(sortable) == 3  # also those of LR sensitivity and of all runs
  keys = [attributes['data-key'] for _, attributes in shown.elements if 'data-key' in attributes]
  assert len(keys) == 6 * 20 and 'nan' not in keys
  assert shown.count('script') == 1 and 'src=' not in shown.source
  assert 'LR sensitivity with' not in shown.text  # that finding would name every arm


def test_one_seed_has_no_verdicts(tmp_path):
  workdir = write(tmp_path, (0,), widths=(16,))
  results = results_lib.load_workdir(workdir)
  found = leaderboard.section(results, inert.load(workdir))
  assert (found.table['loss_verdict'] == '').all()
  assert 'regret' not in found.headings and len(found.rows) == 3
  assert not any('than the baseline' in sentence for sentence in found.sentences)
  assert not any(EVIL in sentence and 'Control' in sentence for sentence in found.sentences)


@pytest.mark.parametrize('fields', [['parameters', 'arm'], ['sweep', 'model.width', 'arm']])
def test_figures_without_a_baseline(tmp_path, fields):
  """A size without the first sweep's baseline, or whose baseline does not count."""
  workdir = write(tmp_path, (0,))
  results = results_lib.load_workdir(workdir)
  runs = results.runs.assign(sweep=['A'] * 21 + ['B'] * 21)
  first = runs['arm'].eq('AdamW') & runs['parameters'].eq(runs['parameters'].min())
  runs.loc[first, ['status', 'final_loss']] = ['failed', float('nan')]
  groups = [name for name in fields if name in ('sweep', 'arm')]
  kept = [name for name in runs if '.' not in name or name in fields]
  found = leaderboard.section(
      dataclasses.replace(results, runs=runs[kept], groups=groups, sizes=[])
  )
  assert found.table['is_baseline'].sum() == 2
  assert all(plot.draw() for plot in found.plots)


def test_mean_of_fewer_seeds_is_hollow(tmp_path):
  write(tmp_path, (0, 1), widths=(16,))
  results = results_lib.load_workdir(tmp_path)
  runs = results.runs
  lacking = runs['arm'].eq('no qk-norm') & runs['seed'].eq(1) & runs['learning_rate'].eq(1e-2)
  runs.loc[lacking, ['status', 'final_loss']] = ['missing', float('nan')]
  section = leaderboard.section(results, inert.load(tmp_path))
  (plot,) = (plot for plot in section.plots if plot.name == 'leaderboard_curves_attention')
  figure = plot.draw()
  hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == 'white']
  (rate,) = [list(line.get_xdata()) for line in hollow if len(line.get_xdata())]
  assert rate == [1e-2]
  assert figure.legends[0].get_texts()[-1].get_text() == 'seeds missing'


@pytest.mark.parametrize('count, said', [(8, 'a0; a1; a2'), (9, '9 of 10 arms, see the table')])
def test_sentences_list_few_arms(count, said):
  arms = ['baseline', *(f'a{n}' for n in range(10))]
  table = pd.DataFrame({'arm': arms, 'parameters': 9216.0, 'front': False, 'inert': False})
  table = table.assign(
      is_baseline=table['arm'] == 'baseline',
      loss_verdict=['', *('worse' if n < count else 'tie' for n in range(10))],
      headroom_verdict='',
      control='',
      missing=0,
      censored='',
      best_loss=2.0,
      edge='',
  )
  (sentence,) = leaderboard._sentences(table)
  assert sentence.startswith(f'Worse than the baseline in loss at 9.2K: {said}')


def test_unfinished(tmp_path):
  """What waits is counted; no arm needs more rates, and no control more seeds, before it ends."""
  made_up.write_sweep(
      tmp_path, widths=(16,), interventions=ARMS, seeds=(0, 1), leave_out=(*range(5, 14), 40, 41)
  )
  path = tmp_path / 'sweep.json'
  files.write_json(path, files.read_json(path) | {'report': REPORT})
  found = leaderboard.section(results_lib.load_workdir(tmp_path))
  sentences = '\n'.join(found.sentences)
  assert 'more rates' not in sentences and 'more seeds' not in sentences
  assert f'Runs without a result at 9.2K: AdamW (9); {EVIL} (2).' in sentences
  assert f'Control: {EVIL} is undecided at 9.2K, without 2 of its runs.' in sentences


def test_a_bound_is_marked():
  row = {'headroom': 12.0, 'headroom_low': 9.0, 'headroom_high': 14.0}
  bound = pd.Series(row | {'censored': 'width_10>= headroom>='})
  assert leaderboard._number(bound, 'headroom') == '\u2265 12 (9-14)'
  assert leaderboard._number(pd.Series({'headroom': 12.0, 'censored': ''}), 'headroom') == '12'


def test_only_with_arms(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,))
  assert leaderboard.section(results_lib.load_workdir(tmp_path)) is None
  empty = tmp_path / 'empty'
  made_up.write_sweep(
      empty, widths=(16,), interventions=ARMS, seeds=(0,), leave_out=tuple(range(21))
  )
  assert leaderboard.section(results_lib.load_workdir(empty)) is None
  assert sweeps.read_sweep(empty).report == {}


def test_all_optima_at_an_end(tmp_path):
  """There is no headroom to draw; sentences say what is needed."""
  made_up.write_sweep(
      tmp_path, widths=(16,), interventions=ARMS, seeds=(0,), rates=(1e-2, 1e-1)
  )
  found = leaderboard.section(results_lib.load_workdir(tmp_path))
  assert 'leaderboard_front' not in [plot.name for plot in found.plots]
  assert any('AdamW needs more rates at' in sentence for sentence in found.sentences)


def test_front_ends_with_the_arms_that_have_headroom(tmp_path):
  results = results_lib.load_workdir(write(tmp_path, (0,), widths=(16,)))
  table = table_lib.leaderboard(results)
  table.loc[1, 'headroom'], table.loc[1, 'best_loss'] = np.nan, table['best_loss'].max() + 0.2
  (axis,) = plots.front(results, table).axes
  assert axis.get_xlim()[1] < 0.1
