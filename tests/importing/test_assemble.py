import numpy as np
import pandas as pd
import pytest

from stability.errors import BadInput
from stability.importing import assemble, curves, tables
from stability.importing.options import Options
from tests.helpers.imported import assembled, statuses


def grid(**columns):
  """A run per learning rate and method, with other columns."""
  runs = pd.DataFrame({'learning_rate': [1e-3, 1e-2, 1e-3, 1e-2], 'method': [*'aabb']})
  return runs.assign(final_loss=3.0, initial_loss=5.0, params='124M', **columns)


def test_configs_hold_only_what_is_known():
  imported = assembled(grid())
  run = next(iter(imported.runs.values()))
  assert run.config == {'method': 'a', 'optimizer.learning_rate': 1e-3, 'seed': 0}
  assert run.parameters == 124_000_000 and run.result.status == 'done' and run.rows is None
  assert imported.fields == ('method', 'optimizer.learning_rate', 'seed')


@pytest.mark.parametrize(
    ('name', 'values', 'reason'),
    [
        ('config.min_lr', [1e-4, 1e-3, 1e-4, 1e-3], 'determined by the learning rate'),
        ('output', ['w', 'x', 'y', 'z'], 'has a different value in each run'),
        ('other', ['c', 'c', 'd', 'd'], 'determined by method'),
        ('accuracy', [0.1, 0.2, 0.2, 0.3], 'occur at one learning rate only'),
        ('accuracy', [0.1, 'NaN', 0.2, 'NaN'], 'has a different value in each run'),
        ('accuracy', [0.1, '', 0.2, ''], 'has a different value in each run'),
        ('accuracy', [0.1, 0.1, 0.2, None], 'occur at one learning rate only'),
        ('train/loss', [*'xyyx'], None),
        ('summary.best', [1, 1, 2, 2], None),
        ('config.constant', [1, 1, 1, 1], None),
        ('Created', ['1', '1', '2', '2'], None),
    ],
)
def test_columns_that_are_no_arms(name, values, reason):
  imported = assembled(grid(**{name: values}))
  assert imported.fields == ('method', 'optimizer.learning_rate', 'seed')
  if reason:
    assert any(name in note and reason in note for note in imported.notes)


def test_what_follows_the_size_is_no_arm():
  runs = pd.concat([grid(heads=4), grid(heads=8).assign(params='1.3B')])
  assert assembled(runs).fields == ('method', 'optimizer.learning_rate', 'seed')


@pytest.mark.parametrize(
    ('columns', 'group_by', 'said'),
    [
        ({}, None, 'arms: method; --group_by names others'),
        ({}, ('method',), 'arms: method'),
        ({'method': 'a', 'seed': [0, 0, 1, 1]}, None,
         'arms: none found; --group_by names columns that define them'),
        ({'heads': [4, 8, 4, 8]}, None,
         'not an intervention: heads (determined by the learning rate)'),
    ],
)  # fmt: skip
def test_sentences_on_arms(columns, group_by, said):
  assert said in assembled(grid(**columns), group_by=group_by).notes


def test_arms_of_equal_numbers():
  wd = [0.1, 0.1, np.float32(0.1).item(), np.float32(0.1).item()]
  imported = assembled(grid(**{'config.wd': [*wd]}), group_by=('method', 'wd'))
  assert {run.config['wd'] for run in imported.runs.values()} == {0.1}


def test_missing_settings_are_one_value():
  imported = assembled(grid(**{'config.eps': [1e-8, 1e-8, None, None]}), group_by=('eps',))
  values = [run.config['eps'] for run in imported.runs.values()]
  assert values == [1e-8, 1e-8, 'unset', 'unset']


@pytest.mark.parametrize(
    ('group_by', 'message'),
    [
        ('methods', 'nearest first, are method'),
        ('learning_rate', 'cannot be an intervention'),
        ('summary.loss', 'cannot be an intervention'),
        ('one', 'every arm has a single learning rate'),
        ('train_loss', 'cannot be an intervention'),
    ],
)
def test_group_by_is_checked(group_by, message):
  with pytest.raises(BadInput, match=message):
    assembled(grid(one=[*'wxyz'], train_loss=1, **{'summary.loss': 1}), group_by=(group_by,))


