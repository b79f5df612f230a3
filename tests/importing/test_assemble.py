import numpy as np
import pandas as pd
import pytest

from stability.errors import BadInput
from stability.importing import assemble, curves, tables
from stability.importing.options import Options


def assembled(runs, logs=None, **options):
  options = Options(**options)
  table = None if runs is None else tables.of_frame(pd.DataFrame(runs), 'runs')
  if logs is not None:
    logs = curves.of_table(tables.of_frame(pd.DataFrame(logs), 'curves'), options)
  return assemble.assemble(table, logs, options)


def grid(**columns):
  """A run per learning rate and method, with other columns."""
  runs = pd.DataFrame({'learning_rate': [1e-3, 1e-2, 1e-3, 1e-2], 'method': [*'aabb']})
  return runs.assign(final_loss=3.0, initial_loss=5.0, params='124M', **columns)


def statuses(imported):
  return [run.result.status if run.result else None for run in imported.runs.values()]


def test_configs_hold_only_what_is_known():
  imported = assembled(grid())
  run = next(iter(imported.runs.values()))
  assert run.config == {'method': 'a', 'optimizer.learning_rate': 1e-3, 'seed': 0}
  assert run.parameters == 124_000_000 and run.result.status == 'done' and run.rows is None
  assert imported.fields == ('method', 'optimizer.learning_rate', 'seed')


@pytest.mark.parametrize(
    ('name', 'values', 'reason'),
    [
        ('config.min_lr', [1e-4, 1e-3, 1e-4, 1e-3], 'follows the learning rate'),
        ('output', ['w', 'x', 'y', 'z'], 'has one value a run'),
        ('other', ['c', 'c', 'd', 'd'], 'follows method'),
        ('accuracy', [0.1, 0.2, 0.2, 0.3], 'occur at one learning rate only'),
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


def test_arms_of_equal_numbers():
  wd = [0.1, 0.1, np.float32(0.1).item(), np.float32(0.1).item()]
  imported = assembled(grid(**{'config.wd': [*wd]}), group_by=('method', 'wd'))
  assert {run.config['wd'] for run in imported.runs.values()} == {0.1}


def test_missing_settings_are_one_value():
  imported = assembled(grid(**{'config.eps': [1e-8, 1e-8, None, None]}), group_by=('eps',))
  values = [run.config['eps'] for run in imported.runs.values()]
  assert values == ['1e-08', '1e-08', 'unset', 'unset']


@pytest.mark.parametrize(
    ('group_by', 'message'),
    [
        ('methods', 'nearest first, are method'),
        ('learning_rate', 'cannot be an intervention'),
        ('summary.loss', 'cannot be an intervention'),
        ('one', 'every arm has a single learning rate'),
    ],
)
def test_group_by_is_checked(group_by, message):
  with pytest.raises(BadInput, match=message):
    assembled(grid(one=[*'wxyz'], **{'summary.loss': 1}), group_by=(group_by,))


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
        ('killed', 3.0, 'stopped'),
        ('killed', 'inf', 'diverged'),
        ('running', 3.0, None),
        ('preempted', 3.0, None),
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


def test_an_initial_loss_is_needed():
  late = LOGS | {'step': [5, 10, 5, 10]}
  with pytest.raises(BadInput, match='row 0: has no initial loss'):
    assembled({'name': ['a', 'b'], 'lr': [1e-3, 1e-2]}, late)
  with pytest.raises(BadInput, match='has no column final_loss; its columns, nearest first'):
    assembled({'name': ['a', 'b'], 'lr': [1e-3, 1e-2]})


@pytest.mark.parametrize(
    ('loss', 'val_loss', 'rows'),
    [
        ([5, None, 3], None, ['5.0', '', '3.0']),  # not logged at each step
        ([5, 3, None], [None, None, 4], ['5.0', '3.0', '']),  # an evaluation at the end
        ([5, None, None], None, ['5.0', 'null', 'null']),  # diverged
    ],
)
def test_losses_that_are_missing(loss, val_loss, rows):
  logs = pd.DataFrame({'step': [0, 1, 2], 'loss': loss, 'grad_norm': 1.0})
  if val_loss:
    logs['val_loss'] = val_loss
  imported = assembled({'lr': [1e-3]}, logs)
  (run,) = imported.runs.values()
  lines = run.rows.to_text().splitlines()
  assert [line.partition('"loss": ')[2].partition(',')[0] for line in lines] == rows
  assert run.result.status == ('diverged' if 'null' in rows else 'done')


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
