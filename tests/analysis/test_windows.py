"""LR sensitivity over windows of learning rates, and sweeps in which it is not comparable."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from absl import flags
from helpers import made_up

from launch import report
from launch.common import app
from stability.analysis import lr_sensitivity, windows
from stability.analysis import results as results_lib
from stability.errors import BadInput
from stability.report import findings, tables
from stability.storage import sweeps

KIND = 'optimizer.weight_decay_kind'
LOSSES = {  # learning rate -> loss, by kind
    'coupled': {1e-4: 2.5, 3e-4: 2.2, 1e-3: 2.0, 3e-3: 2.1, 1e-2: 2.9},
    'independent': {1e-4: 9.0, 3e-4: 2.4, 1e-3: 2.0, 3e-3: 2.3, 1e-2: 2.6},
}
LOWER, UPPER = (1e-4, 3e-3), (3e-4, 1e-2)


def results_of(*entries, seeds=(0,), **options):
  rows = [
      {
          'run': f'{kind} {rate} {seed}', 'status': 'done', 'parameters': 1000,
          'learning_rate': rate, 'seed': seed, 'initial_loss': 9.5,
          'final_loss': loss + 0.1 * seed * (rate == 1e-4), KIND: kind,
      }
      for kind, losses in LOSSES.items() for rate, loss in losses.items() for seed in seeds
  ]  # fmt: skip
  return results_lib.Results(pd.DataFrame(rows), [KIND], [], entries, **options)


def entry(*limits, kind=None):
  return {'where': {} if kind is None else {KIND: kind}, 'windows': limits}


def rows_of(results):
  return lr_sensitivity.lr_sensitivity(results).set_index(KIND)


def test_lowest_over_windows():
  table = rows_of(results_of(entry(LOWER, UPPER, kind='coupled'), entry(UPPER)))
  # (2.5 + 2.2 + 2.0 + 2.1) / 4 - 2 = 0.2 against (2.2 + 2.0 + 2.1 + 2.9) / 4 - 2 = 0.3
  assert table.loc['coupled', 'lr_sensitivity'] == pytest.approx(0.2)
  assert table.loc['coupled', 'window'] == '0.0001 to 0.003'
  assert table.loc['coupled', 'learning_rates'] == 4
  # 1e-4, where the loss is 9, lies in no window of this kind.
  assert table.loc['independent', 'lr_sensitivity'] == pytest.approx(0.325)
  assert table.loc['independent', 'window'] == '0.0003 to 0.01'


def test_no_entry_applies():
  table = rows_of(results_of(entry(LOWER, kind='coupled')))
  assert table.loc['independent', 'lr_sensitivity'] == pytest.approx(18.3 / 5 - 2)
  assert table.loc['independent', 'window'] == 'all'


def test_first_entry_that_applies_counts():
  table = rows_of(results_of(entry(UPPER), entry(LOWER, kind='coupled')))
  assert table.loc['coupled', 'lr_sensitivity'] == pytest.approx(0.3)


def test_missing_counts_runs_within_windows():
  given = results_of(entry(UPPER))
  given.runs.loc[given.runs['learning_rate'] == 1e-4, 'status'] = 'failed'
  assert (rows_of(given)['missing'] == 0).all()
  given.runs.loc[given.runs['learning_rate'] == 3e-4, 'status'] = 'failed'
  assert (rows_of(given)['missing'] == 1).all()


def test_window_with_one_learning_rate_is_ignored():
  given = results_of(entry((1e-4, 3e-4), UPPER))
  given.runs.loc[given.runs['learning_rate'] == 1e-4, 'status'] = 'missing'
  assert rows_of(given).loc['coupled', 'lr_sensitivity'] == pytest.approx(0.3)
  given = results_of(entry((1e-4, 3e-4)))
  given.runs.loc[given.runs['learning_rate'] == 1e-4, 'status'] = 'missing'
  assert np.isnan(rows_of(given).loc['coupled', 'lr_sensitivity'])


def test_each_resample_takes_its_lowest_window():
  given = results_of(entry(LOWER, UPPER, kind='coupled'), seeds=(0, 8))
  row = rows_of(given).loc['coupled']
  # The second seed adds 0.8 at 1e-4. By itself it has 0.4 in the lower window, 0.3 in the upper.
  # Stretched about 0.3, the lower end would be below 0.
  assert (row['low'], row['high']) == pytest.approx((0.0, 0.3))
  assert row['lr_sensitivity'] == pytest.approx(0.3) and row['window'] in (
      '0.0001 to 0.003', '0.0003 to 0.01'
  )  # fmt: skip


def test_window_includes_its_ends():
  assert windows.inside(3 * 0.1, (1e-3, 0.3)) and windows.inside(1e-3, (1e-3, 0.3))
  assert not windows.inside(0.31, (1e-3, 0.3)) and not windows.inside(9e-4, (1e-3, 0.3))


def test_not_comparable_keeps_the_best_loss():
  results = results_of(not_comparable=KIND)
  table = lr_sensitivity.lr_sensitivity(results)
  assert table[['lr_sensitivity', 'low', 'high']].isna().all(axis=None)
  assert set(table['window']) == {'not comparable'}
  assert list(table['best_loss']) == [2.0, 2.0]
  assert list(tables.sensitivities(results, table)['LR sensitivity']) == ['not comparable'] * 2
  assert findings.on_lr_sensitivity(results, table) is None


def test_tables_name_the_window():
  def text(results):
    return tables.sensitivities(results, lr_sensitivity.lr_sensitivity(results))

  limited = results_of(entry(LOWER, UPPER, kind='coupled'))
  assert list(text(limited)['over LRs']) == ['0.0001 to 0.003', '']
  assert 'over LRs' not in text(results_of())


# From a config file to the report.

SWEEP = f"""
from configs import base
from stability import hyper
get_config = base.get_config
def get_sweep(scale='cpu'):
  return hyper.product([
      hyper.sweep('{KIND}', ['independent', 'coupled']),
      hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 1e-1]),
      hyper.sweep('seed', [0, 1]),
  ])
