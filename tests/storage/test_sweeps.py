"""Sweeps on disk: which folders accept a sweep, and which of its runs are to be trained."""

import copy
import dataclasses
import json
import os

import pytest
from helpers import made_up

from configs import base
from stability import hyper
from stability.errors import BadInput
from stability.storage import files, leases, results_csv, run_files, sweeps


def runs(rates=(1e-3, 1e-2), **fields) -> hyper.Runs:
  config = base.get_config()
  config.update_from_flattened_dict(fields)
  return hyper.expand(config.to_dict(), hyper.sweep('optimizer.learning_rate', rates))


def test_round_trip(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,))
  sweep = sweeps.read_sweep(tmp_path)
  written = json.loads((tmp_path / 'sweep.json').read_text())
  assert sweep.to_json() == written
  sweeps.write_sweep(tmp_path, sweep)
  assert json.loads((tmp_path / 'sweep.json').read_text()) == written


def test_no_sweep(tmp_path):
  with pytest.raises(BadInput, match='holds no sweep'):
    sweeps.read_sweep(tmp_path)


def test_swept_values(tmp_path):
  found = runs()
  config = next(iter(found.configs.values()))
  expected = {'optimizer.learning_rate': 1e-3, 'seed': 0}
  assert sweeps.swept_values(config, found.fields) == expected
  assert list(sweeps.swept_values(config, ('seed', *found.fields))) == list(expected)


# Folders.


def test_new_workdir_is_accepted_and_not_created(tmp_path):
  sweeps.check_workdir(tmp_path / 'a' / 'b', runs())
  assert not (tmp_path / 'a').exists()


def test_same_sweep_may_gain_runs(tmp_path):
  made_up.write_runs(tmp_path, runs())
  sweeps.check_workdir(tmp_path, runs())
  sweeps.check_workdir(tmp_path, runs(rates=(1e-3, 1e-2, 1e-1)))


def test_removed_run_is_refused(tmp_path):
  made_up.write_runs(tmp_path, runs())
  with pytest.raises(BadInput, match=r'another sweep: its run learning_rate=0.01,seed=0'):
    sweeps.check_workdir(tmp_path, runs(rates=(1e-3,)))


def test_changed_run_is_refused(tmp_path):
  made_up.write_runs(tmp_path, runs())
  with pytest.raises(BadInput, match=r'config.schedule.steps=500, this one 90'):
    sweeps.check_workdir(tmp_path, runs(**{'schedule.steps': 90}))


def test_folder_of_other_files_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(BadInput, match='not empty and holds no sweep'):
    sweeps.check_workdir(tmp_path, runs())


def test_interrupted_start_is_continued(tmp_path):
  """Without sweep.json, data and configs may be replaced."""
  made_up.write_runs(tmp_path, runs())
  (tmp_path / 'data' / 'of some text').mkdir(parents=True)
  (tmp_path / 'sweep.json').unlink()
  sweeps.check_workdir(tmp_path, runs())
  changed = runs(**{'schedule.steps': 90})
  made_up.write_runs(tmp_path, changed)
  for name, config in changed.configs.items():
    assert run_files.read_config(tmp_path / 'runs' / name) == config


