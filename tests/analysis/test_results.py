"""Results from the files of a sweep and from CSV files, and the input that is refused."""

import re

import pandas as pd
import pytest
from helpers import made_up

from stability import hyper
from stability.analysis import lr_sensitivity, results_table
from stability.analysis import results as results_lib
from stability.errors import BadInput
from stability.storage import files, results_csv, run_files, sweeps


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
  results = results_table.load_csv(
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
  read = results_table.load_csv(results_csv.write_results(workdir))
  assert (read.groups, read.sizes) == (ours.groups, ours.sizes)
  pd.testing.assert_frame_equal(
      lr_sensitivity.lr_sensitivity(read), lr_sensitivity.lr_sensitivity(ours), check_dtype=False
  )


def test_forks_of_a_csv_file_are_left_out(tmp_path):
  """They have no label of their own: at an equal learning rate, one would count as a duplicate."""
  names = made_up.write_sweep(tmp_path, widths=(16,))
  run = run_files.run_dir(tmp_path, names[0])
  config = run_files.read_config(run)
  files.write_json(tmp_path / 'runs' / 'other' / 'config.json', config)
  sweeps.write_fork(tmp_path, 'other', sweeps.Fork(names[0], 30, {}))
  path = results_csv.write_results(tmp_path)
  assert 'other' in path.read_text()
  read = results_table.load_csv(path)
  assert list(read.runs['run']) == names
  assert read.notes == ('1 of its rows are forks, which are in no comparison, and left out',)
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(lines[0] + lines[-1])
  with pytest.raises(BadInput, match='contains no runs but forks'):
    results_table.load_csv(path)


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
  results = results_table.load_csv(path, group_by=['method'])
  assert results.groups == ['method']
  assert list(results.runs['status']) == ['done', 'diverged', 'diverged', 'failed']
  assert list(results.runs['run']) == ['line 2', 'line 4', 'line 5', 'line 6']
  assert list(results.runs['parameters']) == [16_000_000] * 4
  assert results_table.load_csv(path).groups == ['opt.eps']
  assert list(results_table.load_csv(path).runs['opt.eps']) == [1e-8] * 4
  path = write(tmp_path, path.read_text().replace('method', 'arm'))
  assert results_table.load_csv(path).groups == ['arm', 'opt.eps']


def test_required_columns(tmp_path):
  path = write(tmp_path, 'learning_rate,final_loss\n0.001,3\n0.01,4\n')
  results = results_table.load_csv(path, initial_loss=3.5)
  assert list(results.runs['status']) == ['done', 'diverged']
  assert results.runs['parameters'].isna().all()
  assert results.groups == [] and results.sizes == []


def test_initial_loss_replaces_the_column(tmp_path):
  path = write(tmp_path, 'learning_rate,final_loss,initial_loss\n0.1,3,2\n')
  assert list(results_table.load_csv(path, initial_loss=4.0).runs['initial_loss']) == [4.0]


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
    results_table.load_csv(path, **options)
  message = str(error.value)
  assert re.search(words, message), message
  assert '\n' not in message and ('results.csv' in message or '--' in message)


def test_unreadable_file_is_refused(tmp_path):
  (tmp_path / 'image.csv').write_bytes(b'\x89PNG\r\n\x1a\n\xff\xfe')
  for name, words in (('image.csv', 'not a CSV'), ('none.csv', 'No such file'), ('.', 'director')):
    with pytest.raises(BadInput, match=words):
      results_table.load_csv(tmp_path / name)


@pytest.mark.parametrize(
    'text',
    [
        'Name,lr,val/loss\na,1e-3,3\n',
        'learning_rate;final_loss\n1e-3;3\n',
        f'{HEADER},parameters\n1e-3,3,5,70M\n',
        f'{HEADER},status\n1e-3,3,5,finished\n',
        f'{HEADER}\n1e-3,3,5\n\xff',
    ],
)
def test_tables_of_other_trainers(tmp_path, text):
  path = tmp_path / 'results.csv'
  path.write_bytes(text.encode('latin-1'))
  with pytest.raises(BadInput, match=r'; python -m launch\.import_runs --runs=.* reads tables of'):
    results_table.load_csv(path)


def test_rows_of_empty_cells(tmp_path):
  path = write(tmp_path, f'{HEADER}\n1,2,3\n , ,\n2,2,3\n,,\n')
  assert list(results_table.load_csv(path).runs['run']) == ['line 2', 'line 4']


# Numbers that differ in the last digits only.

F32 = {1e-3: '0.0010000000474974513', 1e-2: '0.009999999776482582', 1e-1: '0.10000000149011612'}


def rows(*lines, columns='learning_rate,final_loss,initial_loss,seed'):
  return '\n'.join([columns, *lines]) + '\n'


def test_seeds_logged_through_float32_share_their_learning_rates(tmp_path):
  losses = {1e-3: 3.2, 1e-2: 3.0, 1e-1: 4.0}
  lines = [f'{rate},{loss},5.5,0' for rate, loss in losses.items()]
  lines += [f'{F32[rate]},{loss + 0.1},5.5,1' for rate, loss in losses.items()]
  path = write(tmp_path, rows(*lines))
  for windows in ((), [(1e-3, 1e-1)]):
    results = results_table.load_csv(path, windows=windows)
    (row,) = lr_sensitivity.lr_sensitivity(results).to_dict('records')
    assert (row['learning_rates'], row['seeds']) == (3, 2)
    assert row['lr_sensitivity'] == pytest.approx(0.4)
  assert results.notes == (
      'learning_rate: numbers that differ in the last digits only are taken as one:'
      ' 0.001 = 0.0010000000474974513, 0.01 = 0.009999999776482582, 0.1 = 0.10000000149011612',
  )


def test_note_is_short(tmp_path):
  lines = [f'{rate},3,5.5,{seed}' for rate in (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
           for seed, rate in enumerate([rate, rate * (1 + 1e-7)])]  # fmt: skip
  (note,) = results_table.load_csv(write(tmp_path, rows(*lines))).notes
  assert note.count(' = ') == 3 and note.endswith(', and 2 more')


def test_no_note_on_other_ways_to_write_a_number(tmp_path):
  results = results_table.load_csv(write(tmp_path, rows('1e-3,3,5.5,0', '0.0010,3,5.5,1')))
  assert results.notes == () and set(results.runs['learning_rate']) == {1e-3}


def test_window_holds_its_ends_in_float32_alone(tmp_path):
  path = write(tmp_path, rows(*(f'{rate},3,5.5,0' for rate in F32.values())))
  results = results_table.load_csv(path, windows=[(1e-3, 1e-1)])
  assert list(results.runs['learning_rate']) == [1e-3, 1e-2, 1e-1]
  assert lr_sensitivity.lr_sensitivity(results)['learning_rates'].tolist() == [3]


def test_a_run_given_twice_is_refused(tmp_path):
  path = write(tmp_path, rows('0.001,3.2,5.5,0', f'{F32[1e-3]},3.2,5.5,0', '0.01,3,5.5,0'))
  with pytest.raises(BadInput, match=r'lines 2 and 3: have the same.*: 0\.001 = 0\.0010000'):
    results_table.load_csv(path)


def test_rows_that_are_equal_are_refused(tmp_path):
  path = write(tmp_path, rows('0.01,3,5.5,0', '0.001,3.2,5.5,0', '0.001,3.2,5.5,0'))
  with pytest.raises(BadInput, match=r'lines 3 and 4: are equal; remove one of them'):
    results_table.load_csv(path)


def test_diverged_rows_with_a_loss_below_the_initial_one(tmp_path):
  columns = 'learning_rate,final_loss,initial_loss,status'
  lines = ['1e-3,3.5,5,done', '1e-2,2.5,5,diverged', '1e-1,6,5,diverged', '1,2,5,stopped']
  results = results_table.load_csv(write(tmp_path, rows(*lines, columns=columns)))
  assert results.runs['final_loss'].fillna(-1).tolist() == [3.5, -1, 6, 2]
  (note,) = results.notes
  assert note.startswith('1 of its rows are diverged, with a final_loss below the initial one')


@pytest.mark.parametrize('name', ['objective.z_loss', 'optimizer.eps', 'optimizer.weight_decay'])
def test_swept_numbers_do_not_split(name, tmp_path):
  cells = ['0', '1e-4', '9.999999747378752e-05', '0.000100000', '0.0', '9.99999974738e-05']
  columns = f'learning_rate,final_loss,initial_loss,seed,{name}'
  lines = [f'{rate},3,5.5,{i},{cell}' for rate in (1e-3, 1e-2) for i, cell in enumerate(cells)]
  results = results_table.load_csv(write(tmp_path, rows(*lines, columns=columns)))
  assert set(results.runs[name]) == {0.0, 1e-4}  # 1e-4 exactly, as claims compare with it
  assert len(lr_sensitivity.lr_sensitivity(results)) == 2
  (note,) = results.notes
  assert note.startswith(f'{name}: ')


def test_paper_value_is_matched_exactly(tmp_path):
  columns = 'learning_rate,final_loss,initial_loss,seed,optimizer.eps'
  lines = ['1e-3,3,5.5,0,1.000003e-08', '1e-3,3,5.5,0,1e-06']
  results = results_table.load_csv(write(tmp_path, rows(*lines, columns=columns)))
  assert list(results.runs['optimizer.eps']) == [1e-8, 1e-6]


def test_equal_cells_of_a_column_with_words(tmp_path):
  """A column of numbers and words is text, in which equal numbers are the same text."""
  columns = 'learning_rate,final_loss,initial_loss,seed,cap'
  cells = ['none', '50', '50.0', '0.1', '0.10000000149011612']
  lines = [f'1e-3,3,5.5,{i},{cell}' for i, cell in enumerate(cells)]
  results = results_table.load_csv(write(tmp_path, rows(*lines, columns=columns)), group_by=['cap'])
  assert list(results.runs['cap']) == ['none', '50', '50', '0.1', '0.1']
  assert results.notes == (
      'cap: numbers that differ in the last digits only are taken as one:'
      ' 0.1 = 0.10000000149011612',
  )


@pytest.mark.parametrize(
    'cells',
    [
        ['9007199254740992', '9007199254740993'],
        ['9007199254740992', '9007199254740993', '0.5'],
        ['18446744073709551616', '18446744073709551617'],
        ['1000000', '1000001'],
    ],
)
def test_large_integers_stay_apart(cells, tmp_path):
  columns = 'learning_rate,final_loss,initial_loss,seed,steps'
  lines = [f'1e-3,3,5.5,0,{cell}' for cell in cells]
  path = write(tmp_path, rows(*lines, columns=columns))
  results = results_table.load_csv(path, group_by=['steps'])
  assert results.runs['steps'].nunique() == len(cells) and results.notes == ()


def test_parameters_and_seeds_with_a_point(tmp_path):
  columns = 'learning_rate,final_loss,initial_loss,parameters,seed'
  lines = ['1e-3,3,5.5,9216,0', '1e-2,3,5.5,9216.0,0.0']
  results = results_table.load_csv(write(tmp_path, rows(*lines, columns=columns)))
  assert set(results.runs['parameters']) == {9216} and set(results.runs['seed']) == {0}
  path = write(tmp_path, rows(lines[0], '0.001,3,5.5,9216.0,0.0', columns=columns))
  with pytest.raises(BadInput, match='lines 2 and 3: have the same parameters, learning_rate, see'):
    results_table.load_csv(path)


@pytest.mark.parametrize('value', ['50', '50.0', '5e1', '50.0000001'])
@pytest.mark.parametrize('other', ['none', '25'])
def test_window_where_takes_the_same_number(value, other, tmp_path):
  columns = 'learning_rate,final_loss,initial_loss,cap'
  lines = [f'{rate},3,5.5,{cap}' for rate in (1e-3, 1e-2) for cap in (other, '50')]
  results = results_table.load_csv(
      write(tmp_path, rows(*lines, columns=columns)),
      group_by=['cap'],
      windows=[(1e-3, 1e-2)],
      window_where={'cap': value},
  )
  table = lr_sensitivity.lr_sensitivity(results).set_index('cap')
  assert list(table['window']) == ['all', '0.001 to 0.01']


def test_workdir_with_float32_in_sweep_json(tmp_path):
  """A sweep.json of other code may have both; the configs are read as the same numbers."""
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0, 1), rates=(1e-3, 1e-2))
  path = tmp_path / 'sweep.json'
  edited = files.read_json(path)
  for config in edited['runs'].values():
    if config['seed'] == 1:
      rate = config['optimizer']['learning_rate']
      config['optimizer']['learning_rate'] = float(F32[rate])
  files.write_json(path, edited)
  results = results_lib.load_workdir(tmp_path)
  assert set(results.runs['learning_rate']) == {1e-3, 1e-2}
  assert set(results.runs['optimizer.eps']) == {1e-8}
  assert set(lr_sensitivity.lr_sensitivity(results)['learning_rates']) == {2}
