"""Leases: one holder at a time, whoever races for one, and however the last holder ended."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from stability.storage import leases


@pytest.fixture
def forks():
  """Processes that start at once and have nothing of this one, jax and its threads least of all."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['pytest', 'stability.storage.leases'])
  return context


def write(folder, number, seconds_ago, **changes):
  """A lease as somebody else would have left it."""
  own = leases._identity(None) | changes
  path = folder / f'lease.{number}.json'
  path.write_text(json.dumps(own))
  os.utime(path, (time.time() - seconds_ago,) * 2)


def gone():
  """The number of a process that has ended, and when it started."""
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  started = leases._started(process.pid)
  process.communicate(b'\n')
  return {'pid': process.pid, 'started': started}


def test_one_holder_until_it_lets_go(tmp_path):
  first = leases.take(tmp_path)
  assert first and leases.take(tmp_path) is None
  assert leases.holder(tmp_path)['pid'] == os.getpid()
  first.release()
  assert leases.holder(tmp_path) is None
  second = leases.take(tmp_path)
  assert second and leases.take(tmp_path) is None
  assert not first.refresh() and second.refresh()  # the first would learn that it is not its own
  second.remove()
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('seconds_ago', 'changes', 'free'),
    [
        (10_000, {}, False),  # its process is here and lives: it is only slow
        (0, gone(), True),
        (0, {'started': '1'}, True),  # another process has its number now
        (0, {'machine': 'other'} | gone(), False),
        (50, {'machine': 'other'}, False),
        (70, {'machine': 'other'}, True),
    ],
)
def test_whose_holder_is_gone_is_free(tmp_path, seconds_ago, changes, free):
  write(tmp_path, 3, seconds_ago, **changes)
  assert (leases.holder(tmp_path) is None) is free
  found = leases.take(tmp_path)
  assert bool(found) is free
  assert not found or found.number == 4


def test_a_torn_lease_is_one_of_an_unknown_holder(tmp_path):
  path = tmp_path / 'lease.1.json'
  path.write_text('')
  assert leases.take(tmp_path) is None
  os.utime(path, (time.time() - 70,) * 2)
  assert leases.take(tmp_path).number == 2


def test_what_a_dead_holder_left_running_is_killed_before_another_has_the_lease(tmp_path):
  trainer = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  os.kill(trainer.pid, signal.SIGSTOP)  # it cannot end by itself
  try:
    write(tmp_path, 1, 0, **gone(), trainer=[trainer.pid, leases._started(trainer.pid)])
    assert leases.take(tmp_path) is None
    assert trainer.wait(timeout=10) == -signal.SIGKILL
    assert leases.take(tmp_path).number == 2
  finally:
    trainer.kill()


def _race(folder, start, names, holders):
  """Takes what it can of the leases; notes each, works a moment, and is killed, or lets go."""
  start.wait()
  for name in names:
    if found := leases.take(folder / name):
      holders.put((name, os.getpid(), found.number))
  holders.close()
  holders.join_thread()
  start.wait()  # all hold theirs until everybody has tried


@pytest.mark.parametrize('before', ['none', 'dead', 'released', 'expired'])
def test_of_many_that_race_for_a_lease_one_gets_it(tmp_path, forks, before):
  names = [f'run{n}' for n in range(25)]
  for name in names:
    (tmp_path / name).mkdir()
    if before == 'dead':
      write(tmp_path / name, 1, 0, **gone_once)
    elif before == 'released':
      leases.take(tmp_path / name).release()
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
  assert len({pid for _, pid, _ in taken}) > 1  # a race it was


gone_once = gone()


def _count(folder, turns):
  """Adds to a number in a file, without any protection but the lease."""
  leases.POLL_SECONDS = 0.001
  for _ in range(turns):
    with leases.acquire(folder):
      number = int((folder / 'number').read_text())
      time.sleep(0.001)
      (folder / 'number').write_text(str(number + 1))


def test_a_folder_is_held_by_one_at_a_time(tmp_path, forks):
  (tmp_path / 'number').write_text('0')
  crew = [forks.Process(target=_count, args=(tmp_path, 15)) for _ in range(4)]
  for process in crew:
    process.start()
  for process in crew:
    process.join(60)
  assert (tmp_path / 'number').read_text() == '60'
  assert [path.name for path in tmp_path.iterdir()] == ['number']


def test_a_folder_made_to_be_held_goes_if_nothing_is_put_into_it(tmp_path):
  with leases.acquire(tmp_path / 'a' / 'b'):
    assert leases.take(tmp_path / 'a' / 'b') is None
  assert list(tmp_path.iterdir()) == []
  with leases.acquire(tmp_path / 'a'):
    (tmp_path / 'a' / 'kept').touch()
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['kept']


def test_a_keeper_refreshes_what_it_holds_and_notices_what_it_lost(tmp_path, monkeypatch):
  monkeypatch.setattr(leases, 'REFRESH_SECONDS', 0.02)
  for name in 'ab':
    (tmp_path / name).mkdir()
  with leases.LeaseManager() as keeper:
    assert keeper.take(tmp_path / 'a') and keeper.take(tmp_path / 'b')
    assert not keeper.take(tmp_path / 'a')
    old = time.time() - 30
    os.utime(tmp_path / 'a' / 'lease.1.json', (old, old))
    write(tmp_path / 'b', 2, 0, machine='other')  # as if it had not been refreshed for too long
    deadline = time.monotonic() + 10
    while not keeper.lost() or os.stat(tmp_path / 'a' / 'lease.1.json').st_mtime == old:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    assert keeper.lost() == {tmp_path / 'b'} and keeper.is_fresh()
    keeper.release(tmp_path / 'b')
    assert keeper.lost() == set()
  assert leases.take(tmp_path / 'a').number == 2  # at the end all are released
  assert leases.take(tmp_path / 'b') is None  # the other's is none of its business


def test_what_the_dead_have_left_is_swept_up_and_no_more(tmp_path):
  over, held = tmp_path / 'over', tmp_path / 'held'
  for folder in (over, held):
    folder.mkdir()
    (folder / 'metrics.jsonl').write_text('')
  (over / 'lease.1.json').write_text('{}')
  os.utime(over / 'lease.1.json', (1, 1))
  (over / '.lease.abc').write_text('{}')
  assert leases.take(held) is not None
  for folder in (over, held):
    leases.remove_stale(folder)
  assert [path.name for path in over.iterdir()] == ['metrics.jsonl']
  assert sorted(path.name for path in held.iterdir()) == ['lease.1.json', 'metrics.jsonl']
