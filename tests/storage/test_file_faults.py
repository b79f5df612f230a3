"""Faults of files, made to happen: damaged checkpoints, a full or read-only disk, other devices.

Each run must end with the numbers of one never disturbed, bit for bit where the kind of executable
is the same. A small disk is a tmpfs, which takes the right to mount; a limit on the size of files,
which anybody may set, stands beside it.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import subprocess

import jax
import numpy as np
import pytest
from helpers import made_up
from helpers.training import WatchedLayout

from configs import base
from launch import sweep
from launch.backends import local
from launch.common import app, start
from stability import config as config_lib
from stability import hyper
from stability.data import tokens
from stability.devices.make_layout import make_layout
from stability.errors import CannotWrite
from stability.storage import checkpoints, files, run_files, sweeps, versions
from stability.trainer.hooks import TrainerHooks
from stability.trainer.trainer import train_runs

# What tensorstore's threads still tell an event loop of Orbax's, after a save that failed.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')

FIELDS = {
    'data.batch_size': 4,
    'data.sequence_length': 16,
    'data.validation_batches': 2,
    'data.source': 'synthetic',
    'model.width': 16,
    'model.depth': 1,
    'schedule.steps': 16,
    'schedule.warmup_steps': 2,
    'log.every_steps': 2,
    'probe.every_steps': 4,
    'checkpoint.every_steps': 4,
}
WALL_CLOCK = {'seconds', 'tokens_per_second'}
RATES = hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 1e-1, 1.0])


class Killed(BaseException):
  """Ends training as a kill would: nothing in the loop handles it."""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of token files, shared by the sweeps."""
  config = base.get_config().data
  config.source = 'synthetic'
  return tokens.prepare(config, tmp_path_factory.mktemp('data'), 16)


def write_sweep(workdir, data, points):
  """Writes a sweep's files; returns the names of its runs."""
  flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS
  runs = hyper.expand(config_lib.unflatten(flat), points)
  about = {'path': str(data), **tokens.open_tokens(data).meta}
  made_up.write_runs(workdir, runs, about)
  return list(runs.configs)


FACTORY = {}  # 'make_layout': the layout factory of `train`
LAYOUTS = {}  # compiled once


def use(monkeypatch, kind, devices=1, members=1):
  """Trains with this layout from now on, whatever the config says."""

  def placed(config):
    return config | {'parallel': config['parallel'] | {'layout': kind, 'members': members}}

  def make(workdir, sweep, static, example, most_members=None, members_chosen=None):
    del most_members, members_chosen
    if (kind, devices, members) not in LAYOUTS:
      runs = {name: placed(config) for name, config in sweep.runs.items()}
      sweep = dataclasses.replace(sweep, runs=runs)
      static, _ = config_lib.split(next(iter(sweep.runs.values())))
      LAYOUTS[kind, devices, members] = make_layout(workdir, sweep, static, example)
    return LAYOUTS[kind, devices, members]

  here = jax.devices()[:devices]
  monkeypatch.setattr(jax, 'local_devices', lambda: here)
  monkeypatch.setitem(FACTORY, 'make_layout', make)


@pytest.fixture(autouse=True)
def single(monkeypatch):
  use(monkeypatch, 'single')


def train(workdir, names):
  waiting = iter(names)
  sweep = sweeps.read_sweep(workdir)
  hooks = TrainerHooks(**FACTORY)
  train_runs(workdir, sweep, next(waiting), lambda: next(waiting, None), hooks=hooks)


def train_until(workdir, names, reads, then=None):
  """Trains until metrics are read for the n-th time; `then` is done there, or it is killed."""
  count = iter(range(1, 10_000))

  def before_read():
    if next(count) == reads:
      if then is None:
        raise Killed
      then()

  make = FACTORY['make_layout']
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(
        FACTORY, 'make_layout', lambda *arguments: WatchedLayout(make(*arguments), before_read)
    )
    train(workdir, names)


def outcome(workdir, name):
  """All of a run that must not depend on how it was trained."""
  run = run_files.run_dir(workdir, name)
  lines = [*run_files.read_metrics(run), run_files.read_result(run).to_json()]
  return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]


@pytest.fixture(scope='module')
def undisturbed(data, tmp_path_factory):
  """Outcomes of one run, trained without a fault."""
  workdir = tmp_path_factory.mktemp('undisturbed')
  (name,) = write_sweep(workdir, data, [{}])
  with pytest.MonkeyPatch.context() as patch:
    use(patch, 'single')
    train(workdir, [name])
  return outcome(workdir, name)


@pytest.fixture
def stopped(tmp_path, data):
  """A run that was killed after its checkpoint of step 12; that of step 8 is there as well."""
  (name,) = write_sweep(tmp_path / 'sweep', data, [{}])
  with pytest.raises(Killed):
    train_until(tmp_path / 'sweep', [name], reads=8)
  run = run_files.run_dir(tmp_path / 'sweep', name)
  assert checkpoints.good_steps(run) == [8, 12]
  return run