@pytest.mark.parametrize(
    ('state', 'loss', 'status'),
    [
        ('finished', 3.0, 'done'),
        ('FINISHED', 5.1, 'diverged'),
        ('finished', None, 'diverged'),
        ('STATUS_SUCCESS', 3.0, 'done'),
        ('crashed', 3.0, 'failed'),
        ('crashed', None, 'failed'),
        ('crashed', 'NaN', 'diverged'),
        ('crashed', 'null', 'failed'),
        ('killed', 3.0, 'stopped'),
        ('killed', 'inf', 'diverged'),
        ('running', 3.0, None),
        ('preempted', 3.0, None),
        ('OUT_OF_MEMORY', 3.0, 'failed'),
        ('CANCELLED by 1000', 3.0, 'stopped'),
        ('', 3.0, 'done'),
        ('', None, 'diverged'),
    ],
)
def test_states(state, loss, status):
  imported = assembled({'lr': [1e-3], 'State': [state], 'loss': [loss], 'initial_loss': [5.0]})
  assert statuses(imported) == [status]
  if state:
    assert any(state in note and (status or 'no result') in note for note in imported.notes)


def test_unknown_state():
  with pytest.raises(BadInput, match="runs, row 0: status='odd': must be one of finished, "):
    assembled(grid(state='odd'))


@pytest.mark.parametrize(
    ('column', 'value', 'message'),
    [
        ('learning_rate', 0, "row 2: learning_rate=0.0: must be a number above 0"),
        ('learning_rate', '1,0', "row 2: learning_rate='1,0': must be a number"),
        ('params', '12 big', "row 2: params='12 big': must be a number of parameters"),
        ('seed', 1.5, 'row 2: seed=1.5: must be a whole number'),
        ('initial_loss', 1e40, 'row 2: initial_loss=1e'),
    ],
)
def test_wrong_cells(column, value, message):
  runs = grid(seed=0).astype(object if isinstance(value, str) else {'seed': float})
  runs.loc[2, column] = value
  with pytest.raises(BadInput, match=message):
    assembled(runs)


def test_columns_of_two_meanings():
  with pytest.raises(BadInput, match='lr, peak_lr could each be learning_rate'):
    assembled({'lr': [1e-4, 1e-4], 'peak_lr': [1e-3, 1e-2], 'loss': 3.0}, initial_loss=5.0)
  runs = {'lr': [1e-3, 1e-2], 'peak_lr': [1e-3, 1e-2], 'loss': 3.0}
  assert len(assembled(runs, initial_loss=5.0).runs) == 2


def test_attempts_at_the_same_run():
  runs = pd.DataFrame({'lr': 1e-3, 'state': ['crashed', 'finished'], 'loss': 3.0})
  runs['name'] = ['a', 'b']
  assert list(assembled(runs, initial_loss=5.0).runs) == ['b']
  with pytest.raises(BadInput, match=r'have the same parameters, learning_rate, seed;.*in gpu'):
    assembled(runs.assign(state='finished', gpu=[*'ab']), initial_loss=5.0)


def test_rows_that_are_equal():
  runs = pd.DataFrame({'lr': [1e-3, 1e-2, 1e-2], 'seed': [0, 1, 1], 'loss': 3.0})
  with pytest.raises(BadInput, match='runs, row 1 and runs, row 2: are equal; remove one'):
    assembled(runs, initial_loss=5.0)
  runs['seed'] = [0, 0, None]
  with pytest.raises(BadInput, match='; seed is empty in runs, row 2: seed 0'):
    assembled(runs, initial_loss=5.0)


def test_attempts_of_which_none_succeeded():
  runs = pd.DataFrame({'lr': [1e-3, 1e-3, 1e-2], 'loss': 3.0, 'name': [*'abc']})
  for states, kept in (('crashed', 'crashed'), 'b'), (('running', 'crashed'), 'a'):
    imported = assembled(runs.assign(state=[*states, 'finished']), initial_loss=5.0)
    assert [*imported.runs] == [kept, 'c'] and imported.left_out & {*'ab'} == {*'ab'} - {kept}
    assert any('trained again: runs, row' in note for note in imported.notes)


def test_arms_at_one_learning_rate_each():
  """A measured column that looks like a setting; the user may still name it."""
  runs = pd.DataFrame({'lr': [1e-4, 1e-3, 1e-2, 1e-4, 1e-3], 'note': [*'abbcd'], 'loss': 3.0})
  runs['seed'] = [0, 0, 0, 1, 1]
  with pytest.raises(BadInput, match='most arms have a single learning rate'):
    assembled(runs, initial_loss=5.0)
  assert len(assembled(runs, initial_loss=5.0, group_by=('note',)).runs) == 5