def get_report(scale='cpu'):
  return """
GOOD = {
    'windows': [{'where': {KIND: 'coupled'}, 'windows': [[1e-3, 1e-2], [1e-2, 1e-1]]}],
    'not_comparable': KIND,
}


def load(tmp_path, text, *, single=False):
  path = tmp_path / 'experiment.py'
  path.write_text(SWEEP + text)
  flag_values = flags.FlagValues()
  app.define_config(flag_values)
  flag_values(['program', f'--config={path}'])
  return app.load_sweep(flag_values, single=single)


def test_config_file_sets_windows(tmp_path):
  sweep = load(tmp_path, repr(GOOD))
  assert sweep.report == GOOD
  made_up.write_runs(tmp_path / 'run', sweep.runs)
  written = sweeps.read_sweep(tmp_path / 'run')
  sweeps.write_sweep(tmp_path / 'run', dataclasses.replace(written, report=sweep.report))
  results = results_lib.load_workdir(tmp_path / 'run')
  assert list(results.windows) == GOOD['windows'] and results.not_comparable == KIND


def test_single_run_has_no_windows(tmp_path):
  assert load(tmp_path, repr(GOOD), single=True).report == {}


def test_no_windows_by_default(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,))
  assert sweeps.read_sweep(tmp_path).report == {}
  results = results_lib.load_workdir(tmp_path)
  assert not results.windows and results.not_comparable is None


def one(**change):
  return repr({'windows': [GOOD['windows'][0] | change]})


REFUSED = {
    'nothing': ('None', 'get_report returns a NoneType, must be a dict'),
    'another key': (
        "{'window': []}",
        "'window': must be one of windows, not_comparable, places, controls",
    ),
    'places': ("{'places': ['Muon']}", r"places=\['Muon'\]: must be a dict of arm -> text"),
    'a place': ("{'places': {'Muon': 1}}", "places: 'Muon': 1: must be a text"),
    'a control': (
        "{'controls': {'Muon': 'good'}}",
        "controls: 'Muon': 'good': must be one of better, worse, tie, inert",
    ),
    'raises': ('1 // 0', 'ZeroDivisionError'),
    'windows no list': ("{'windows': 3}", 'windows=3: must be a list'),
    'entry no dict': ("{'windows': [3]}", r'windows\[0\]=3: must be a dict of where and windows'),
    'entry of more': (one(extra=1), r'windows\[0\].*must be a dict of where and windows'),
    'where no dict': (one(where=[KIND]), 'where=.*must be a dict'),
    'where unknown': (one(where={'optimizer.eps': 1}), "'optimizer.eps': must be a field that the"),
    'where seed': (one(where={'seed': 0}), "'seed': must be a field"),
    'where no value': (one(where={KIND: 'coupeld'}), f'where: config.{KIND}=.*must be one of'),
    'no windows': (one(windows=[]), 'must be a list of'),
    'one number': (one(windows=[[1e-3]]), 'must be two learning rates'),
    'wrong order': (one(windows=[[1e-1, 1e-3]]), 'the lower one first'),
    'text': (one(windows=[['1e-3', '1e-1']]), 'must be two learning rates'),
    'nothing in it': (one(windows=[[2e-3, 3e-2]]), 'holds fewer than two learning rates'),
    'not swept': ("{'not_comparable': 'optimizer.eps'}", "not_comparable: 'optimizer.eps': must"),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused_in_one_line(case, tmp_path):
  text, words = REFUSED[case]
  with pytest.raises(BadInput, match=words) as error:
    load(tmp_path, text)
  assert '\n' not in str(error.value) and 'experiment.py' in str(error.value)


def test_ends_are_inside_whatever_their_last_digits():
  ends = 0.0010000000474974513, 0.09999999403953552
  for rate in (1e-3, 0.00100000, 1e-1, 0.1000001, 3e-2):
    assert windows.inside(rate, ends)
  assert not windows.inside(0.99999e-3, ends) and not windows.inside(0.10001, ends)


def test_where_is_the_number_of_a_run(tmp_path):
  """A value given as float32 is the same number, and is stored as in the configs."""
  text = """
{'windows': [{'where': {'objective.z_loss': FLOAT32}, 'windows': [[1e-3, 1e-1]]}]}
"""
  swept = ("'{KIND}', ['independent', 'coupled']", "'objective.z_loss', [1e-4, 1e-3]")
  experiment = SWEEP.replace(*(part.format(KIND=KIND) for part in swept)) + text.strip()
  path = tmp_path / 'experiment.py'
  path.write_text(f'FLOAT32 = 9.999999747378752e-05\n{experiment}')
  flag_values = flags.FlagValues()
  app.define_config(flag_values)
  flag_values(['program', f'--config={path}'])
  report_ = app.load_sweep(flag_values).report
  assert report_['windows'][0]['where'] == {'objective.z_loss': 1e-4}
  assert windows.find(report_['windows'], {'objective.z_loss': 1e-4}) == [(1e-3, 1e-1)]
  path.write_text(path.read_text().replace('9.999999747378752e-05', '2e-4'))
  with pytest.raises(BadInput, match='no run of the sweep has these values'):
    app.load_sweep(flag_values)


# From flags, for a CSV file.


@pytest.fixture
def csv_file(tmp_path):
  path = tmp_path / 'results.csv'
  results_of().runs.to_csv(path, index=False)
  return path


def run_report(csv_file, *arguments):
  output = csv_file.parent / 'report'
  code = app.execute(
      report.main,
      report.FLAGS,
      ['report', f'--results={csv_file}', f'--output={output}', *arguments],
  )
  return code, output


def test_windows_by_flags(csv_file):
  limits = ['--window=1e-4,3e-3', '--window=3e-4,1e-2', f'--window_where={KIND}=coupled']
  code, output = run_report(csv_file, *limits)
  assert code == 0
  written = pd.read_csv(output / 'lr_sensitivity.csv').set_index(KIND)
  assert written.loc['coupled', 'lr_sensitivity'] == pytest.approx(0.2)
  assert written.loc['independent', 'window'] == 'all'
  code, output = run_report(csv_file, '--window=3e-4,1e-2')
  assert set(pd.read_csv(output / 'lr_sensitivity.csv')['window']) == {'0.0003 to 0.01'}


def test_not_comparable_by_flag(csv_file):
  code, output = run_report(csv_file, f'--not_comparable={KIND}')
  assert code == 0
  assert pd.read_csv(output / 'lr_sensitivity.csv')['lr_sensitivity'].isna().all()
  shown = (output / 'index.html').read_text()
  assert f'{KIND} changes what a learning rate means' in shown and 'not comparable' in shown


def test_window_on_a_numeric_column(csv_file):
  runs = results_of().runs.rename(columns={KIND: 'optimizer.eps'})
  runs['optimizer.eps'] = runs['optimizer.eps'].map({'coupled': 1e-8, 'independent': 1e-6})
  runs.to_csv(csv_file, index=False)
  _, output = run_report(csv_file, '--window=1e-4,3e-3', '--window_where=optimizer.eps=0.00000001')
  windows = pd.read_csv(output / 'lr_sensitivity.csv').set_index('optimizer.eps')['window']
  assert windows.to_dict() == {1e-8: '0.0001 to 0.003', 1e-6: 'all'}


FLAGS_REFUSED = {
    'one number': (['--window=1e-3'], '--window=1e-3: must be LOW,HIGH'),
    'words': (['--window=low,high'], '--window=low,high: must be LOW,HIGH'),
    'order': (['--window=1,0.1'], '--window=1,0.1: must be two learning rates, the lower'),
    'where alone': ([f'--window_where={KIND}=coupled'], '--window_where: can only be used with'),
    'where no pair': (['--window=1,2', '--window_where=a'], '--window_where=a: must be COLUMN='),
    'where no column': (['--window=1,2', '--window_where=a=b'], f'must be one of {KIND}'),
    'where no value': (['--window=1,2', f'--window_where={KIND}=b'], 'no row of'),
    'not comparable': (['--not_comparable=a'], f'--not_comparable=a: must be one of {KIND}'),
}


@pytest.mark.parametrize('case', FLAGS_REFUSED)
def test_flags_refused(case, csv_file, capsys):
  arguments, words = FLAGS_REFUSED[case]
  code, output = run_report(csv_file, *arguments)
  out, err = capsys.readouterr()
  assert (code, out) == (2, '') and words in err and err.count('\n') == 1
  assert not output.exists()


@pytest.mark.parametrize('name', ['window=1,2', 'window_where=a=b', 'not_comparable=a'])
def test_flags_need_results(name, capsys):
  assert app.execute(report.main, report.FLAGS, ['report', '--workdir=runs', f'--{name}']) == 2
  assert 'can only be used with --results' in capsys.readouterr().err


# The final losses published with arXiv 2601.02031, whose models have qk-layernorm and no weight
# decay, and their LR sensitivity, computed independently as the plain mean.

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
PUBLISHED = {
    (16, 0.0): ((3.961, 3.881, 3.850, 3.841, 3.857, 4.269, 5.065), 0.262),
    (16, 1e-4): ((3.961, 3.878, 3.848, 3.836, 3.841, 3.854, 3.955), 0.046),
    (29, 0.0): ((3.688, 3.614, 3.591, 3.592, 3.596, 4.298, 5.107), 0.336),
    (29, 1e-4): ((3.687, 3.613, 3.585, 3.586, 3.580, 3.599, 3.606), 0.028),
    (57, 0.0): ((3.442, 3.387, 3.372, 3.369, 3.397, 3.614, 6.050), 0.435),
    (57, 1e-4): ((3.442, 3.385, 3.367, 3.366, 3.382, 3.452, 4.578), 0.201),
    (109, 0.0): ((3.261, 3.211, 3.202, 3.208, 3.230, 3.344, 5.023), 0.295),
    (109, 1e-4): ((3.261, 3.211, 3.202, 3.204, 3.230, 3.279, 3.735), 0.101),
    (221, 0.0): ((3.090, 3.050, 3.050, 3.076, 3.153, 3.305, 5.099), 0.353),
    (221, 1e-4): ((3.089, 3.050, 3.049, 3.069, 3.091, 3.173, 3.478), 0.094),
}


def test_published_losses_with_and_without_z_loss(csv_file, capsys):
  rows = [
      f'{millions}000000,{z_loss},0,{rate},{loss}'
      for (millions, z_loss), (losses, _) in PUBLISHED.items()
      for rate, loss in zip(RATES, losses, strict=True)
  ]
  header = 'parameters,objective.z_loss,optimizer.weight_decay,learning_rate,final_loss'
  csv_file.write_text('\n'.join([header, *rows]))
  code, output = run_report(csv_file, '--initial_loss=10.83')
  assert code == 0
  table = pd.read_csv(output / 'lr_sensitivity.csv')
  for row in table.itertuples(index=False):
    _, expected = PUBLISHED[row.parameters // 10**6, row[0]]
    assert row.lr_sensitivity == pytest.approx(expected, abs=1e-3)
  assert len(table) == len(PUBLISHED)
  judged = pd.read_csv(output / 'claims.csv')
  z_loss = judged[judged['claim'].str.contains('z-loss lowers LR sensitivity')].iloc[0]
  assert (z_loss['verdict'], z_loss['n']) == ('holds', 70)
  assert z_loss['effect'] == pytest.approx(0.435 / 0.201, rel=0.01)  # at 57M
  printed = capsys.readouterr().out
  assert 'Claims: 2 hold, 1 does not hold, 1 undecided' in printed