def killed_while_writing(path):
  """What a process leaves that is killed before it renames a file that it has written."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(os, 'replace', lambda old, new: None)
    files.write_atomic(path, 'x')


def test_killed_start_is_continued(tmp_path):
  made_up.write_runs(tmp_path, runs())
  (tmp_path / 'sweep.json').unlink()
  (tmp_path / 'data').mkdir()
  run = next((tmp_path / 'runs').iterdir())
  killed_while_writing(run / 'metrics.jsonl')
  before = set(tmp_path.rglob('*'))
  for path in ('sweep.json', run / 'config.json', run / 'limits.json', 'data/verified.json'):
    killed_while_writing(tmp_path / path)
  sweeps.check_workdir(tmp_path, runs())
  assert len(set(tmp_path.rglob('*')) - before) == 4
  sweeps.remove_temporaries(tmp_path, runs().configs)
  assert set(tmp_path.rglob('*')) == before  # a trainer may be writing the rows now
  (tmp_path / '.sweep.json.20261130').touch()  # somebody's copy
  with pytest.raises(BadInput, match='not empty and holds no sweep'):
    sweeps.check_workdir(tmp_path, runs())


@pytest.mark.parametrize('name', ['result.json', 'metrics.jsonl', 'checkpoints'])
def test_trained_runs_without_sweep_are_refused(tmp_path, name):
  made_up.write_runs(tmp_path, runs())
  (next((tmp_path / 'runs').iterdir()) / name).touch()
  (tmp_path / 'sweep.json').unlink()
  with pytest.raises(BadInput, match='not empty and holds no sweep'):
    sweeps.check_workdir(tmp_path, runs())


def test_file_as_workdir_is_refused(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(BadInput, match='is not a folder'):
      sweeps.check_workdir(path, runs())


@pytest.mark.parametrize(
    ('name', 'why'),
    [
        ('a [b]', r'\['),
        ('a*', r'\*'),
        ('a?/b', r'\?'),
        ('a\\b', r'\\'),
        ('a.__lock', r'\.__lock'),
        ('gs:/a', 'gs:'),
        ('/s3/a', '/s3'),
    ],
)
def test_workdir_whose_checkpoints_could_not_be_loaded_is_refused(tmp_path, name, why):
  with pytest.raises(BadInput, match=f': {why} must not be in its absolute path'):
    sweeps.check_workdir(tmp_path / name, runs())
  assert not list(tmp_path.iterdir())


NAMES = ['a b', 'é', 'a;b', 'a#b', 'a%20b', "a'b", 'a]', 'a.__lock.b', 's3']


@pytest.mark.parametrize('name', NAMES)
def test_workdir_of_another_name_is_accepted(tmp_path, name):
  sweeps.check_workdir(tmp_path / name, runs())


def test_unwritable_workdir_is_refused(tmp_path, monkeypatch):
  def refuse(dir):
    raise PermissionError(13, os.strerror(13))

  # The tests may run as root, whom permissions do not stop.
  monkeypatch.setattr('tempfile.TemporaryFile', refuse)
  with pytest.raises(BadInput, match='cannot be written: Permission denied'):
    sweeps.check_workdir(tmp_path, runs())


# Runs to train.


@pytest.fixture
def two(tmp_path):
  """The folders of two runs without results, and their configs."""
  found = runs()
  made_up.write_runs(tmp_path, found)
  return [run_files.run_dir(tmp_path, name) for name in found.configs], found.configs


def statuses(workdir):
  return [row['status'] for row in results_csv.read_results(workdir)]


def test_runs_without_result_are_trained(tmp_path, two):
  (first, second), configs = two
  run_files.write_result(first, run_files.Result('done', final_loss=2.5))
  assert list(sweeps.runs_to_train(tmp_path, configs)) == [second.name]


def test_failed_run_is_trained_again(tmp_path, two):
  (first, second), configs = two
  run_files.write_failure(first, 'Traceback ...\nValueError: no')
  run_files.write_result(second, run_files.Result('stopped'))
  assert statuses(tmp_path) == ['failed', 'stopped']
  assert list(sweeps.runs_to_train(tmp_path, configs)) == [first.name]
  assert statuses(tmp_path) == ['missing', 'stopped']


def test_failure_under_a_lease_stays(tmp_path, two):
  """Another launcher has the run: only that one may replace its result."""
  (first, second), configs = two
  run_files.write_failure(first, 'Traceback')
  lease = leases.try_acquire(first)
  assert list(sweeps.runs_to_train(tmp_path, configs)) == [second.name]
  assert statuses(tmp_path) == ['failed', 'missing']
  lease.release()
  assert list(sweeps.runs_to_train(tmp_path, configs)) == [first.name, second.name]


# Forks.


def test_forks(tmp_path, two):
  (first, _), configs = two
  assert sweeps.read_forks(tmp_path) == {} and not sweeps.is_fork(tmp_path, 'a+fork1')
  files.write_json(tmp_path / 'runs' / 'a+fork1' / 'config.json', configs[first.name])
  fork = sweeps.Fork(first.name, 30, {'optimizer.learning_rate': 0.1})
  sweeps.write_fork(tmp_path, 'a+fork1', fork)
  assert sweeps.read_forks(tmp_path) == {'a+fork1': fork} and sweeps.is_fork(tmp_path, 'a+fork1')
  assert sweeps.fork_configs(tmp_path) == {'a+fork1': configs[first.name]}
  (row,) = results_csv.read_fork_results(tmp_path)
  assert (row['run'], row['learning_rate'], row['status']) == ('a+fork1', 0.1, 'missing')


def test_ancestors():
  forks = {name: sweeps.Fork(run, 1, {}) for name, run in (('b', 'a'), ('c', 'b'), ('x', 'x'))}
  assert [sweeps.origin(name, forks) for name in 'abcx'] == ['a', 'a', 'a', 'x']
  assert [name for name in 'abcdx' if sweeps.descends(name, forks, {'a'})] == ['a', 'b', 'c']
  assert [name for name in 'abcdx' if sweeps.descends(name, forks, {'b', 'd'})] == ['b', 'c', 'd']
  assert [sweeps.descends(name, {}, {'a'}) for name in 'ab'] == [True, False]


@pytest.mark.parametrize('change', [{'step': '3'}, {'run': None}, {'changes': []}])
def test_damaged_fork(tmp_path, change):
  sweeps.write_fork(tmp_path, 'x', sweeps.Fork('a', 3, {}))
  path = tmp_path / 'forks' / 'x.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(BadInput, match=r'forks/x.json: damaged: '):
    sweeps.read_forks(tmp_path)


# What training needs.


def test_runs_that_can_be_trained(tmp_path):
  first, second = made_up.write_sweep(tmp_path, widths=(16,), rates=(1e-3, 1e-2), seeds=(0,),
                                      interventions=[{}])  # fmt: skip
  sweep = sweeps.read_sweep(tmp_path)
  sweeps.check_run(tmp_path, first, sweep.runs[first])
  with pytest.raises(BadInput, match=r'another config than .*/config\.json'):
    sweeps.check_run(tmp_path, first, sweep.runs[second])
  resumed = copy.deepcopy(sweep.runs[first])  # config.json keeps the first values
  resumed['log']['every_steps'], resumed['parallel']['microbatches'] = 7, 2
  sweeps.check_run(tmp_path, first, resumed)
  with pytest.raises(BadInput, match='is missing'):
    sweeps.check_run(tmp_path, first, None)
  sweeps.write_fork(tmp_path, first, sweeps.Fork(second, 1, {}))
  sweeps.check_run(tmp_path, first, None)
  (tmp_path / 'runs' / second / 'config.json').unlink()
  with pytest.raises(BadInput, match='has no folder'):
    sweeps.check_run(tmp_path, second, sweep.runs[second])


def test_float32_of_an_older_sweep_json_is_the_same_config(tmp_path):
  """config.json has 0.001; an edited or older sweep.json has its float32."""
  (name,) = made_up.write_sweep(tmp_path, widths=(16,), rates=(1e-3,), seeds=(0,),
                                interventions=[{}])  # fmt: skip
  stored = files.read_json(tmp_path / 'sweep.json')
  stored['runs'][name]['optimizer']['learning_rate'] = 0.0010000000474974513
  files.write_json(tmp_path / 'sweep.json', stored)
  sweeps.check_run(tmp_path, name, sweeps.read_sweep(tmp_path).runs[name])
  sweeps.check_workdir(tmp_path, hyper.Runs((), sweeps.read_sweep(tmp_path).runs))


def test_data_that_is_there(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,))
  sweep = sweeps.read_sweep(tmp_path)
  with pytest.raises(BadInput, match=r'its data, .* is missing'):
    sweeps.check_data(tmp_path, sweep)
  files.write_json(tmp_path / sweep.data['path'] / 'meta.json', {})
  sweeps.check_data(tmp_path, sweep)
  with pytest.raises(BadInput, match='data: path is missing'):
    sweeps.check_data(tmp_path, dataclasses.replace(sweep, data={}))
