"""Who trains a run: leases, by which several launchers, on one machine or many, share a workdir.

  DIR/runs/NAME/lease.N.json   the N-th lease on the run; the highest N counts

A lease appears whole, by link(2), which fails where the file is there already: of all that want the
N-th, one gets it. To take over from a holder that is gone is to get the next number. No lease is
ever replaced, and all go together once the run has its result, so whoever acts on an old view of
the folder finds the number taken. This holds over NFS too; nothing is locked.

A holder refreshes its leases (their modification time, by the file server's clock). One on this
machine is gone when its process is; one elsewhere when it has not refreshed for EXPIRES_SECONDS.
"""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stability.errors import writing

Json = dict[str, Any]

REFRESH_SECONDS = 5
# Twelve refreshes: a holder that a slow file server or a loaded machine holds up is not robbed.
EXPIRES_SECONDS = 60
# A holder that could not refresh for so long tells its workers so no more, and they end before
# EXPIRES_SECONDS are over (launch/workers/worker.py).
FRESH_SECONDS = 10
POLL_SECONDS = 0.2  # while waiting for a lease of somebody else's


@dataclasses.dataclass(frozen=True)
class Lease:
  """A lease that this process has taken."""

  folder: Path
  number: int

  @property
  def path(self) -> Path:
    return _path(self.folder, self.number)

  def refresh(self) -> bool:
    """Shows that the holder lives; False if the lease is no longer its own."""
    try:
      os.utime(self.path)
    except FileNotFoundError:
      return False
    return not _path(self.folder, self.number + 1).exists()

  def release(self) -> None:
    """Lets anybody take the next one at once, or, where the disk refuses, once it has expired."""
    with contextlib.suppress(OSError):
      os.utime(self.path, (0, 0))

  def remove(self) -> None:
    """Deletes all leases of the folder: what they were for is done. The one that counts goes last.

    Whoever still takes one on an old view of the folder sees that it is done.
    """
    for number in [n for n in _numbers(self.folder) if n <= self.number]:
      _path(self.folder, number).unlink(missing_ok=True)


def take(folder: Path, trainer: int | None = None) -> Lease | None:
  """The next lease on a folder, if nobody holds one.

  Args:
    folder: of a run, say; it is there.
    trainer: process of this machine that does the work, beside this one. While it lives the lease
      counts, though its holder be gone; it is then killed by whoever asks for the lease.
  """
  own = _identity(trainer)
  temporary = folder / f'.lease.{own["id"]}'
  with writing(temporary):
    temporary.write_text(json.dumps(own))
  try:
    number = max(_numbers(folder), default=0)
    before = _read(folder, number)
    if number and (before is None or not _is_free(*before, temporary.stat().st_mtime)):
      return None
    os.link(temporary, _path(folder, number + 1))
  except FileExistsError:
    return None
  finally:
    temporary.unlink(missing_ok=True)
  lease = Lease(folder, number + 1)
  if number:  # it must have been free for all this time
    now = _read(folder, number)
    if now is None or now[0].get('id') != before[0].get('id'):
      lease.path.unlink(missing_ok=True)
      return None
  return lease


def holder(folder: Path) -> Json | None:
  """Who holds the lease on a folder, as far as can be seen: host, pid ...; None: nobody."""
  number = max(_numbers(folder), default=0)
  found = _read(folder, number) if number else None
  if found is None or _is_free(*found, time.time()):
    return None
  return found[0]


def remove_stale(folder: Path) -> None:
  """Deletes what holders that are gone have left in a folder whose work is done."""
  left = [path for path in folder.iterdir() if is_lease(path)]
  if left and holder(folder) is None:
    for path in left:
      path.unlink(missing_ok=True)