def test_columns_that_cannot_be_what_they_are_called():
  runs = {'lr': [1e-3, 1e-2, 1e-3, 1e-2], 'loss': 3.0, 'model_size': [*'ssmm']}
  runs |= {'Duration': ['2.3min', '2.3min', '1h', '1h'], 'tokens': '10B'}
  imported = assembled(runs, initial_loss=5.0)
  assert imported.fields[0] == 'model_size' and len(imported.fields) == 3
  assert "model_size is not read as parameters: it has 's'" in imported.notes
  assert "Duration is not read as seconds: it has '2.3min'" in imported.notes
  (result,) = {run.result for run in imported.runs.values()}
  assert (result.parameters, result.tokens, result.seconds) == (None, 10**10, None)
  with pytest.raises(BadInput, match=r"row 0: Duration='2\.3min': must be a number"):
    assembled(runs, initial_loss=5.0, mapping={'seconds': 'Duration'})


def test_a_column_that_the_user_excludes():
  runs = grid().drop(columns='method').assign(params=[1, 1, 2, 2])
  imported = assembled(runs, mapping={'parameters': ''})
  assert 'params' in imported.fields
  assert [run.parameters for run in imported.runs.values()] == [None] * 4


LOGS = {'run': [*'aabb'], 'step': [0, 10, 0, 10], 'loss': [5.0, 3.0, 5.0, 2.0]}


def test_losses_from_curves():
  imported = assembled({'name': ['a', 'b'], 'lr': [1e-3, 1e-2]}, LOGS)
  assert [(r.result.initial_loss, r.result.final_loss) for r in imported.runs.values()] == [
      (5.0, 3.0),
      (5.0, 2.0),
  ]
  assert imported.runs['a'].rows.to_text().splitlines()[1] == '{"step": 10, "loss": 3.0}'


def test_curves_match_ids():
  imported = assembled({'name': ['x', 'x'], 'id': ['a', 'b'], 'lr': [1e-3, 1e-2]}, LOGS)
  assert list(imported.runs) == ['x,a', 'x,b']
  assert [run.result.final_loss for run in imported.runs.values()] == [3.0, 2.0]
  with pytest.raises(BadInput, match="are both named 'a'"):
    assembled({'name': ['a', 'a'], 'lr': [1e-3, 1e-2]}, LOGS)


def test_curves_without_runs():
  imported = assembled(None, LOGS | {'lr': [0.0, 1e-3, 1e-2, 0.0]})
  assert [run.config['optimizer.learning_rate'] for run in imported.runs.values()] == [1e-3, 1e-2]
  with pytest.raises(BadInput, match='has no learning rate of each run'):
    assembled(None, LOGS)


def test_curves_without_losses():
  logs = {'run': [*'aabb'], 'step': [0, 10] * 2, 'ce': 3.0}
  runs = {'name': ['a', 'b'], 'lr': [1e-3, 1e-2]}
  with pytest.raises(BadInput, match=r'neither a training nor a validation loss; .* are ce; name'):
    assembled(runs, logs)
  assert len(assembled(runs | {'final_loss': 3.0}, logs, initial_loss=5.0).runs) == 2


def test_finished_runs_without_a_curve():
  imported = assembled({'name': [*'abc'], 'lr': [1e-3, 1e-2, 1e-1], 'state': 'finished'}, LOGS)
  assert statuses(imported) == ['done', 'done', None]
  assert 'no result yet, as neither a final loss nor a curve has one: c' in imported.notes


@pytest.mark.parametrize(
    ('files', 'names'),
    [
        (('a.csv', 'b.csv'), ['a', 'b']),
        (('x/a.csv', 'y/b.csv'), ['a', 'b']),
        (('lr1/metrics.csv', 'lr2/metrics.csv'), ['lr1', 'lr2']),
        (('x/s0/metrics.csv', 'y/s0/metrics.csv'), ['x', 'y']),
        (('x/0/m.csv', 'x/1/m.csv', 'y/0/m.csv'), ['x%2F0', 'x%2F1', 'y%2F0']),
        (('x/logs/a/m.csv', 'y/logs/a/m.csv'), ['x', 'y']),
        # The name of one is also another name of the other.
        (('a.csv', 'x/a.csv'), ['a', 'x%2Fa']),
        (('x/y.csv', 'y/y.csv'), ['x', 'y']),
    ],
)
def test_names_of_files(tmp_path, files, names):
  for i, file in enumerate(files, 1):
    (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / file).write_text(f'step,loss,lr\n0,5,0.{i}\n10,4,0.{i}\n')
  options = Options()
  assert [*assemble.assemble(None, curves.read(tmp_path, options), options).runs] == names


