"""Checkpoints: what is restored is what was saved, or an older checkpoint, never a damaged one."""

import hashlib
import os
import threading

import ml_dtypes
import numpy as np
import pytest

from stability.errors import BadInput
from stability.storage import checkpoints


def arrays(step: int) -> checkpoints.Arrays:
  rng = np.random.default_rng(step)
  return {
      'params/block_0/mlp/up': rng.normal(size=(5, 7)).astype(np.float32),
      'optimizer/1/mu/head': rng.normal(size=3).astype(ml_dtypes.bfloat16),
      'optimizer/1/count': np.array(step, np.int32),
      'diverged': np.array(False),
  }


@pytest.fixture
def run(tmp_path):
  for step in (10, 20, 100):
    checkpoints.save(tmp_path, step, arrays(step), {'initial_loss': 5.5 + step}, keep=2)
  return tmp_path


def assert_restores(run, step):
  found, restored, about = checkpoints.restore(run)
  assert (found, about) == (step, {'initial_loss': 5.5 + step})
  assert restored.keys() == arrays(step).keys()
  for name, value in arrays(step).items():
    assert restored[name].dtype == value.dtype
    np.testing.assert_array_equal(restored[name], value)


def test_newest_is_restored_bit_for_bit(run):
  assert_restores(run, 100)


def test_newest_are_kept(run):
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['100', '20']


def test_no_checkpoint(tmp_path):
  assert checkpoints.restore(tmp_path) is None


def data_file(run, step):
  """The largest file of a checkpoint, in which Orbax stores the arrays."""
  folder = run / 'checkpoints' / str(step)
  files = [p for p in folder.rglob('*') if p.is_file() and p.name != checkpoints.CHECKSUMS]
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete', 'no checksums', 'add'])
def test_damaged_checkpoint_is_skipped(run, damage, caplog):
  file = data_file(run, 100)
  content = file.read_bytes()
  if damage == 'flip':
    file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
  elif damage == 'truncate':
    file.write_bytes(content[:-1])
  elif damage == 'delete':
    file.unlink()
  elif damage == 'add':
    file.with_name('another').write_bytes(b'')
  else:
    (run / 'checkpoints' / '100' / checkpoints.CHECKSUMS).unlink()
  assert_restores(run, 20)
  assert f'{run.name}: the checkpoint of step 100 is damaged and not used' in caplog.text
  assert 'checkpoints/100' in caplog.text and 'resumes from step 20' in caplog.text


