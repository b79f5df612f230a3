"""Faults of files: damaged checkpoints, full and read-only disks; resumes on other devices.

Each run must end with the numbers of an undisturbed one, bit for bit where the kind of executable
is the same. A small disk is a tmpfs, which needs the right to mount; limits on file sizes, which
need no rights, test the same without it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess

import jax
import numpy as np
import pytest
from helpers import training
from helpers.training import Killed, Training, WatchedLayout, numbers

from configs import base
from launch.common import app, start
from stability import config as config_lib
from stability import hyper
from stability.devices.make_layout import make_layout
from stability.errors import CannotWrite
from stability.storage import checkpoints, files, run_files, sweeps, versions

# Tensorstore's threads report a failed save to an event loop of Orbax that is closed by then.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]

FIELDS = {
    'optimizer.learning_rate': 3e-3,
    'schedule.steps': 16,
    'checkpoint.every_steps': 4,
    'checkpoint.keep': 2,
}
# At a rate of 1, differences in rounding grow tenfold in a few updates.
RATES = hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 3e-2, 1e-1])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of token files."""
  return training.prepare(tmp_path_factory.mktemp('data'))


def write_sweep(workdir, data, points=({},)):
  """Writes a sweep; returns the folders of its runs."""
  return training.write_sweep(workdir, data, points, **FIELDS)


_LAYOUTS = {}


def layout_of(kind, devices=1):
  """A make_layout for one kind of layout, whatever the config says; each is compiled once."""

  def placed(config):
    return config | {'parallel': config['parallel'] | {'layout': kind, 'members': 1}}

  def make(workdir, sweep, static, example, *_):
    del static
    if (kind, devices) not in _LAYOUTS:
      runs = {name: placed(config) for name, config in sweep.runs.items()}
      static, _ = config_lib.split(next(iter(runs.values())))
      here = jax.devices()[:devices]
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'local_devices', lambda: here)
        sweep = dataclasses.replace(sweep, runs=runs)
        _LAYOUTS[kind, devices] = make_layout(workdir, sweep, static, example, devices)
    return _LAYOUTS[kind, devices]

  return make


SINGLE = layout_of('single')


def train(*runs, make=SINGLE):
  Training(make_layout=make)(*runs, may_fail=True)


def train_until(reads, *runs, then=training.kill, make=SINGLE):
  """Trains and calls `then` when metrics are read for the n-th time."""
  count = iter(range(1, 10_000))

  def before_read():
    if next(count) == reads:
      then()

  train(*runs, make=lambda *arguments: WatchedLayout(make(*arguments), before_read))


@pytest.fixture(scope='module')
def undisturbed(data, tmp_path_factory):
  """The numbers of a run without faults."""
  (run,) = write_sweep(tmp_path_factory.mktemp('undisturbed'), data)
  train(run)
  return numbers(run)


@pytest.fixture
def stopped(tmp_path, data):
  """A run that was killed after step 12, with the checkpoints of steps 8 and 12."""
  (run,) = write_sweep(tmp_path / 'sweep', data)
  with pytest.raises(Killed):
    train_until(8, run)
  assert checkpoints.good_steps(run) == [8, 12]
  return run


def damage(run, step):
  """Flips one bit of the largest file of a checkpoint."""
  found = [p for p in (run / 'checkpoints' / str(step)).rglob('*') if p.is_file()]
  file = max(found, key=lambda path: path.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)


