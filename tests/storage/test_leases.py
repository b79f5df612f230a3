"""Leases: one holder at a time, whatever the race and however the last holder ended."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from stability.errors import BadInput, CannotWrite
from stability.storage import leases


@pytest.fixture
def forks():
  """Processes that start fast and inherit nothing from this one, such as jax's threads."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['pytest', 'stability.storage.leases'])
  return context


def write(folder, number, seconds_ago, **changes):
  """Writes a lease of another process."""
  own = leases._identity(None) | changes
  path = folder / f'lease.{number}.json'
  path.write_text(json.dumps(own))
  os.utime(path, (time.time() - seconds_ago,) * 2)


def gone():
  """A process that has ended: its number and start time."""
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  started = leases._started(process.pid)
  process.communicate(b'\n')
  return {'pid': process.pid, 'started': started}


DEAD = gone()


def test_one_holder_until_release(tmp_path):
  first = leases.try_acquire(tmp_path)
  assert first and leases.try_acquire(tmp_path) is None
  assert leases.holder(tmp_path)['pid'] == os.getpid()
  first.release()
  assert leases.holder(tmp_path) is None
  second = leases.try_acquire(tmp_path)
  assert second and leases.try_acquire(tmp_path) is None
  assert not first.refresh() and second.refresh()
  second.remove()
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('seconds_ago', 'changes', 'free'),
    [
        (10_000, {}, False),  # its process lives on this machine: it is only slow
        (0, gone(), True),
        (0, {'started': '1'}, True),  # another process has the number now
        (0, {'machine': 'other'} | gone(), False),
        (50, {'machine': 'other'}, False),
        (70, {'machine': 'other'}, True),
    ],
)
def test_lease_of_dead_holder_is_free(tmp_path, seconds_ago, changes, free):
  write(tmp_path, 3, seconds_ago, **changes)
  assert (leases.holder(tmp_path) is None) is free
  found = leases.try_acquire(tmp_path)
  assert bool(found) is free
  assert not found or found.number == 4


@pytest.mark.parametrize('skew', [-3600, 3600])
@pytest.mark.parametrize(('seconds_ago', 'free'), [(0, False), (50, False), (70, True)])
def test_clock_of_this_machine_does_not_matter(tmp_path, monkeypatch, skew, seconds_ago, free):
  """The lease is refreshed by the clock of the file server, and it expires by that clock."""
  write(tmp_path, 1, seconds_ago, machine='other')
  here = time.time() + skew
  monkeypatch.setattr(time, 'time', lambda: here)
  assert (leases.holder(tmp_path) is None) is free
  assert [path.name for path in tmp_path.iterdir()] == ['lease.1.json']


