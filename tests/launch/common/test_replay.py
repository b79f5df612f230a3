"""launch.control replay: a run with actions trained again, to the same numbers."""

import io
import shutil

import pytest
from helpers import training
from helpers.training import RATE, Training, asks, numbers
from rich.console import Console

from launch.common import replay
from stability.control import records
from stability.errors import BadInput
from stability.storage import files, run_files


@pytest.fixture(autouse=True)
def here(monkeypatch):
  """Runs are trained in this process, on a layout compiled once."""

  def local_train(workdir, configs, workers):
    Training()(*(run_files.run_dir(workdir, name) for name in configs))

  monkeypatch.setattr(replay.local, 'train', local_train)


@pytest.fixture(scope='module')
def steered_run(tmp_path_factory):
  """A run that was paused, changed, forked, rewound and asked for what it refused."""
  train = Training()
  folder = tmp_path_factory.mktemp('steered')
  (run,) = training.write_sweep(folder / 'sweep', training.prepare(folder / 'data'))
  train.at(run, 4, asks(run, 'pause'))
  train.at(run, 8, asks(run, 'set', changes={RATE: 3e-3}), asks(run, 'fork', changes={RATE: 1e-3}))
  train.at(run, 14, asks(run, 'rewind', to=6, skip=2), asks(run, 'rewind', to=5))
  paused = train(run)
  assert list(paused.deadlines) == [run.name]
  asks(run, 'continue')()
  train(run, paused=paused)
  return run


def replayed(run, workdir):
  """Exit code and what is printed."""
  out = io.StringIO()
  return replay.replay(run, workdir, Console(file=out, width=100)), out.getvalue()


def test_every_number_is_the_same(steered_run, tmp_path):
  code, out = replayed(steered_run, tmp_path / 'new')
  assert (code, out) == (0, '13 of 13 logged steps are the same, bit for bit\n')
  copy = run_files.run_dir(tmp_path / 'new', steered_run.name)
  assert numbers(copy) == numbers(steered_run)
  names = [record.action.kind for record in records.read_records(copy)]
  assert names == ['pause', 'continue', 'set', 'rewind']  # no fork: the copy has no second run
  assert replayed(steered_run, tmp_path / 'new') == (code, out)  # and again, at once


def copied(run, folder):
  """The run in a copy of its sweep."""
  shutil.copytree(run.parent.parent, folder)
  return run_files.run_dir(folder, run.name)


def test_a_number_that_differs_is_told(steered_run, tmp_path):
  run = copied(steered_run, tmp_path / 'altered')
  lines = run_files.read_metrics(run)
  lines[3]['loss'] += 1e-6
  files.write_lines(run / 'metrics.jsonl', lines)
  code, out = replayed(run, tmp_path / 'new')
  assert (code, out) == (1, '12 of 13 logged steps are the same, bit for bit\n')


@pytest.mark.parametrize('result', [None, 'failed'])
def test_a_run_that_is_not_over_is_refused(steered_run, tmp_path, result):
  run = copied(steered_run, tmp_path / 'copy')
  (run / 'result.json').unlink()
  if result:
    run_files.write_failure(run, 'Traceback')
  with pytest.raises(BadInput, match='is not over; a run with a result can be replayed'):
    replayed(run, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_a_folder_that_holds_something_else_is_refused(steered_run, tmp_path):
  (tmp_path / 'mine').write_text('x')
  with pytest.raises(BadInput, match='is not empty and holds no sweep'):
    replayed(steered_run, tmp_path)
