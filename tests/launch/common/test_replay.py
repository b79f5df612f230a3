"""launch.control replay: a run with actions is trained again, to the same numbers."""

import io
import shutil

import pytest
from helpers import training
from helpers.training import RATE, Training, asks, numbers
from rich.console import Console

from launch.backends import local
from launch.common import environment, replay
from stability.control import limits, records
from stability.control.limits import Limits
from stability.errors import BadInput
from stability.storage import files, run_files, versions

pytestmark = pytest.mark.slow


def train(workdir, configs):
  """Trains runs in this process, on a layout that is compiled once."""
  Training()(*(run_files.run_dir(workdir, name) for name in configs))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that was paused, changed, forked and rewound, with a refused request."""
  trained = Training()
  folder = tmp_path_factory.mktemp('run')
  limited = {'control.limits': 'mine.json'}
  (run,) = training.write_sweep(folder / 'sweep', training.prepare(folder / 'data'), **limited)
  limits.write(run / 'limits.json', Limits({}, {'digests': []}))
  trained.at(run, 4, asks(run, 'pause'))
  trained.at(
      run, 8, asks(run, 'set', changes={RATE: 3e-3}), asks(run, 'fork', changes={RATE: 1e-3})
  )
  trained.at(run, 14, asks(run, 'rewind', to=6, skip=2), asks(run, 'rewind', to=5))
  paused = trained(run)
  assert list(paused.deadlines) == [run.name]
  asks(run, 'continue')()
  trained(run, paused=paused)
  return run


def replayed(run, workdir):
  """Exit code and output of a replay."""
  out = io.StringIO()
  return replay.replay(run, workdir, Console(file=out, width=100), train), out.getvalue()


def test_same_numbers(run, tmp_path):
  code, out = replayed(run, tmp_path / 'new')
  assert code == 0
  assert out == '12 of 12 logged steps are the same, bit for bit; the result is the same\n'
  copy = run_files.run_dir(tmp_path / 'new', run.name)
  assert numbers(copy) == numbers(run)
  assert limits.read(copy / 'limits.json') == limits.read(run / 'limits.json')
  kinds = [record.action.kind for record in records.read_records(copy)]
  assert kinds == ['pause', 'continue', 'set', 'rewind']  # no fork, which would be a second run
  assert replayed(run, tmp_path / 'new') == (code, out)  # nothing is left to train


def copied(run, folder):
  """The run in a copy of its sweep."""
  shutil.copytree(run.parents[1], folder)
  return run_files.run_dir(folder, run.name)


def test_different_row(run, tmp_path):
  changed = copied(run, tmp_path / 'changed')
  rows = run_files.read_metrics(changed)
  rows[3]['loss'] += 1e-6
  files.write_lines(changed / 'metrics.jsonl', rows)
  code, out = replayed(changed, tmp_path / 'new')
  assert code == 1 and out.startswith('11 of 12 logged steps are the same')
  assert out.endswith('; losses differ by up to 1e-06\n')


@pytest.mark.parametrize('cores', [1, None])
def test_on_as_many_cores(run, tmp_path, monkeypatch, cores):
  changed, pinned = copied(run, tmp_path / 'changed'), []
  lines = files.read_lines(changed / 'versions.jsonl')
  assert lines[0].pop('cores') == versions.usable_cores()
  files.write_lines(changed / 'versions.jsonl', [lines[0] | ({'cores': cores} if cores else {})])
  monkeypatch.setattr(environment, 'cores', lambda: [4, 5, 6])
  monkeypatch.setattr(environment, 'pin', pinned.append)
  monkeypatch.setattr(local, 'train', lambda workdir, configs, workers: train(workdir, configs))
  assert replay.replay(changed, tmp_path / 'new', Console(file=io.StringIO())) == 0
  assert pinned == ([[4]] if cores else [])


def test_different_result(run, tmp_path):
  changed = copied(run, tmp_path / 'changed')
  result = run_files.read_result(changed).to_json()
  files.write_json(changed / 'result.json', result | {'final_loss': 1.0})
  code, out = replayed(changed, tmp_path / 'new')
  assert code == 1 and out.endswith('the result differs\n')


@pytest.mark.parametrize('result', [None, 'failed'])
def test_run_without_result_is_refused(run, tmp_path, result):
  unfinished = copied(run, tmp_path / 'copy')
  (unfinished / 'result.json').unlink()
  if result:
    run_files.write_failure(unfinished, 'Traceback')
  with pytest.raises(BadInput, match='has not ended; only a run with a result can be replayed'):
    replayed(unfinished, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def set_options(run, *options):
  """Writes versions.jsonl as starts with these options do, six steps apart."""
  (line,) = files.read_lines(run / 'versions.jsonl')[:1]
  lines = [line | {'step': 6 * n, 'options': found} for n, found in enumerate(options)]
  files.write_lines(run / 'versions.jsonl', lines)


def test_options_that_differ_from_config(run, tmp_path):
  """A run that first trained after a start with other options is replayed with these."""
  changed = copied(run, tmp_path / 'changed')
  set_options(changed, {'log.every_steps': 1})
  code, out = replayed(changed, tmp_path / 'new')
  rows = run_files.read_metrics(tmp_path / 'new' / 'runs' / run.name)
  assert [row['step'] for row in rows] == list(range(1, 25)) and 'the result is the same' in out
  assert code == 1  # the rows of this run were logged every other step


def test_run_with_two_configs_is_refused(run, tmp_path):
  changed = copied(run, tmp_path / 'changed')
  set_options(changed, {}, {'log.every_steps': 4})
  with pytest.raises(BadInput, match=r'resumed with other values of config.log.every_steps; only'):
    replayed(changed, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_folder_with_other_files_is_refused(run, tmp_path):
  (tmp_path / 'mine').write_text('x')
  with pytest.raises(BadInput, match='is not empty and holds no sweep'):
    replayed(run, tmp_path)
