"""Results from the files of a sweep and from CSV files, and the input that is refused."""

import re

import pandas as pd
import pytest
from helpers import made_up

from stability import hyper
from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.errors import BadInput
from stability.storage import results_csv, run_files, sweeps


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sweep')
  made_up.write_sweep(folder, widths=(16, 64), leave_out=(0,))
  return folder


def write(tmp_path, text):
  path = tmp_path / 'results.csv'
  path.write_text(text)
  return path


def test_workdir_has_a_row_per_run(workdir):
  results = results_lib.load_workdir(workdir)
  assert results.groups == ['model.qk_norm']
  assert results.sizes == ['model.width']
  assert list(results.runs['run']) == list(sweeps.read_sweep(workdir).runs)
  assert list(results.runs['status'][:2]) == ['missing', 'done']
  assert results.runs['final_loss'].isna().sum() == 1 + 2  # missing, and diverged
  assert results.runs['parameters'].iloc[-1] == 12 * 3 * 64**2


def test_group_by_takes_the_shape_too(workdir):
  results = results_lib.load_csv(
      results_csv.write_results(workdir), group_by=['model.width', 'model.qk_norm']
  )
  assert (results.groups, results.sizes) == (['model.width', 'model.qk_norm'], [])


def test_curves_have_a_row_per_logged_step(workdir):
  curves = results_lib.load_curves(workdir)
  names = list(sweeps.read_sweep(workdir).runs)
  assert names[0] not in set(curves['run'])
  one = curves[curves['run'] == names[1]]
  assert list(one['step']) == list(range(10, made_up.STEPS + 1, 10))
  lines = run_files.read_metrics(run_files.run_dir(workdir, names[1]))
  assert one['loss'].iloc[3] == lines[3]['loss']
  assert one[results_lib.LOGIT].iloc[3] == lines[3]['block_0/attention_logit_max']
  assert one[results_lib.LOGIT].isna().iloc[0]  # no probe at that step
  diverged = curves[curves['run'] == names[-1]]
  assert diverged['loss'].isna().any()  # null in the file


def test_curves_have_the_requested_probes_only(workdir):
  names = list(sweeps.read_sweep(workdir).runs)
  curves = results_lib.load_curves(workdir, ['gradient_norm', 'log_z', 'gradient_norm'])
  assert list(curves) == ['run', 'step', 'loss', 'gradient_norm', 'log_z']
  assert set(curves['gradient_norm']) == {0.5} and curves['log_z'].isna().all()
  assert curves['run'].dtype == 'category' and list(curves['run'].cat.categories) == names


def test_mean_at_the_end():
  curves = pd.DataFrame({
      'run': ['a'] * 4 + ['b'] * 3 + ['c'],
      'step': [10, 96, 98, 100, 10, 20, 30, 10],
      'log_z': [9.0, 1.0, 2.0, None, 7.0, 5.0, None, None],
  })  # fmt: skip
  # a: 98 is its last measured step, so from 93.1 on; b ended at 20; c has none.
  assert results_lib.at_end(curves, 'log_z').to_dict() == {'a': 1.5, 'b': 5.0}


def test_config_fields_are_columns(workdir):
  runs = results_lib.load_workdir(workdir).runs
  assert set(runs['schedule.warmup_steps']) == {25} and set(runs['optimizer.eps']) == {1e-8}
  assert list(runs['model.width']) == [16] * 28 + [64] * 28
  assert not runs.columns.duplicated().any()


def test_sweep_that_has_not_started(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), leave_out=tuple(range(28)))
  assert results_lib.load_curves(tmp_path).empty
  assert set(results_lib.load_workdir(tmp_path).runs['status']) == {'missing'}


def test_results_csv_equals_the_workdir(workdir):
  ours = results_lib.load_workdir(workdir)
  read = results_lib.load_csv(results_csv.write_results(workdir))
  assert (read.groups, read.sizes) == (ours.groups, ours.sizes)
  pd.testing.assert_frame_equal(
      lr_sensitivity.lr_sensitivity(read), lr_sensitivity.lr_sensitivity(ours), check_dtype=False
  )


def test_data_seed_is_an_intervention_and_shape_is_not(tmp_path):
  made_up.write_sweep(
      tmp_path, widths=(16,), seeds=(0,), interventions=hyper.sweep('data.seed', [0, 1])
  )
  results = results_lib.load_workdir(tmp_path)
  assert (results.groups, results.sizes) == (['data.seed'], ['model.width'])


def test_columns_of_a_csv_file(tmp_path):
  path = write(
      tmp_path,
      '\ufefflearning_rate, final_loss ,method,parameters,seed,initial_loss,status,opt.eps\n'
      '1e-3,3.5,z-loss,16e6,0,10.8,,1e-8\n'
      '\n'
      '3e-3,nan,z-loss,16e6,0,10.8,,1e-8\n'
      '1e-2,12,z-loss,16e6,0,10.8,,1e-8\n'
      '3e-2,,z-loss,16e6,0,,failed,1e-8\n',
  )
  results = results_lib.load_csv(path, group_by=['method'])
  assert results.groups == ['method']
  assert list(results.runs['status']) == ['done', 'diverged', 'diverged', 'failed']
  assert list(results.runs['run']) == ['line 2', 'line 4', 'line 5', 'line 6']
  assert list(results.runs['parameters']) == [16_000_000] * 4
  assert results_lib.load_csv(path).groups == ['opt.eps']
  assert list(results_lib.load_csv(path).runs['opt.eps']) == [1e-8] * 4