def test_an_initial_loss_is_needed():
  late = LOGS | {'step': [5, 10, 5, 10]}
  with pytest.raises(BadInput, match='row 0: has no initial loss'):
    assembled({'name': ['a', 'b'], 'lr': [1e-3, 1e-2]}, late)
  with pytest.raises(BadInput, match='has no column final_loss; its columns, nearest first'):
    assembled({'name': ['a', 'b'], 'lr': [1e-3, 1e-2]})


@pytest.mark.parametrize('name', ['a/b', '..', '.hidden', 'a b', 'é' * 200, '~'])
def test_names_are_folders(name):
  (found,) = assembled({'name': [name], 'lr': [1e-3], 'loss': [3.0]}, initial_loss=5.0).runs
  assert '/' not in found and not found.startswith('.') and len(found) <= 120 and found.isascii()


def test_names_without_names():
  name = next(iter(assembled(grid()).runs))
  assert name == 'parameters=124000000,method=a,learning_rate=0.001,seed=0'


def test_files_of_one_run_are_joined(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'train.csv').write_text('step,loss\n0,5\n10,4\n20,3\n')
  (tmp_path / 'a' / 'val.csv').write_text('step,val_loss\n0,6\n20,4\n')
  table = tables.of_frame(pd.DataFrame({'name': ['a', 'b'], 'lr': [1e-3, 1e-2]}), 'runs')
  options = Options(initial_loss=6.0)
  imported = assemble.assemble(table, curves.read(tmp_path, options), options)
  assert statuses(imported) == ['done', None]  # nothing says how b ended
  assert imported.runs['a'].rows.to_text().splitlines() == [
      '{"step": 0, "loss": 5.0, "val_loss": 6.0}',
      '{"step": 10, "loss": 4.0}',
      '{"step": 20, "loss": 3.0, "val_loss": 4.0}',
  ]


@pytest.mark.parametrize(
    ('files', 'places'),
    [
        (('A/logs/run.csv', 'B/logs/run.csv'), 'A/logs/run and B/logs/run'),
        (('A/run/train.csv', 'B/run/train.csv'), 'A/run and B/run'),
        (('run.csv', 'B/run.csv'), 'B/run and run'),
    ],
)
def test_curves_of_two_runs_are_not_joined(tmp_path, files, places):
  for i, file in enumerate(files):
    (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / file).write_text(f'step,loss\n0,5\n10,{4 - i}\n20,3\n')
  read = curves.read(tmp_path, Options())
  with pytest.raises(BadInput) as error:
    assemble.assemble(table_of('run', 'other'), read, Options())
  assert f"{places} are both named 'run', as is the run of runs, row" in str(error.value)
  paths = places.split(' and ')  # what the message says to do
  found = assemble.assemble(table_of(*paths), read, Options()).runs
  assert sorted(run.result.final_loss for run in found.values()) == [3.0, 3.0]
  assert sorted(run.rows.curve.values['loss'][1] for run in found.values()) == [3.0, 4.0]


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        ('step,loss\n0,5\n10,4\n20,3\n', 'step,val_loss\n0,5\n10,3\n20,3\n'),
        ('step,loss\n0,5\n10,4\n20,3\n', 'step,loss\n20,2.9\n30,2.8\n40,2.7\n'),  # continued
        ('step,loss\n0,5\n10,4\n20,3\n', 'step,loss\n0,5\n10,4\n20,3\n'),  # a copy
    ],
)
def test_folders_of_one_run_are_joined(tmp_path, first, second):
  for folder, text in (('A', first), ('B', second)):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'run.csv').write_text(text)
  found = assemble.assemble(table_of('run', 'x'), curves.read(tmp_path, Options()), Options()).runs
  assert found['run'].rows.to_text().splitlines()[0].startswith('{"step": 0, "loss": 5.0')
  assert found['x'].rows is None


def table_of(*names):
  runs = {'name': names, 'lr': [1e-3, 1e-2], 'final_loss': 3.0, 'initial_loss': 5.0}
  return tables.of_frame(pd.DataFrame(runs), 'runs')