def damage(run, step):
  """Flips one bit of the largest file of a checkpoint."""
  files = [p for p in (run / 'checkpoints' / str(step)).rglob('*') if p.is_file()]
  file = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 4
  file.write_bytes(content)


# Checkpoints.


def test_the_one_before_a_damaged_checkpoint_serves(stopped, undisturbed, caplog):
  damage(stopped, 12)
  train(stopped.parents[1], [stopped.name])
  assert outcome(stopped.parents[1], stopped.name) == undisturbed
  warned = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
  assert len(warned) == 1
  for words in (stopped.name, 'step 12 is damaged', 'not match its checksum', 'from step 8'):
    assert words in warned[0]


def test_no_run_begins_again_by_itself_where_all_its_checkpoints_are_damaged(
    stopped, undisturbed
):
  before = (stopped / 'metrics.jsonl').read_bytes()
  damage(stopped, 8)
  damage(stopped, 12)
  train(stopped.parents[1], [stopped.name])
  result = run_files.read_result(stopped)
  assert result.status == 'failed'
  last = result.error.strip().splitlines()[-1]
  for words in ('step 12', 'step 8', f'delete {stopped}/checkpoints', 'again from step 0'):
    assert words in last
  assert (stopped / 'metrics.jsonl').read_bytes() == before
  shutil.rmtree(stopped / 'checkpoints')  # as it says
  (stopped / 'result.json').unlink()  # as the next start does
  train(stopped.parents[1], [stopped.name])
  assert outcome(stopped.parents[1], stopped.name) == undisturbed


def test_a_run_without_any_checkpoint_says_that_it_begins_again(stopped, undisturbed, caplog):
  shutil.rmtree(stopped / 'checkpoints')
  train(stopped.parents[1], [stopped.name])
  assert outcome(stopped.parents[1], stopped.name) == undisturbed
  (warned,) = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
  assert stopped.name in warned and 'was at step 14' in warned and 'from step 0' in warned


def test_what_a_crash_left_of_a_checkpoint_is_no_damage(stopped, undisturbed, caplog):
  """Neither of one that was being made, nor of one that was being deleted."""
  folder = stopped / 'checkpoints'
  shutil.copytree(folder / '12', folder / '.12.partial')
  (folder / '.12.partial' / checkpoints.CHECKSUMS).unlink()
  shutil.copytree(folder / '8', folder / '.4.0123')
  train(stopped.parents[1], [stopped.name])
  assert outcome(stopped.parents[1], stopped.name) == undisturbed
  assert not caplog.records and sorted(os.listdir(folder)) == ['12', '8']