def test_required_columns(tmp_path):
  path = write(tmp_path, 'learning_rate,final_loss\n0.001,3\n0.01,4\n')
  results = results_lib.load_csv(path, initial_loss=3.5)
  assert list(results.runs['status']) == ['done', 'diverged']
  assert results.runs['parameters'].isna().all()
  assert results.groups == [] and results.sizes == []


def test_initial_loss_replaces_the_column(tmp_path):
  path = write(tmp_path, 'learning_rate,final_loss,initial_loss\n0.1,3,2\n')
  assert list(results_lib.load_csv(path, initial_loss=4.0).runs['initial_loss']) == [4.0]


HEADER = 'learning_rate,final_loss,initial_loss'
REFUSED = {
    'empty': ('', {}, 'contains no runs'),
    'header only': (HEADER + '\n', {}, 'contains no runs'),
    'no final_loss': ('learning_rate,loss\n1,2\n', {}, 'no column final_loss.*learning_rate, loss'),
    'neither required': ('a,b\n1,2\n', {}, 'no column learning_rate and final_loss'),
    'no initial_loss': ('learning_rate,final_loss\n1,2\n', {}, 'initial_loss.*--initial_loss'),
    'twice': (HEADER + ',learning_rate\n1,2,3,4\n', {}, "more than one column 'learning_rate'"),
    'ragged': (HEADER + '\n1,2,3\n1,2\n', {}, 'line 3: has 2 cells, the header 3'),
    'quotes': (HEADER + '\n"1"x,2,3\n', {}, 'not a CSV file'),
    'text rate': (HEADER + '\n1,2,3\nfast,2,3\n', {}, "line 3: learning_rate='fast'.*above 0"),
    'no rate': (HEADER + '\n,2,3\n', {}, "line 2: learning_rate=''"),
    'zero rate': (HEADER + '\n0,2,3\n', {}, "line 2: learning_rate='0'"),
    'negative rate': (HEADER + '\n-1e-3,2,3\n', {}, "learning_rate='-1e-3'"),
    'infinite rate': (HEADER + '\ninf,2,3\n', {}, "learning_rate='inf'"),
    'text loss': (HEADER + '\n1,low,3\n', {}, "line 2: final_loss='low'.*or empty"),
    'no initial': (HEADER + '\n1,2,\n', {}, 'line 2: initial_loss is empty'),
    'infinite initial': (HEADER + '\n1,2,inf\n', {}, "initial_loss='inf'"),
    'huge initial': (HEADER + '\n1,2,1e308\n', {}, "initial_loss='1e308'"),
    'huge final': (HEADER + '\n1,-1e308,3\n', {}, "final_loss='-1e308'"),
    'huge flag': (HEADER + '\n1,2,3\n', {'initial_loss': 1e308}, r'--initial_loss=1e\+308'),
    'huge size': (HEADER + ',parameters\n1,2,3,1e19\n', {}, "parameters='1e19'"),
    'huge seed': (HEADER + ',seed\n1,2,3,1e300\n', {}, "seed='1e300'"),
    'initial flag': (HEADER + '\n1,2,3\n', {'initial_loss': float('nan')}, '--initial_loss=nan'),
    'parameters': (HEADER + ',parameters\n1,2,3,1.5\n', {}, "parameters='1.5'.*whole"),
    'seed': (HEADER + ',seed\n1,2,3,-1\n', {}, "seed='-1'"),
    'status': (HEADER + ',status\n1,2,3,ok\n', {}, "line 2: status='ok'.*done, diverged"),
    'group': (HEADER + ',method\n1,2,3,a\n', {'group_by': ['methd']}, 'nearest is method'),
    'group rate': (HEADER + '\n1,2,3\n', {'group_by': ['learning_rate']}, 'cannot be an interv'),
    'duplicates': (HEADER + ',m\n1,2,3,a\n2,2,3,a\n1,4,3,b\n', {}, 'lines 2 and 4: have the same'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused_in_one_line(tmp_path, case):
  text, options, words = REFUSED[case]
  path = write(tmp_path, text)
  with pytest.raises(BadInput) as error:
    results_lib.load_csv(path, **options)
  message = str(error.value)
  assert re.search(words, message), message
  assert '\n' not in message and ('results.csv' in message or '--' in message)


def test_unreadable_file_is_refused(tmp_path):
  (tmp_path / 'image.csv').write_bytes(b'\x89PNG\r\n\x1a\n\xff\xfe')
  for name, words in (('image.csv', 'not a CSV'), ('none.csv', 'No such file'), ('.', 'director')):
    with pytest.raises(BadInput, match=words):
      results_lib.load_csv(tmp_path / name)