class LeaseManager:
  """Takes leases and refreshes those it holds, until they are given back. A context manager."""

  def __init__(self):
    self._held: dict[Path, Lease] = {}
    self._lost: set[Path] = set()
    self._lock = threading.Lock()
    self._refreshed = time.monotonic()
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._refresh, daemon=True)

  def __enter__(self) -> 'LeaseManager':
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    """Releases what is still held."""
    self._over.set()
    self._thread.join()
    for folder in list(self._held):
      self.release(folder)

  def take(self, folder: Path, trainer: int | None = None) -> bool:
    """Whether the lease on the folder is now ours; see `take`."""
    lease = take(folder, trainer)
    if lease is not None:
      with self._lock:
        self._held[folder] = lease
    return lease is not None

  def release(self, folder: Path) -> None:
    """Others may take it."""
    with self._lock:
      if lease := self._pop(folder):
        lease.release()

  def remove(self, folder: Path) -> None:
    """What the lease was for is done."""
    with self._lock:
      if lease := self._pop(folder):
        lease.remove()

  def _pop(self, folder: Path) -> Lease | None:
    self._lost.discard(folder)
    return self._held.pop(folder, None)

  def lost(self) -> set[Path]:
    """Folders whose lease somebody else has taken over."""
    with self._lock:
      return set(self._lost)

  def is_fresh(self) -> bool:
    """Whether others can see that this process lives."""
    return time.monotonic() - self._refreshed < FRESH_SECONDS

  def _refresh(self) -> None:
    while not self._over.wait(REFRESH_SECONDS):
      with contextlib.suppress(OSError):  # it may come back; meanwhile nothing is fresh
        for folder in list(self._held):
          with self._lock:  # a lease that is being let go must not be refreshed after that
            if folder in self._held and not self._held[folder].refresh():
              self._lost.add(folder)
        self._refreshed = time.monotonic()


@contextlib.contextmanager
def acquire(folder: Path, wait: Callable[[Json], None] = lambda holder: None) -> Iterator[None]:
  """Holds the lease on a folder, which is made for it, once nobody else does.

  Left without anything else in it, a folder that was made is deleted again.

  Args:
    folder: to hold.
    wait: told once who holds it, if somebody does.
  """
  made = [path for path in (folder, *folder.parents) if not path.exists()]
  told = False
  with LeaseManager() as keeper:
    while True:
      with contextlib.suppress(FileNotFoundError):  # deleted by another that held it
        with writing(folder):
          folder.mkdir(parents=True, exist_ok=True)
        if keeper.take(folder):
          break
        if not told and (by := holder(folder)):
          wait(by)
          told = True
      time.sleep(POLL_SECONDS)
    try:
      yield
    finally:
      keeper.remove(folder)
      with contextlib.suppress(OSError):  # not empty
        for path in made:
          path.rmdir()


def is_lease(path: Path) -> bool:
  """Whether a file is a lease, or was to become one."""
  return path.name.startswith(('lease.', '.lease.'))


def _path(folder: Path, number: int) -> Path:
  return folder / f'lease.{number}.json'


def _numbers(folder: Path) -> list[int]:
  """Of the leases on a folder, the lowest first."""
  parts = (entry.split('.') for entry in os.listdir(folder) if entry.startswith('lease.'))
  return sorted(int(p[1]) for p in parts if len(p) == 3 and p[1].isdecimal() and p[2] == 'json')


def _read(folder: Path, number: int) -> tuple[Json, float] | None:
  """A lease and when it was refreshed; opened, so that a file server is asked anew."""
  try:
    with _path(folder, number).open() as file:
      seconds = os.fstat(file.fileno()).st_mtime
      text = file.read()
  except FileNotFoundError:
    return None
  try:
    return dict(json.loads(text)), seconds
  except (ValueError, TypeError):  # torn by a power cut: its age alone tells
    return {}, seconds


def _is_free(lease: Json, refreshed: float, now: float) -> bool:
  """Whether the holder of a lease has let go of it or is gone. Kills what it has left behind."""
  if refreshed == 0:  # released
    return True
  if lease.get('machine') != _machine():
    return now - refreshed > EXPIRES_SECONDS
  if _is_alive(lease['pid'], lease['started']):
    return False
  if lease['trainer'] is None or not _is_alive(*lease['trainer']):
    return True
  with contextlib.suppress(OSError):
    os.kill(lease['trainer'][0], signal.SIGKILL)
  return False  # until it is gone


# Processes.


def _identity(trainer: int | None) -> Json:
  pid = os.getpid()
  return {
      'id': uuid.uuid4().hex,
      'host': socket.gethostname(),
      'machine': _machine(),
      'pid': pid,
      'started': _started(pid),
      'trainer': None if trainer is None else [trainer, _started(trainer)],
  }


@functools.cache
def _machine() -> str:
  """Where a process number means something: this boot of this machine, and this container."""
  try:
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return socket.gethostname()


def _started(pid: int) -> str | None:
  """When a process started, as the system counts; None: it is not there, or it cannot be told."""
  try:
    state, *rest = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
  except OSError:
    return None
  return None if state in 'ZX' else rest[18]


def _is_alive(pid: int, started: str | None) -> bool:
  if os.path.exists('/proc/self/stat'):
    return started is not None and _started(pid) == started
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