def test_a_torn_last_line_is_cut(stopped, undisturbed):
  with (stopped / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 14, "loss": 3.')
  assert run_files.read_metrics(stopped)[-1]['step'] < 16
  train(stopped.parents[1], [stopped.name])
  assert outcome(stopped.parents[1], stopped.name) == undisturbed


# Disks.


@contextlib.contextmanager
def limited_files(size):
  """No file of this process may grow beyond so many bytes: the same errors come from below."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mount(*arguments):
  process = subprocess.run(['mount', *arguments], capture_output=True, text=True, check=False)
  if process.returncode:
    pytest.skip(f'may not mount here: {process.stderr.strip()}; the tests of file sizes do run')


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


def assert_readable(workdir):
  """Every file of the sweep can be read, no run has a result, and checkpoints are whole."""
  for name in sweeps.read_sweep(workdir).runs:
    run = run_files.run_dir(workdir, name)
    run_files.read_config(run)
    steps = [line['step'] for line in run_files.read_metrics(run)]
    assert steps == list(range(2, 2 * len(steps) + 1, 2))
    assert run_files.read_result(run) is None
    saved = checkpoints._steps(run)
    assert checkpoints.good_steps(run) == saved and all(step in steps for step in saved)


def assert_refused(error, workdir, why):
  """One line, with the path and the reason."""
  assert str(workdir) in error.filename and why in str(error)
  assert 'same command goes on' in str(error) and '\n' not in str(error)


def test_files_that_may_not_grow_stop_a_run_which_then_goes_on(data, tmp_path, undisturbed):
  (name,) = write_sweep(tmp_path, data, [{}])
  refused = set()
  for size in (300, 3_000, 9_000, 20_000):
    with limited_files(size), pytest.raises(CannotWrite) as caught:
      train(tmp_path, [name])
    assert_refused(caught.value, tmp_path, 'File too large')
    refused.add(re.sub('[0-9]+$', 'STEP', os.path.relpath(caught.value.filename, tmp_path)))
    assert_readable(tmp_path)
  assert {f'runs/{name}/metrics.jsonl', f'runs/{name}/checkpoints/STEP'} <= refused
  train(tmp_path, [name])
  assert outcome(tmp_path, name) == undisturbed


def test_files_that_may_not_grow_stop_a_preparation_which_then_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(local, 'train', lambda *_, **__: None)
  monkeypatch.setattr(start, '_report', lambda _: 0)
  arguments = ['sweep', f'--config={base.__file__}', '--config.data.source=synthetic']
  arguments.append(f'--workdir={tmp_path / "workdir"}')

  def begin(*more):
    return app.execute(sweep.main, sweep.FLAGS, [*arguments, *more])

  def full(path, value):
    if path.name == 'sweep.json':
      raise CannotWrite(errno.ENOSPC, 'No space left on device', str(path))
    write_json(path, value)

  write_json = files.write_json
  with limited_files(1_000):  # no room for the text
    assert begin() == 1
  with pytest.MonkeyPatch.context() as patch:  # none after the configs
    patch.setattr(files, 'write_json', full)
    assert begin() == 1
  assert not (tmp_path / 'workdir/sweep.json').exists()
  assert begin('--config.seed=3') == 0  # another command too, since nothing was trained
  assert run_files.read_config(tmp_path / 'workdir/runs/seed=3')['seed'] == 3


def test_a_full_disk_stops_a_run_which_goes_on_once_there_is_room(disk, data, undisturbed):
  (name,) = write_sweep(disk, data, [{}])
  block = os.statvfs(disk).f_frsize
  for blocks in (0, 2, 5, 12, 40):
    with (disk / 'filler').open('wb') as filler:
      filler.write(bytes((os.statvfs(disk).f_bavail - blocks) * block))
    with pytest.raises(CannotWrite) as caught:
      train(disk, [name])
    assert_refused(caught.value, disk, 'No space left on device')
    assert_readable(disk)
    (disk / 'filler').unlink()
  train(disk, [name])
  assert outcome(disk, name) == undisturbed


def test_a_disk_gone_read_only_stops_a_run_which_then_goes_on(disk, data, undisturbed):
  (name,) = write_sweep(disk, data, [{}])

  def turn():  # a read-only view over it: files that are open stay open, as after an error
    mount('--bind', str(disk), str(disk))
    mount('-o', 'remount,bind,ro', str(disk))

  with pytest.raises(CannotWrite) as caught:
    train_until(disk, [name], reads=4, then=turn)
  assert_refused(caught.value, disk, 'Read-only file system')
  assert_readable(disk)
  with pytest.raises(CannotWrite, match='Read-only'):
    train(disk, [name])
  subprocess.run(['umount', str(disk)], check=True)
  train(disk, [name])
  assert outcome(disk, name) == undisturbed


# Other devices, other versions.


@pytest.mark.slow
def test_a_population_goes_on_in_smaller_ones_and_alone(data, tmp_path, monkeypatch):
  """On four devices, then on two: bit for bit. Then alone: another executable, which rounds."""
  workdirs = {}
  for kind in ('undisturbed', 'two', 'alone'):
    workdir = workdirs[kind] = tmp_path / kind
    names = write_sweep(workdir, data, RATES)
    use(monkeypatch, 'population', devices=4)
    if kind == 'undisturbed':
      train(workdir, names)
      continue
    with pytest.raises(Killed):
      train_until(workdir, names, reads=6)
    assert [checkpoints.good_steps(run_files.run_dir(workdir, name)) for name in names] == [
        [4, 8]
    ] * 4
    use(monkeypatch, *(('population', 2) if kind == 'two' else ('single',)))
    train(workdir, names)
  for name in names:
    before = outcome(workdirs['undisturbed'], name)
    assert outcome(workdirs['two'], name) == before
    assert_the_same_but_for_rounding(before, outcome(workdirs['alone'], name))


def assert_the_same_but_for_rounding(ours, theirs):
  """Updates are rounded in float32 by other executables, up to 16 of them."""
  for line, other in zip(ours, theirs, strict=True):
    assert line.keys() == other.keys()
    for key, value in line.items():
      if isinstance(value, float):
        np.testing.assert_allclose(other[key], value, rtol=2e-3, atol=1e-6, err_msg=key)
      else:
        assert other[key] == value


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['data_parallel', 'sharded'])
def test_a_large_run_goes_on_on_fewer_devices_and_on_more(
    kind, data, tmp_path, monkeypatch, undisturbed
):
  """From four to two and to four again, as one that one device has trained."""
  (name,) = write_sweep(tmp_path, data, [{}])
  run = run_files.run_dir(tmp_path, name)
  for devices, saved in ((4, [4]), (2, [4, 8])):
    use(monkeypatch, kind, devices=devices)
    with pytest.raises(Killed):
      train_until(tmp_path, [name], reads=4)
    assert checkpoints.good_steps(run) == saved
  use(monkeypatch, kind, devices=4)
  train(tmp_path, [name])
  assert_the_same_but_for_rounding(undisturbed, outcome(tmp_path, name))


def test_a_run_records_what_trained_it(stopped, undisturbed, monkeypatch):
  newer = versions.current() | {'jax': '99.0', 'stability code': 'abc'}
  monkeypatch.setattr(versions, 'current', lambda: newer)
  train(stopped.parents[1], [stopped.name])
  assert outcome(stopped.parents[1], stopped.name) == undisturbed
  lines = [json.loads(line) for line in (stopped / 'versions.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [0, 12]
  told = versions.changes(*(line['versions'] for line in lines))
  assert [change.split(' -> ')[1] for change in told] == ['abc', '99.0']