@pytest.mark.parametrize(('seconds_ago', 'free'), [(50, False), (70, True)])
def test_holder_on_a_full_disk(tmp_path, monkeypatch, seconds_ago, free):
  def fail(**_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  write(tmp_path, 1, seconds_ago, machine='other')
  monkeypatch.setattr(leases.tempfile, 'TemporaryFile', fail)
  assert (leases.holder(tmp_path) is None) is free


def test_torn_lease_expires(tmp_path):
  path = tmp_path / 'lease.1.json'
  path.write_text('')
  assert leases.try_acquire(tmp_path) is None
  os.utime(path, (time.time() - 70,) * 2)
  assert leases.try_acquire(tmp_path).number == 2


def test_trainer_of_dead_holder_is_killed_first(tmp_path):
  trainer = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  os.kill(trainer.pid, signal.SIGSTOP)  # it cannot end by itself
  try:
    write(tmp_path, 1, 0, **gone(), trainer=[trainer.pid, leases._started(trainer.pid)])
    assert leases.try_acquire(tmp_path) is None
    assert trainer.wait(timeout=10) == -signal.SIGKILL
    assert leases.try_acquire(tmp_path).number == 2
  finally:
    trainer.kill()


@pytest.mark.parametrize(
    ('changes', 'seconds_ago', 'free'),
    [
        ({}, 50, False),
        ({}, 70, True),
        (DEAD, 0, True),
        (DEAD | {'trainer': [1, '5']}, 50, False),
        (DEAD | {'trainer': [1, '5']}, 70, True),
    ],
)
def test_holder_that_proc_hides(tmp_path, monkeypatch, changes, seconds_ago, free):
  """As with hidepid: another user's processes exist, and nothing else is known of them."""
  write(tmp_path, 1, seconds_ago, **({'pid': 1, 'started': '5'} | changes))

  def kill(pid, number):
    raise PermissionError if pid == 1 else ProcessLookupError

  monkeypatch.setattr(os, 'kill', kill)
  monkeypatch.setattr(os, 'access', lambda path, mode: not path.startswith('/proc/1/'))
  monkeypatch.setattr(leases, '_started', lambda pid: None)
  assert (leases.holder(tmp_path) is None) is free


def _race(folder, start, names, holders):
  """Acquires as many of the leases as it can and reports each."""
  start.wait()
  for name in names:
    if found := leases.try_acquire(folder / name):
      holders.put((name, os.getpid(), found.number))
  holders.close()
  holders.join_thread()
  start.wait()  # nobody ends before all have tried


@pytest.mark.parametrize('before', ['none', 'dead', 'released', 'expired'])
def test_race(tmp_path, forks, before):
  names = [f'run{n}' for n in range(25)]
  for name in names:
    (tmp_path / name).mkdir()
    if before == 'dead':
      write(tmp_path / name, 1, 0, **DEAD)
    elif before == 'released':
      leases.try_acquire(tmp_path / name).release()
    elif before == 'expired':
      write(tmp_path / name, 1, 70, machine='other')
  count = 8
  start, holders = forks.Barrier(count), forks.Queue()
  crew = [
      forks.Process(target=_race, args=(tmp_path, start, names[n:] + names[:n], holders))
      for n in range(count)
  ]
  for process in crew:
    process.start()
  taken = [holders.get(timeout=60) for _ in names]
  for process in crew:
    process.join(60)
    assert process.exitcode == 0
  assert holders.empty()
  assert sorted(name for name, _, _ in taken) == sorted(names)
  assert {number for _, _, number in taken} == {1 if before == 'none' else 2}
  assert len({pid for _, pid, _ in taken}) > 1  # there was a race


def _count(folder, turns):
  """Increments a number in a file, protected by the lease alone."""
  leases.POLL_SECONDS = 0.001
  for _ in range(turns):
    with leases.acquire(folder):
      number = int((folder / 'number').read_text())
      time.sleep(0.001)
      (folder / 'number').write_text(str(number + 1))


def test_acquire_excludes_others(tmp_path, forks):
  (tmp_path / 'number').write_text('0')
  crew = [forks.Process(target=_count, args=(tmp_path, 15)) for _ in range(4)]
  for process in crew:
    process.start()
  for process in crew:
    process.join(60)
  assert (tmp_path / 'number').read_text() == '60'
  assert [path.name for path in tmp_path.iterdir()] == ['number']


def test_acquire_deletes_the_empty_folder_it_created(tmp_path):
  with leases.acquire(tmp_path / 'a' / 'b'):
    assert leases.try_acquire(tmp_path / 'a' / 'b') is None
  assert list(tmp_path.iterdir()) == []
  with leases.acquire(tmp_path / 'a'):
    (tmp_path / 'a' / 'kept').touch()
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['kept']


@pytest.mark.parametrize('code', ['ENOTSUP', 'ENOSYS', 'EPERM'])
def test_file_system_without_hard_links(tmp_path, monkeypatch, code):
  def link(source, target):
    raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)), source, None, target)

  monkeypatch.setattr(os, 'link', link)
  said = rf'^{tmp_path}/new/sweep: its file system has no hard links'
  with pytest.raises(BadInput, match=said), leases.acquire(tmp_path / 'new' / 'sweep'):
    pass
  assert list(tmp_path.iterdir()) == []


def test_disk_that_is_full_when_a_lease_is_linked(tmp_path, monkeypatch):
  def link(source, target):
    raise OSError(errno.ENOSPC, 'No space left on device', source, None, target)

  monkeypatch.setattr(os, 'link', link)
  with pytest.raises(CannotWrite, match=r'lease\.1\.json: cannot be written: No space left'):
    leases.try_acquire(tmp_path)