def warnings(caplog):
  return [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']


# Checkpoints.


def test_damaged_checkpoint(stopped, undisturbed, caplog):
  """The run resumes from the checkpoint before."""
  damage(stopped, 12)
  train(stopped)
  assert numbers(stopped) == undisturbed
  (message,) = warnings(caplog)
  for words in (stopped.name, 'step 12 is damaged', 'not match its checksum', 'from step 8'):
    assert words in message


def test_all_checkpoints_damaged(stopped, undisturbed):
  """The run fails rather than start over."""
  before = (stopped / 'metrics.jsonl').read_bytes()
  damage(stopped, 8)
  damage(stopped, 12)
  train(stopped)
  result = run_files.read_result(stopped)
  assert result.status == 'failed'
  last = result.error.strip().splitlines()[-1]
  for words in ('step 12', 'step 8', f'delete {stopped}/checkpoints', 'again from step 0'):
    assert words in last
  assert (stopped / 'metrics.jsonl').read_bytes() == before
  shutil.rmtree(stopped / 'checkpoints')  # as the message says
  (stopped / 'result.json').unlink()  # as the next start does
  train(stopped)
  assert numbers(stopped) == undisturbed


def test_no_checkpoint(stopped, undisturbed, caplog):
  shutil.rmtree(stopped / 'checkpoints')
  train(stopped)
  assert numbers(stopped) == undisturbed
  (message,) = warnings(caplog)
  assert stopped.name in message and 'was at step 14' in message and 'from step 0' in message


def test_partial_checkpoints_are_no_damage(stopped, undisturbed, caplog):
  """A crash leaves them while a checkpoint is written or deleted."""
  folder = stopped / 'checkpoints'
  shutil.copytree(folder / '12', folder / '.12.partial')
  (folder / '.12.partial' / checkpoints.CHECKSUMS).unlink()
  shutil.copytree(folder / '8', folder / '.4.0123')
  train(stopped)
  assert numbers(stopped) == undisturbed
  assert not caplog.records and sorted(os.listdir(folder)) == ['12', '8']


def test_torn_row(stopped, undisturbed):
  with (stopped / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 14, "loss": 3.')
  assert run_files.read_metrics(stopped)[-1]['step'] < 16
  train(stopped)
  assert numbers(stopped) == undisturbed


# Disks.


@contextlib.contextmanager
def limited_file_size(size):
  """Limits the size of files that this process writes; more is an OSError, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mount(*arguments):
  process = subprocess.run(['mount', *arguments], capture_output=True, text=True, check=False)
  if process.returncode:
    pytest.skip(f'cannot mount: {process.stderr.strip()}; the tests of file sizes do run')


@pytest.fixture
def disk(tmp_path):
  """A disk of 4 MB."""
  if shutil.which('mount') is None:
    pytest.skip('no mount here; the tests of file sizes do run')
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount('-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(folder))
  yield folder
  while os.path.ismount(folder):
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


def test_result_that_is_deleted_while_it_is_read(tmp_path, monkeypatch):
  """Another launcher deletes the result of a failed run to retry the run."""
  monkeypatch.setattr(pathlib.Path, 'exists', lambda path: True)
  assert run_files.read_result(tmp_path) is None


def assert_readable(workdir):
  """Every file of the sweep can be read, no run has a result, and checkpoints are complete."""
  for name in sweeps.read_sweep(workdir).runs:
    run = run_files.run_dir(workdir, name)
    run_files.read_config(run)
    steps = [row['step'] for row in run_files.read_metrics(run)]
    assert steps == list(range(2, 2 * len(steps) + 1, 2))
    assert run_files.read_result(run) is None
    saved = run_files.checkpoint_steps(run)
    assert checkpoints.good_steps(run) == saved and all(step in steps for step in saved)


def assert_refused(error, workdir, why):
  """The error is one line with the path and the reason."""
  assert str(workdir) in error.filename and why in str(error)
  assert 'same command resumes' in str(error) and '\n' not in str(error)


def test_file_size_limit_in_training(data, tmp_path, undisturbed):
  (run,) = write_sweep(tmp_path, data)
  refused = set()
  for size in (300, 3_000, 9_000, 20_000):
    with limited_file_size(size), pytest.raises(CannotWrite) as caught:
      train(run)
    assert_refused(caught.value, tmp_path, 'File too large')
    refused.add(re.sub('[0-9]+$', 'STEP', os.path.relpath(caught.value.filename, run)))
    assert_readable(tmp_path)
  assert {'metrics.jsonl', 'checkpoints/STEP'} <= refused
  train(run)
  assert numbers(run) == undisturbed


def test_file_size_limit_at_start(tmp_path):
  """Until sweep.json is written another sweep can be started in the folder."""
  fields = {'data.source': 'synthetic'}
  one, other = (app.load(base.__file__, fields | {'seed': seed}) for seed in (0, 3))
  workdir = tmp_path / 'workdir'

  def begin(sweep):
    return start.start(sweep, workdir, lambda *_: None, is_blocking=False)

  with limited_file_size(1_000), pytest.raises(CannotWrite):  # the token files
    begin(one)
  begin(one)
  (config,) = workdir.glob('runs/*/config.json')
  size = config.stat().st_size
  for path in (config, *filter(os.path.isfile, workdir.iterdir())):  # all but the token files
    path.unlink()
  assert size + 100 < len(json.dumps({'runs': one.runs.configs}, indent=2))
  with limited_file_size(size + 100), pytest.raises(CannotWrite, match=r'sweep.json'):
    begin(one)
  assert config.exists() and not (workdir / 'sweep.json').exists()
  assert begin(other) == 0
  assert run_files.read_config(workdir / 'runs/seed=3')['seed'] == 3


def test_full_disk(disk, data, undisturbed):
  (run,) = write_sweep(disk, data)
  block = os.statvfs(disk).f_frsize
  for blocks in (0, 2, 5, 12, 40):
    with (disk / 'filler').open('wb') as filler:
      filler.write(bytes((os.statvfs(disk).f_bavail - blocks) * block))
    with pytest.raises(CannotWrite) as caught:
      train(run)
    assert_refused(caught.value, disk, 'No space left on device')
    assert_readable(disk)
    (disk / 'filler').unlink()
  train(run)
  assert numbers(run) == undisturbed


def test_read_only_disk(disk, data, undisturbed):
  (run,) = write_sweep(disk, data)

  def make_read_only():  # by a read-only view: open files stay open, as after a disk error
    mount('--bind', str(disk), str(disk))
    mount('-o', 'remount,bind,ro', str(disk))

  with pytest.raises(CannotWrite) as caught:
    train_until(4, run, then=make_read_only)
  assert_refused(caught.value, disk, 'Read-only file system')
  assert_readable(disk)
  with pytest.raises(CannotWrite, match='Read-only'):
    train(run)
  subprocess.run(['umount', str(disk)], check=True)
  train(run)
  assert numbers(run) == undisturbed


# Other devices and versions.


def test_population_resumes_in_smaller_one_and_alone(data, tmp_path):
  """On two devices, not four, the numbers are equal; alone, another executable rounds otherwise."""
  four = layout_of('population', devices=4)
  workdirs = {}
  for kind in ('undisturbed', 'two', 'alone'):
    runs = workdirs[kind] = write_sweep(tmp_path / kind, data, RATES)
    if kind == 'undisturbed':
      train(*runs, make=four)
      continue
    with pytest.raises(Killed):
      train_until(6, *runs, make=four)
    assert [checkpoints.good_steps(run) for run in runs] == [[4, 8]] * 4
    train(*runs, make=layout_of('population', 2) if kind == 'two' else SINGLE)
  for before, two, alone in zip(*workdirs.values(), strict=True):
    assert numbers(two) == numbers(before)
    assert_close(numbers(before), numbers(alone))


def assert_close(ours, theirs):
  """Equal but for the rounding, in float32, of up to 16 updates."""
  for line, other in zip(ours, theirs, strict=True):
    assert line.keys() == other.keys()
    for key, value in line.items():
      if isinstance(value, float):
        np.testing.assert_allclose(other[key], value, rtol=2e-3, atol=1e-6, err_msg=key)
      else:
        assert other[key] == value


@pytest.mark.parametrize('kind', ['data_parallel', 'sharded'])
def test_large_run_resumes_on_other_devices(kind, data, tmp_path, undisturbed):
  """From four devices to two and to four again."""
  (run,) = write_sweep(tmp_path, data)
  for devices, saved in ((4, [4]), (2, [4, 8])):
    with pytest.raises(Killed):
      train_until(4, run, make=layout_of(kind, devices))
    assert checkpoints.good_steps(run) == saved
  train(run, make=layout_of(kind, devices=4))
  assert_close(undisturbed, numbers(run))


def test_resume_with_other_versions(stopped, undisturbed):
  path = stopped / 'versions.jsonl'
  (line,) = files.read_lines(path)
  older = versions.current() | {'jax': '0.1', 'stability code': 'abc'}
  files.write_lines(path, [line | {'versions': older}])
  train(stopped)
  assert numbers(stopped) == undisturbed
  lines = files.read_lines(path)
  assert [line['step'] for line in lines] == [0, 12]
  changes = versions.changes(*(line['versions'] for line in lines))
  assert [change.split(' -> ')[0] for change in changes] == ['stability code abc', 'jax 0.1']