def test_damage_to_any_file_is_found(run):
  """Damages every file of a checkpoint in turn, also the checksums."""
  folder = run / 'checkpoints' / '100'
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  assert folder / checkpoints.CHECKSUMS in files and len(files) > 5
  for file in files:
    content = file.read_bytes()
    damaged = [content[: len(content) // 2], content + b'x', None]
    for place in (0, len(content) // 2, len(content) - 2):
      if content:
        damaged.append(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
    for other in damaged:
      if other == content:
        continue  # half of an empty file
      file.unlink()
      if other is not None:
        file.write_bytes(other)
      assert checkpoints.good_steps(run) == [20], (file, other)
      file.write_bytes(content)
  assert checkpoints.good_steps(run) == [20, 100]
  for file in files[::2]:
    file.unlink()
  assert_restores(run, 20)


def test_all_damaged(run):
  for step in (20, 100):
    data_file(run, step).unlink()
  before = sorted(run.rglob('*'))
  with pytest.raises(BadInput) as caught:
    checkpoints.restore(run)
  for words in ('step 100', 'step 20', 'does not match its checksum', f'delete {run}/checkpoints'):
    assert words in str(caught.value)
  assert sorted(run.rglob('*')) == before
  assert checkpoints.restore(run, only=20) is None


@pytest.mark.parametrize('at', ['about.json', 'checksums.json', 'rename'])
def test_crash_while_saving(run, at, monkeypatch, caplog):
  class Crash(BaseException):
    pass

  write = checkpoints.files.write_json

  def crash(*arguments):
    raise Crash

  def write_until(path, value):
    if path.name == at:
      raise Crash
    write(path, value)

  monkeypatch.setattr(checkpoints.files, 'write_json', write_until)
  # The dead process cleans up nothing.
  monkeypatch.setattr(checkpoints, '_remove_partial', lambda folder: None)
  if at == 'rename':
    monkeypatch.setattr(type(run), 'rename', crash)
  with pytest.raises(Crash):
    checkpoints.save(run, 200, arrays(200), {'initial_loss': 205.5}, keep=2)
  monkeypatch.undo()
  assert_restores(run, 200 if at == 'rename' else 100)  # at the rename, it is complete
  assert not caplog.records
  checkpoints.save(run, 200, arrays(200), {'initial_loss': 205.5}, keep=2)
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['100', '200']


def test_older_are_deleted_once_the_new_one_is_on_disk(run, monkeypatch):
  """After a power loss, a file that was not synced may be empty, and a new name may be gone."""
  events, fsync, rename = [], os.fsync, type(run).rename

  def recorded_fsync(descriptor):
    events.append(('sync', os.readlink(f'/proc/self/fd/{descriptor}')))
    fsync(descriptor)

  def recorded_rename(path, target):
    events.append(('rename', str(path), [path, *path.rglob('*')]))
    return rename(path, target)

  monkeypatch.setattr(os, 'fsync', recorded_fsync)
  monkeypatch.setattr(type(run), 'rename', recorded_rename)
  checkpoints.save(run, 200, arrays(200), {'initial_loss': 205.5}, keep=2)
  folder = run / 'checkpoints'
  renames = [n for n, event in enumerate(events) if event[0] == 'rename']
  assert [events[n][1] for n in renames] == [f'{folder}/.200.partial', f'{folder}/20']
  final, deletion = renames
  before = {event[1] for event in events[:final]}
  # The checksums are synced under their temporary name.
  found = {str(path) for path in events[final][2] if path.name != checkpoints.CHECKSUMS}
  assert len(found) > 8 and found <= before
  assert events[final - 1] == ('sync', f'{folder}/.200.partial')
  assert ('sync', str(folder)) in events[final:deletion]


@pytest.mark.parametrize('name', ['with [brackets]', 'back\\slash'])
def test_path_in_which_orbax_cannot_save(run, name):
  odd = run.rename(run.with_name(name))
  with pytest.raises(RuntimeError, match='cannot save checkpoints in a folder of this path'):
    checkpoints.save(odd, 200, arrays(200), {'initial_loss': 205.5}, keep=1)
  assert checkpoints.good_steps(odd) == [20, 100]
  assert_restores(odd.rename(run), 100)
  assert not list((run / 'checkpoints').glob('.*'))


@pytest.mark.parametrize('is_damaged', [False, True])
def test_crash_while_replacing_a_checkpoint(run, is_damaged, monkeypatch):
  """Between the renames of the old one and of the new one, which is complete."""
  rename = type(run).rename

  def crash(path, target):
    if path.name == '.100.partial':
      raise KeyboardInterrupt
    return rename(path, target)

  with monkeypatch.context() as patch:
    patch.setattr(type(run), 'rename', crash)
    patch.setattr(checkpoints, '_remove_partial', lambda folder: None)
    with pytest.raises(KeyboardInterrupt):
      checkpoints.save(run, 100, arrays(100), {'initial_loss': 105.5}, keep=2)
  if is_damaged:
    data_file(run, '.100.partial').unlink()
  assert_restores(run, 20 if is_damaged else 100)
  assert not list((run / 'checkpoints').glob('.*'))


def test_damaged_later_checkpoint_is_not_counted(run):
  data_file(run, 100).unlink()
  assert_restores(run, 20)
  checkpoints.save(run, 30, arrays(30), {'initial_loss': 35.5}, keep=1)
  assert_restores(run, 30)


def test_damaged_checkpoint_is_overwritten(run):
  data_file(run, 100).unlink()
  checkpoints.save(run, 100, arrays(100), {'initial_loss': 105.5}, keep=2)
  assert_restores(run, 100)


def test_files_are_hashed_together(tmp_path, monkeypatch):
  """In the grace that a preempted run has, one file of a large state after another is too slow."""
  for name in ('a', 'b'):
    (tmp_path / name).write_text(name)
  digest, both = hashlib.file_digest, threading.Barrier(2)

  def digest_of_both(file, kind):
    both.wait(10)
    return digest(file, kind)

  monkeypatch.setattr(hashlib, 'file_digest', digest_of_both)
  expected = {name: hashlib.sha256(name.encode()).hexdigest() for name in ('a', 'b')}
  assert checkpoints._checksums(tmp_path) == expected