def test_manager_refreshes_and_notices_losses(tmp_path, monkeypatch):
  monkeypatch.setattr(leases, 'REFRESH_SECONDS', 0.02)
  for name in 'ab':
    (tmp_path / name).mkdir()
  with leases.LeaseManager() as manager:
    assert manager.try_acquire(tmp_path / 'a') and manager.try_acquire(tmp_path / 'b')
    assert not manager.try_acquire(tmp_path / 'a')
    old = time.time() - 30
    os.utime(tmp_path / 'a' / 'lease.1.json', (old, old))
    write(tmp_path / 'b', 2, 0, machine='other')  # as if it had not been refreshed for too long
    deadline = time.monotonic() + 10
    while not manager.lost() or os.stat(tmp_path / 'a' / 'lease.1.json').st_mtime == old:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    assert manager.lost() == {tmp_path / 'b'} and manager.is_fresh()
    manager.release(tmp_path / 'b')
    assert manager.lost() == set()
  assert leases.try_acquire(tmp_path / 'a').number == 2  # the manager has released its leases
  assert leases.try_acquire(tmp_path / 'b') is None  # of another holder


def test_folder_that_cannot_be_refreshed(tmp_path, monkeypatch):
  """The leases on other folders are refreshed; the holder says that it is not fresh."""
  monkeypatch.setattr(leases, 'REFRESH_SECONDS', 0.02)
  monkeypatch.setattr(leases, 'FRESH_SECONDS', 0.1)
  refresh = leases.Lease.refresh

  def fail_in_a(lease):
    if lease.folder.name == 'a':
      raise OSError(errno.EIO, 'Input/output error')
    return refresh(lease)

  for name in 'ab':
    (tmp_path / name).mkdir()
  with leases.LeaseManager() as manager:
    assert manager.try_acquire(tmp_path / 'a') and manager.try_acquire(tmp_path / 'b')
    monkeypatch.setattr(leases.Lease, 'refresh', fail_in_a)
    old = time.time() - 30
    os.utime(tmp_path / 'b' / 'lease.1.json', (old, old))
    deadline = time.monotonic() + 10
    while manager.is_fresh() or os.stat(tmp_path / 'b' / 'lease.1.json').st_mtime == old:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    monkeypatch.setattr(leases.Lease, 'refresh', refresh)
    while not manager.is_fresh():
      assert time.monotonic() < deadline
      time.sleep(0.01)


def test_remove_stale(tmp_path):
  over, held = tmp_path / 'over', tmp_path / 'held'
  for folder in (over, held):
    folder.mkdir()
    (folder / 'metrics.jsonl').write_text('')
  (over / 'lease.1.json').write_text('{}')
  os.utime(over / 'lease.1.json', (1, 1))
  (over / '.lease.abc').write_text('{}')
  assert leases.try_acquire(held) is not None
  for folder in (over, held):
    leases.remove_stale(folder)
  assert [path.name for path in over.iterdir()] == ['metrics.jsonl']
  assert sorted(path.name for path in held.iterdir()) == ['lease.1.json', 'metrics.jsonl']


@pytest.mark.parametrize('after', ['write_text', 'stat'])
def test_stale_leases_are_removed_while_one_is_acquired(tmp_path, monkeypatch, after):
  """The launcher that acquires the lease does not get it, and finds the result."""
  original = getattr(leases.Path, after)

  def removing(path, *arguments, **options):
    found = original(path, *arguments, **options)
    if path.name.startswith('.lease.'):
      leases.remove_stale(tmp_path)
    return found

  write(tmp_path, 1, 0, **gone())
  with monkeypatch.context() as patch:
    patch.setattr(leases.Path, after, removing)
    assert leases.try_acquire(tmp_path) is None
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(FileNotFoundError):
    leases.try_acquire(tmp_path / 'gone')


@pytest.mark.parametrize('name', [OSError(36, 'File name too long'), '', 'a-host'])
def test_host_without_a_name(name, tmp_path, monkeypatch):
  """It has a lease all the same, under a name that stays."""

  def gethostname():
    if isinstance(name, OSError):
      raise name
    return name

  monkeypatch.setattr(leases.socket, 'gethostname', gethostname)
  assert leases.try_acquire(tmp_path) is not None
  host = leases.holder(tmp_path)['host']
  assert host == leases._host() and host
  assert (host == 'a-host') == (name == 'a-host')


def test_no_proc(monkeypatch):
  def fail(*_, **__):
    raise FileNotFoundError(2, 'No such file or directory', '/proc')

  monkeypatch.setattr(leases.Path, 'read_text', fail)
  assert leases._machine.__wrapped__() == leases._host()
  assert leases._started(os.getpid()) is None
