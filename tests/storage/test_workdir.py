"""The files of a sweep: written whole, refused when they are another sweep's, read when torn."""

import csv
import json
import os

import pytest
from helpers import made_up

from configs import base
from stability import hyper
from stability.errors import BadInput
from stability.storage import files, results_csv, run_files, sweeps


def runs(rates=(1e-3, 1e-2), **fields) -> hyper.Runs:
  config = base.get_config()
  config.update_from_flattened_dict(fields)
  return hyper.expand(config.to_dict(), hyper.sweep('optimizer.learning_rate', rates))


def write(workdir, some_runs) -> None:
  made_up.write_runs(workdir, some_runs)


def test_a_new_workdir_is_accepted_and_not_made(tmp_path):
  sweeps.check_workdir(tmp_path / 'a' / 'b', runs())
  assert not (tmp_path / 'a').exists()


def test_the_same_sweep_may_go_on_and_gain_runs(tmp_path):
  write(tmp_path, runs())
  sweeps.check_workdir(tmp_path, runs())
  sweeps.check_workdir(tmp_path, runs(rates=(1e-3, 1e-2, 1e-1)))


def test_a_removed_run_is_refused(tmp_path):
  write(tmp_path, runs())
  with pytest.raises(BadInput, match=r'another sweep: its run learning_rate=0.01,seed=0'):
    sweeps.check_workdir(tmp_path, runs(rates=(1e-3,)))


def test_a_changed_run_is_refused_by_field_and_values(tmp_path):
  write(tmp_path, runs())
  with pytest.raises(BadInput, match=r'config.schedule.steps=500, this one 90'):
    sweeps.check_workdir(tmp_path, runs(**{'schedule.steps': 90}))


def test_a_folder_of_other_things_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(BadInput, match='not empty and holds no sweep'):
    sweeps.check_workdir(tmp_path, runs())


def test_what_is_written_before_a_sweep_is_gone_over_again(tmp_path):
  write(tmp_path, runs())
  (tmp_path / 'data' / 'of some text').mkdir(parents=True)
  (tmp_path / 'sweep.json').unlink()
  sweeps.check_workdir(tmp_path, runs())
  write(tmp_path, runs(**{'schedule.steps': 90}))
  for name, config in runs(**{'schedule.steps': 90}).configs.items():
    assert run_files.read_config(tmp_path / 'runs' / name) == config


@pytest.mark.parametrize('name', ['result.json', 'metrics.jsonl', 'checkpoints'])
def test_what_was_trained_is_not_taken_for_another_sweep(tmp_path, name):
  write(tmp_path, runs())
  (next((tmp_path / 'runs').iterdir()) / name).touch()
  (tmp_path / 'sweep.json').unlink()
  with pytest.raises(BadInput, match='not empty and holds no sweep'):
    sweeps.check_workdir(tmp_path, runs())


def test_a_file_as_workdir_is_refused(tmp_path):
  (tmp_path / 'file').touch()
  for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
    with pytest.raises(BadInput, match='is not a folder'):
      sweeps.check_workdir(path, runs())


def test_an_unwritable_workdir_is_refused(tmp_path, monkeypatch):
  def refuse(dir):
    raise PermissionError(13, os.strerror(13))

  # Not by permissions: the tests may run as root, whom they do not bind.
  monkeypatch.setattr(sweeps.tempfile, 'TemporaryFile', refuse)
  with pytest.raises(BadInput, match='cannot be written: Permission denied'):
    sweeps.check_workdir(tmp_path, runs())


def test_files_are_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'file.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(path, {'a': object()})
  with pytest.raises(TypeError):
    files.write_atomic(path, None)
  assert json.loads(path.read_text()) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['file.json']


def test_json_stays_valid(tmp_path):
  files.write_json(tmp_path / 'x', {'a': [float('nan'), 1.5], 'b': {'c': float('-inf')}})
  assert json.loads((tmp_path / 'x').read_text()) == {'a': [None, 1.5], 'b': {'c': None}}


def test_a_torn_last_line_is_ignored(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 10}\n{"step": 20}\n{"step": 3')
  assert run_files.read_metrics(tmp_path) == [{'step': 10}, {'step': 20}]
  assert run_files.last_metrics(tmp_path) == {'step': 20}


def test_metrics_that_are_not_there(tmp_path):
  assert run_files.read_metrics(tmp_path) == []
  assert run_files.last_metrics(tmp_path) is None
  (tmp_path / 'metrics.jsonl').write_text('{"st')
  assert run_files.last_metrics(tmp_path) is None


def test_cutting_keeps_the_lines_up_to_a_step(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"st')
  run_files.truncate_metrics(tmp_path, 20)
  assert path.read_text() == '{"step": 10}\n{"step": 20}\n'


@pytest.mark.parametrize(
    ('initial', 'final', 'status'),
    [
        (5.5, 2.0, 'done'),
        (5.5, 5.5, 'done'),
        (5.5, 5.6, 'diverged'),
        (5.5, float('nan'), 'diverged'),
        (5.5, float('inf'), 'diverged'),
    ],
)
def test_status(initial, final, status):
  assert run_files.final_status(initial, final) == status


def test_results_have_a_row_per_run(tmp_path):
  some = runs()
  write(tmp_path, some)
  first, second = (run_files.run_dir(tmp_path, name) for name in some.configs)
  run_files.write_result(first, run_files.Result('done', final_loss=2.5))
  assert list(sweeps.runs_to_train(tmp_path, some.configs)) == [second.name]
  with results_csv.write_results(tmp_path).open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['status'] for row in rows] == ['done', 'missing']
  assert rows[0]['run'] == 'learning_rate=0.001,seed=0'
  assert rows[0]['optimizer.learning_rate'] == rows[0]['learning_rate'] == '0.001'
  assert (rows[0]['final_loss'], rows[1]['final_loss']) == ('2.5', '')
  assert rows[0]['parameters'] == str(12 * 3 * 64**2)


def test_a_failed_run_is_tried_again(tmp_path):
  some = runs()
  write(tmp_path, some)
  first, second = (run_files.run_dir(tmp_path, name) for name in some.configs)
  run_files.write_failure(first, 'Traceback ...\nValueError: no')
  run_files.write_result(second, run_files.Result('stopped'))
  assert [row['status'] for row in results_csv.read_results(tmp_path)] == ['failed', 'stopped']
  assert list(sweeps.runs_to_train(tmp_path, some.configs)) == [first.name]
  assert [row['status'] for row in results_csv.read_results(tmp_path)] == ['missing', 'stopped']


def test_no_sweep_is_said_so(tmp_path):
  with pytest.raises(BadInput, match='holds no sweep'):
    sweeps.read_sweep(tmp_path)
